#!/usr/bin/env python3
"""Many participants through the array script, without a scheduler: what the app costs beside its method.

  batch.py --participants 200 --at-once 2 -o batch.txt

Synthetic participants (one thick scan of 20 x 20 x 10 voxels each) go through `containers/slurm/array.sbatch`, one
process per participant with one processor, `--clean-workdir`, super-resolution with `--sloppy`. Between them, in the
same queue and under the same load, the bare method: a Python program that loads a scan, calls the same function with
the same options and saves the same images. Overhead is the difference of the medians. Wall times of a busy machine say
little, so processor time is given too, and the load. At the end: the group level, what was left over, and some of the
participants again, whose outputs must not change.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).resolve().parent))
from struck_runs import write_dataset

ROOT = Path(__file__).resolve().parents[1]
BARE_EVERY = 10


@dataclass
class Job:
    """One process of the queue, and what it took."""

    kind: str
    number: int
    command: list[str]
    environment: dict[str, str]
    started: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    code: int | None = None
    process: subprocess.Popen | None = None

    def start(self, folder: Path) -> None:
        self.started = time.monotonic()
        with (folder / f'{self.kind}-{self.number}.out').open('w') as out:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=out, stderr=subprocess.STDOUT, cwd=folder
            )

    def poll(self) -> bool:
        """Whether it ended; its memory until then, its times then."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid == 0:
            self.peak_mb = max(self.peak_mb, _tree_mb(self.process.pid))
            return False
        self.wall_s = time.monotonic() - self.started
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self.code = self.process.returncode = os.waitstatus_to_exitcode(status)
        return True


def _tree_mb(pid: int) -> float:
    """Resident memory of a process and its children."""
    total = 0
    try:
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.Error:
        pass
    return total / 2**20


def run_queue(jobs: list[Job], at_once: int, folder: Path, minutes: float = 1e9) -> list[float]:
    """All of them, so many at a time; returns the load of the machine over time.

    After so many ``minutes`` no more are started.
    """
    waiting, running, loads, done = collections.deque(jobs), [], [], 0
    begin = last = time.monotonic()
    while waiting or running:
        if time.monotonic() - begin > 60 * minutes:
            waiting.clear()
        while waiting and len(running) < at_once:
            running.append(waiting.popleft())
            running[-1].start(folder)
        time.sleep(0.25)
        ended = [job for job in running if job.poll()]
        running = [job for job in running if job not in ended]
        done += len(ended)
        if time.monotonic() - last > 10:
            last = time.monotonic()
            loads.append(os.getloadavg()[0])
            print(f'{done} of {len(jobs)}, load {loads[-1]:.1f}', file=sys.stderr, flush=True)
    return loads or [os.getloadavg()[0]]


def bare(image: str, folder: str) -> None:
    """The method alone: what the app's node computes and saves, by the same functions."""
    import numpy as np

    from bids_gsrecon.cli.method_options import SUPERRES_SLOPPY
    from bids_gsrecon.imaging.support import find_support
    from bids_gsrecon.interfaces.io import load_volume, save_volume
    from bids_gsrecon.recon.superres import SuperresOptions, output_lattice, superres, voxel_profiles

    volume = load_volume(image)
    lattice = output_lattice(volume.lattice, zooms_mm=np.full(3, 4.0))
    mask, _ = find_support(volume)
    options = SuperresOptions(**SUPERRES_SLOPPY, n_threads=1)
    profiles = voxel_profiles(volume.lattice, 'auto', slice_axis=2, thickness_mm=8.0)
    result = superres(volume, lattice, profiles=profiles, mask=mask, options=options, seed=0)
    for name in ('image', 'amplitude', 'relaxation_proxy', 'mask'):
        save_volume(Path(folder) / f'{name}.nii.gz', getattr(result, name), lattice.affine)


def hashes(out: Path, labels) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for label in labels
        for path in sorted((out / f'sub-{label}').rglob('*'))
        if path.is_file()
    }


def count_files(folder: Path) -> tuple[int, float]:
    """Files, and MB."""
    files = [path for path in folder.rglob('*') if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files) / 2**20


def leftovers(root: Path, scratch: Path) -> list[str]:
    found = [*root.rglob('.tmp-*'), *root.rglob('.lock-*'), *scratch.iterdir()]
    found += [path for path in (root / 'work').rglob('*') if path.is_file()]
    texts = [str(path) for path in found]
    for process in psutil.process_iter():
        try:
            if str(root) in ' '.join(process.cmdline()) and process.pid != os.getpid():
                texts.append(f'process {process.pid}')
        except psutil.Error:
            continue
    return texts


def median(jobs: list[Job], name: str) -> float:
    return statistics.median(getattr(job, name) for job in jobs)


