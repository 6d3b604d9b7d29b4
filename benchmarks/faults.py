#!/usr/bin/env python3
"""What goes wrong on clusters, done on purpose: how each run ends, and whether running it again repairs it.

  faults.py                     every fault on tiny brains through the real super-resolution (minutes)
  faults.py --only disk clock   those whose name contains one of the words
  faults.py --toy               the same on nodes that compute nothing (what the tests run)

Every fault strikes a run on two participants (one at a time unless the name says workers), in the middle of a step
where the table does not say otherwise. `s to end` counts from the fault to the end of the last process. `again` is the
same command without the fault: its exit code, and whether all images equal those of a run that was left alone, byte
for byte. Files, clocks and locks fail through a library that is loaded before the C library (tests/integration/
faults.c); processes are really killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 600.0


@dataclass
class App:
    """How the app is called, and which of its nodes is struck.

    Attributes
    ----------
    module
        For ``python -m``.
    slow
        Start of the name of the node.
    extra
        Further arguments.
    waits
        Its slow node waits for the file ``TOY_WAIT``.
    """

    module: str
    slow: str
    extra: list[str] = field(default_factory=list)
    waits: bool = False


REAL = App('bids_gsrecon', 'super_resolve', ['--sloppy'])
TOY = App('tests.toy_method', 'double', waits=True)


@dataclass
class Report:
    """One row of the table; the rest is for tests."""

    fault: str
    exit_code: int
    seconds: float
    text: str
    status: dict
    crash_files: list[str]
    again_code: int = -1
    again_equal: bool = False
    left_over: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """The first sentence about an error, else the verdict."""
        lines = [line.removeprefix('bids_gsrecon: ') for line in self.text.splitlines()]
        errors = [line for line in lines if line.startswith('error: ')]
        if self.exit_code < 0:
            people = self.status.get('participants', {}).values()
            errors = [f'(status.json: {text})' for person in people for text in person['errors']]
        return errors[0] if errors else lines[-1]


class Bench:
    """A dataset, the images of a run that nothing disturbed, and folders for those that something does."""

    def __init__(self, folder, app: App):
        self.folder, self.app = Path(folder), app
        self.bids = write_dataset(self.folder / 'bids')
        self.library = compile_faults(self.folder)
        self.name = 'undisturbed'
        done = self.start().wait()
        if done.returncode != 0:
            raise RuntimeError(f'the undisturbed run failed:\n{done.stdout}')
        self.truth = images(self.out)

    @property
    def out(self) -> Path:
        return self.folder / self.name / 'out'

    @property
    def work(self) -> Path:
        return self.folder / self.name / 'work'

    @property
    def go(self) -> Path:
        """The file for which the slow node of the toy waits."""
        return self.folder / self.name / 'go'

    def start(self, *arguments, struck: bool = False, labels=(), **environment) -> Run:
        """The app, in a session of its own; ``struck``: its slow node takes its time."""
        command = [sys.executable, '-m', self.app.module, str(self.bids), str(self.out), 'participant']
        command += ['-w', str(self.work), '--recon', 'superres', '--skip-bids-validation', '--mem', '6G']
        command += [*self.app.extra, *(arguments or ('--nprocs', '1'))]
        command += ['--participant-label', *labels] if labels else []
        python_path = os.pathsep.join(filter(None, [os.environ.get('PYTHONPATH'), str(ROOT)]))
        full = {**os.environ, 'PYTHONPATH': python_path, 'PYTHONSAFEPATH': '1'}
        if struck and self.app.waits:
            full['TOY_WAIT'] = str(self.go)
        if environment:
            full |= {'LD_PRELOAD': str(self.library)} | {k: str(v) for k, v in environment.items()}
        return Run(self, command, full)

    def let_go(self) -> None:
        """The slow node of the toy need not wait any longer."""
        self.go.parent.mkdir(parents=True, exist_ok=True)
        self.go.touch()

    def row(self, run: Run, since: float | None = None, *, goes_on: bool = True) -> Report:
        """What became of ``run``, and of the same command run again.

        ``goes_on``: what is not struck comes to its end.
        """
        if goes_on:
            self.let_go()
        done = run.wait()
        seconds = time.monotonic() - (run.started if since is None else since)
        left_over = run.left_over()
        crash_files = [path.read_text() for path in self.out.glob('logs/*/*/crash-*.txt')]
        report = Report('', done.returncode, seconds, done.stdout, last_status(self.out), crash_files)
        report.left_over = left_over
        again = self.start().wait()
        report.again_code = again.returncode
        report.again_equal = images(self.out) == self.truth
        report.left_over += [str(path) for path in self.out.rglob('.tmp-*')]
        report.left_over += [str(path) for path in self.out.parent.rglob('.lock-*')]
        if again.returncode != 0:
            report.text += f'\n--- again ---\n{again.stdout}'
        return report


class Run:
    """A started app."""

    def __init__(self, bench: Bench, command: list[str], environment: dict[str, str]):
        self.bench = bench
        self.started = time.monotonic()
        self._mark = f'FAULTS_RUN={time.monotonic_ns()}'
        name, _, value = self._mark.partition('=')
        self._file = tempfile.TemporaryFile('w+')  # noqa: SIM115 - and not a pipe: orphans would keep it open
        self.process = subprocess.Popen(
            command,
            env={**environment, name: value},
            stdout=self._file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=bench.folder,
        )

    def wait(self) -> subprocess.CompletedProcess:
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for process in self.tree():
                process.kill()
            self.process.wait()
            self._file.write(f'\nHANGS: not ended after {TIMEOUT_S:g} s\n')
        self._file.seek(0)
        return subprocess.CompletedProcess([], self.process.returncode, self._file.read())

    def until(self, ready: Callable[[], object]):
        """Wait until ``ready`` returns something; that."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if result := ready():
                return result
            if self.process.poll() is not None:
                raise RuntimeError(f'it ended before it could be struck:\n{self.wait().stdout}')
            time.sleep(0.02)
        raise RuntimeError('it never came to the step that is to be struck')

    def at_slow_step(self) -> psutil.Process:
        """The process that computes the slow node, as soon as there is one."""
        return self.until(self.computing)

    def tree(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.Error:
            return []

    def computing(self, but=()) -> psutil.Process | None:
        for process in self.tree()[1:]:
            if process.pid in but:
                continue
            try:
                folder = Path(process.cwd())  # nodes run in their folder
            except psutil.Error:
                continue
            if folder.name.startswith(self.bench.app.slow):
                return process
        return None

    def left_over(self) -> list[str]:
        """Processes of this run that live three seconds after its end."""
        name, _, value = self._mark.partition('=')
        deadline = time.monotonic() + 3.0
        while True:
            alive = []
            for process in psutil.process_iter():
                try:
                    if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                        alive.append(f'process {process.pid}: {" ".join(process.cmdline())[:80]}')
                except psutil.Error:
                    continue
            if not alive or time.monotonic() > deadline:
                return alive
            time.sleep(0.1)


def write_dataset(bids: Path, labels=('01', '02'), shape=(20, 20, 10)) -> Path:
    """Participants with one thick scan each: a ball with structure, 4 x 4 x 8 mm."""
    import nibabel as nib
    import numpy as np

    bids.mkdir(parents=True)
    description = {'Name': 'tiny', 'BIDSVersion': '1.10.0'}
    (bids / 'dataset_description.json').write_text(json.dumps(description))
    sizes = np.array([4.0, 4.0, 8.0])
    x, y, z = np.moveaxis((np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) / 2) * sizes, 1, 0)
    inside = (x / 34) ** 2 + (y / 38) ** 2 + (z / 34) ** 2 < 1
    for number, label in enumerate(labels):
        tissue = 500 + 200 * np.sin(x / 7 + number) * np.cos(y / 9) + 150 * np.cos(z / 8)
        data = np.where(inside, tissue, 0).reshape(shape).astype(np.float32)
        folder = bids / f'sub-{label}' / 'anat'
        folder.mkdir(parents=True)
        image = nib.Nifti1Image(data, np.diag([*sizes, 1.0]))
        image.header.set_xyzt_units('mm', 'sec')
        nib.save(image, folder / f'sub-{label}_T2w.nii.gz')
    return bids


def compile_faults(folder: Path) -> Path:
    """The library that makes files, clocks and locks fail.

    Raises
    ------
    RuntimeError
        No C compiler.
    """
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None or sys.platform != 'linux':
        raise RuntimeError('a C compiler on Linux is needed')
    library = folder / 'faults.so'
    source = ROOT / 'tests' / 'integration' / 'faults.c'
    subprocess.run([compiler, '-shared', '-fPIC', '-O1', '-o', library, source, '-ldl'], check=True)
    return library


def images(out: Path) -> dict[str, str]:
    """Hash of every image of a run."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob('sub-*/**/*.nii.gz'))
    }


def last_status(out: Path) -> dict:
    paths = sorted(out.glob('logs/*/status.json'), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(paths[-1].read_text()) if paths else {}


# --- the faults ---------------------------------------------------------------------------------------


def kill_computing(bench: Bench, *arguments, number=signal.SIGKILL) -> Report:
    run = bench.start(*arguments, struck=True)
    victim = run.at_slow_step()
    time.sleep(0.3)
    since = time.monotonic()
    victim.send_signal(number)
    return bench.row(run, since)


def kill_computing_workers(bench: Bench) -> Report:
    return kill_computing(bench, '--nprocs', '2', '--omp-nthreads', '1')


def kill_computing_twice(bench: Bench) -> Report:
    """As the kernel does where there is not enough for the step alone either."""
    run = bench.start('--nprocs', '2', '--omp-nthreads', '1', struck=True)
    victim = run.at_slow_step()
    folder = victim.cwd()
    victim.kill()
    victims = {victim.pid}
    for _ in range(4):  # of both participants, until the first is lost for good
        other = run.until(lambda: run.computing(but=victims))
        victims.add(other.pid)
        same, since = other.cwd() == folder, time.monotonic()
        other.kill()
        if same:
            break
    return bench.row(run, since)


def crash_computing(bench: Bench) -> Report:
    return kill_computing(bench, number=signal.SIGSEGV)


def kill_planning(bench: Bench) -> Report:
    run = bench.start(struck=True)
    # The second process, before it has any log: it is importing, or reads the dataset.
    victim = run.until(lambda: [p for p in run.tree()[1:] if _spawned(p)])[0]
    since = time.monotonic()
    victim.kill()
    return bench.row(run, since)


def _spawned(process: psutil.Process) -> bool:
    try:
        return 'spawn_main' in ' '.join(process.cmdline())
    except psutil.Error:
        return False


def end(bench: Bench, *arguments, number=signal.SIGTERM, group=False, **environment) -> Report:
    run = bench.start(*arguments, struck=True, **environment)
    run.at_slow_step()
    time.sleep(0.3)
    since = time.monotonic()
    if group:
        os.killpg(run.process.pid, number)
    else:
        run.process.send_signal(number)
    return bench.row(run, since, goes_on=False)


def terminate_workers(bench: Bench) -> Report:
    return end(bench, '--nprocs', '2', '--omp-nthreads', '1')


def interrupt(bench: Bench) -> Report:
    return end(bench, number=signal.SIGINT, group=True)


def terminate_deaf(bench: Bench) -> Report:
    return end(bench, TOY_DEAF='1')


def lose_node(bench: Bench) -> Report:
    run = bench.start('--nprocs', '2', '--omp-nthreads', '1', struck=True)
    run.at_slow_step()
    since = time.monotonic()
    for process in run.tree():
        process.kill()
    return bench.row(run, since)


def kill_first_process(bench: Bench) -> Report:
    return end(bench, '--nprocs', '2', '--omp-nthreads', '1', number=signal.SIGKILL)


def lose_files(bench: Bench) -> Report:
    """The node goes down after the first step: what it wrote last is empty when it comes back."""
    run = bench.start(struck=True)
    run.at_slow_step()
    since = time.monotonic()
    for process in run.tree():
        process.kill()
    run.wait()
    for path in bench.work.rglob('result_*.pklz'):
        path.write_bytes(b'')
    return bench.row(run, since)


def fail_files(bench: Bench, folder: str, number: int, *, midway: bool = True) -> Report:
    mark = bench.folder / bench.name / 'mark'
    place = bench.out if folder == 'out' else bench.work
    environment = {'FAULT_PREFIX': place, 'FAULT_ERRNO': number, 'FAULT_MARK': mark if midway else ''}
    run = bench.start(struck=True, **environment)
    since = None
    if midway:
        run.at_slow_step()
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        since = time.monotonic()
    return bench.row(run, since)


def full_work(bench: Bench) -> Report:
    return fail_files(bench, 'work', 28)


def full_output(bench: Bench) -> Report:
    return fail_files(bench, 'out', 28)


def full_from_start(bench: Bench) -> Report:
    return fail_files(bench, 'out', 28, midway=False)


def quota_output(bench: Bench) -> Report:
    return fail_files(bench, 'out', 122)


def read_only_work(bench: Bench) -> Report:
    return fail_files(bench, 'work', 30, midway=False)


def read_only_midway(bench: Bench) -> Report:
    return fail_files(bench, 'work', 30)


def no_locks(bench: Bench) -> Report:
    return bench.row(bench.start(FAULT_LOCKS='1'))


def clock_behind(bench: Bench) -> Report:
    """Killed by a node whose clock is a day ahead; the next node's is right."""
    run = bench.start(struck=True, FAULT_CLOCK=86400)
    run.at_slow_step()
    since = time.monotonic()
    run.process.kill()
    run.wait()
    later = time.time() + 86400
    for path in [*bench.work.rglob('*'), *bench.out.rglob('*')]:
        os.utime(path, (later, later))
    return bench.row(run, since)