def row(title: str, jobs: list[Job]) -> str:
    walls, cpus = [[getattr(job, name) for job in jobs] for name in ('wall_s', 'cpu_s')]
    return (
        f'{title:28} {len(jobs):5d} {statistics.median(walls):9.1f} {max(walls):9.1f} '
        f'{statistics.median(cpus):8.2f} {max(cpus):8.2f} {max(job.peak_mb for job in jobs):8.0f}'
    )


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--participants', type=int, default=200, metavar='N')
    parser.add_argument('--at-once', type=int, default=2, metavar='N')
    parser.add_argument('-o', '--out', type=Path, metavar='FILE', help='also write the table there')
    parser.add_argument('--minutes', type=float, default=1e9, metavar='N', help='start no more after that')
    parser.add_argument('--bare', nargs=2, metavar=('IMAGE', 'FOLDER'), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.bare:
        bare(*given.bare)
        return 0
    with tempfile.TemporaryDirectory(prefix='gsrecon-batch-') as folder:
        text, good = run(given, Path(folder))
    command = shlex.join(['batch.py', *(arguments or sys.argv[1:])])
    text = f'{command}   {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {text}'
    print(text)
    if given.out:
        given.out.write_text(text + '\n')
    return 0 if good else 1


def run(given, root: Path) -> tuple[str, bool]:
    """The table, and whether all went well."""
    width = len(str(given.participants))
    labels = [f'{n + 1:0{width}d}' for n in range(given.participants)]
    write_dataset(root / 'bids', labels)
    scratch, logs = root / 'tmp', root / 'logs'
    for path in (scratch, logs, root / 'bare'):
        path.mkdir()
    threads = {f'{name}_NUM_THREADS': '1' for name in ('OMP', 'MKL', 'OPENBLAS', 'NUMBA')}
    common = {**os.environ, **threads, 'TMPDIR': str(scratch), 'OMP_WAIT_POLICY': 'passive'}
    common['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    script = ROOT / 'containers' / 'slurm' / 'array.sbatch'

    def task(number: int) -> Job:
        environment = common | {
            'BIDS_DIR': str(root / 'bids'),
            'OUTPUT_DIR': str(root / 'out'),
            'WORK_DIR': str(root / 'work'),
            'SLURM_ARRAY_TASK_ID': str(number),
            'SLURM_CPUS_PER_TASK': '1',
            'SLURM_MEM_PER_NODE': '4096',
        }
        options = ['--sloppy', '--clean-workdir', '--skip-bids-validation']
        return Job('app', number, ['bash', str(script), *options], environment)

    def method(number: int) -> Job:
        image = root / 'bids' / f'sub-{labels[number - 1]}' / 'anat' / f'sub-{labels[number - 1]}_T2w.nii.gz'
        program = [sys.executable, str(Path(__file__).resolve()), '--bare', str(image), str(root / 'bare')]
        return Job('bare', number, program, common | {'TMPDIR': str(root / 'bare')})

    run_queue([method(1)], 1, logs)  # compiles what is not compiled yet
    jobs = []
    for number in range(1, given.participants + 1):
        jobs.append(task(number))
        if number % BARE_EVERY == 1:
            jobs.append(method(number))
    started = time.monotonic()
    loads = run_queue(jobs, given.at_once, logs, given.minutes)
    jobs = [job for job in jobs if job.code is not None]
    wall_s = time.monotonic() - started
    apps = [job for job in jobs if job.kind == 'app']
    bares = [job for job in jobs if job.kind == 'bare']
    failed = [job for job in jobs if job.code != 0]
    if failed:
        print((logs / f'{failed[0].kind}-{failed[0].number}.out').read_text(), file=sys.stderr)
    group = subprocess.run(
        ['bids_gsrecon', str(root / 'bids'), str(root / 'out'), 'group'],
        capture_output=True,
        text=True,
        env=common,
        check=False,
    )
    left = leftovers(root, scratch)
    n_files, out_mb = count_files(root / 'out')
    sample = labels[: len(apps) : max(1, len(apps) // 4)]
    before = hashes(root / 'out', sample)
    run_queue([task(labels.index(label) + 1) for label in sample], given.at_once, logs)
    same = hashes(root / 'out', sample) == before
    cpu_s, wall_each_s = (median(apps, name) - median(bares, name) for name in ('cpu_s', 'wall_s'))
    verdict = (group.stdout.strip().splitlines() or [group.stderr.strip()])[-1]
    lines = [
        f'{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GB; load {statistics.mean(loads):.1f} '
        f'(up to {max(loads):.1f}), of which {given.at_once} are of this',
        '',
        f'{"":28} {"runs":>5} {"wall s":>9} {"max":>9} {"cpu s":>8} {"max":>8} {"peak MB":>8}',
        row('participant through the app', apps),
        row('bare method', bares),
        f'{"overhead per participant":28} {"":5} {wall_each_s:9.1f} {"":9} {cpu_s:8.2f}',
        '',
        f'wall time of the queue      {wall_s:.0f} s for {len(jobs)} processes, {given.at_once} at a time',
        f'failed                      {len(failed)}',
        f'files in the output folder  {n_files} ({n_files / len(apps):.1f} per participant), {out_mb:.1f} MB',
        f'left over                   {len(left)} (work files, temporaries, locks, processes){": " if left else ""}'
        f'{", ".join(left[:3])}',
        f'run again                   {len(sample)} participants: outputs {"unchanged" if same else "CHANGED"}',
        f'group level                 exit code {group.returncode}: {verdict.replace(str(root), "...")}',
    ]
    good = not failed and not left and same and group.returncode == 0
    (root / 'jobs.json').write_text(json.dumps([(j.kind, j.wall_s, j.cpu_s) for j in jobs]))
    return '\n'.join(lines), good


if __name__ == '__main__':
    sys.exit(main())