def two_at_once(bench: Bench) -> Report:
    first = bench.start(struck=True)
    first.at_slow_step()
    second = bench.start()
    second.wait()
    seconds = time.monotonic() - second.started
    bench.let_go()
    if first.wait().returncode != 0 or images(bench.out) != bench.truth:
        raise RuntimeError(f'the run that was there first was disturbed:\n{first.wait().stdout}')
    report = bench.row(second)
    report.seconds = seconds
    return report


def two_participants_at_once(bench: Bench) -> Report:
    first = bench.start(struck=True, labels=['01'])
    second = bench.start(labels=['02'])
    bench.let_go()
    first.wait()
    return bench.row(second)


def out_of_memory_error(bench: Bench) -> Report:
    return bench.row(bench.start(TOY_RAISES='MemoryError'))


TOY_ONLY = ('SIGTERM, deaf step', 'MemoryError')
FAULTS: dict[str, Callable[[Bench], Report]] = {
    'killed (out of memory), one process': kill_computing,
    'worker killed once': kill_computing_workers,
    'worker killed (out of memory)': kill_computing_twice,
    'segmentation fault': crash_computing,
    'killed while planning': kill_planning,
    'MemoryError': out_of_memory_error,
    'SIGTERM (scancel, time limit)': end,
    'SIGTERM, workers': terminate_workers,
    'SIGTERM, deaf step': terminate_deaf,
    'SIGINT (Ctrl-C)': interrupt,
    'node lost (all killed)': lose_node,
    'first process killed': kill_first_process,
    'node lost, last files empty': lose_files,
    'disk full: work': full_work,
    'disk full: output': full_output,
    'disk full from the start': full_from_start,
    'quota: output': quota_output,
    'read-only work from the start': read_only_work,
    'read-only work midway': read_only_midway,
    'locks refused (NFS)': no_locks,
    'clock a day ahead, killed': clock_behind,
    'two runs on one output': two_at_once,
    'two runs, other participants': two_participants_at_once,
}


def strike(bench: Bench, fault: str) -> Report:
    """One fault, in folders of its own."""
    bench.name = re.sub(r'\W+', '-', fault)
    report = FAULTS[fault](bench)
    report.fault = fault
    return report


def table(reports: list[Report]) -> str:
    rows = [f'{"fault":38} {"code":>4} {"s to end":>8} {"again":>5} {"equal":>5}  what it says']
    for r in reports:
        said = re.sub(r'/\S*/(logs|work|out)\b', r'<\1>', r.said)
        rows.append(
            f'{r.fault:38} {r.exit_code:4d} {r.seconds:8.1f} {r.again_code:5d} '
            f'{"yes" if r.again_equal else "NO":>5}  {said}'
        )
        rows += [f'{"":38} LEFT OVER: {item}' for item in r.left_over]
    return '\n'.join(rows)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--toy', action='store_true', help='nodes that compute nothing')
    parser.add_argument('--only', nargs='+', metavar='WORD', help='faults whose name contains one of these')
    given = parser.parse_args(arguments)
    names = [n for n in FAULTS if not given.only or any(word in n for word in given.only)]
    names = [n for n in names if given.toy or n not in TOY_ONLY]
    print(
        f'{shlex.join(["faults.py", *(arguments or sys.argv[1:])])}   '
        f'{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, load '
        f'{os.getloadavg()[0]:.1f}'
    )
    with tempfile.TemporaryDirectory(prefix='gsrecon-faults-') as folder:
        bench = Bench(folder, TOY if given.toy else REAL)
        reports = []
        for name in names:
            print(f'... {name}', file=sys.stderr, flush=True)
            reports.append(strike(bench, name))
        print(table(reports))
    return 0 if all(r.again_equal and r.again_code == 0 and not r.left_over for r in reports) else 1


if __name__ == '__main__':
    sys.exit(main())
