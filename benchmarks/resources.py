"""Estimated against measured: memory and processor time of whole runs of the app, on data made on the spot.

    python benchmarks/resources.py [--cases NAME ...] [--nprocs N]

Memory is the peak of all processes together (proportional set size, sampled), time that of all processors.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.2


def run_gsrecon(*arguments) -> None:
    """Make data; quiet."""
    subprocess.run([sys.executable, '-m', 'bids_gsrecon.cli.direct', *map(str, arguments)], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


def make_harmonize(folder: Path, resolution: float) -> list[str]:
    """An isotropic T1w with thick T2w and FLAIR."""
    run_gsrecon('demo', folder, '--resolution', resolution)
    return ['--recon', 'harmonize']


def make_superres(folder: Path, resolution: float) -> list[str]:
    """The same images, the T2w and FLAIR each by itself."""
    run_gsrecon('demo', folder, '--resolution', resolution)
    return ['--recon', 'superres']


def make_svr(folder: Path, resolution: float) -> list[str]:
    """Three stacks of the T1w, slices twice as thick as pixels; masks are found."""
    run_gsrecon('demo', folder / 'truth', '--resolution', resolution)
    anat = folder / 'sub-01' / 'anat'
    anat.mkdir(parents=True)
    truth = folder / 'truth/sub-01/anat/sub-01_T1w.nii.gz'
    run_gsrecon(
        'simulate', 'stacks', truth, folder / 'moved', '--in-plane', resolution, '--thickness', 2 * resolution
    )
    for number in (1, 2, 3):
        for suffix in ('.nii.gz', '.json'):
            (folder / f'moved/stack-{number}{suffix}').rename(anat / f'sub-01_run-{number}_T2w{suffix}')
    return ['--recon', 'svr', '--output-resolution', str(resolution)]


def make_cine(folder: Path, matrix: int, n_slices: int) -> list[str]:
    """A beating heart of 20 frames."""
    target = folder / 'sourcedata' / 'sub-01' / 'cmr' / 'sub-01_cine.h5'
    target.parent.mkdir(parents=True)
    (folder / 'sub-01').mkdir()
    run_gsrecon('simulate', 'cine', target, '--matrix', matrix, matrix, '--slices', n_slices)
    return ['--recon', 'cine']


CASES = {
    'harmonize 2.5 mm': lambda folder: make_harmonize(folder, 2.5),
    'harmonize 1.5 mm': lambda folder: make_harmonize(folder, 1.5),
    'harmonize 1 mm': lambda folder: make_harmonize(folder, 1.0),
    'superres 2.5 mm': lambda folder: make_superres(folder, 2.5),
    'superres 1.5 mm': lambda folder: make_superres(folder, 1.5),
    'superres 1 mm': lambda folder: make_superres(folder, 1.0),
    'svr 3 mm': lambda folder: make_svr(folder, 3.0),
    'svr 1.5 mm': lambda folder: make_svr(folder, 1.5),
    'cine 96, 1 slice': lambda folder: make_cine(folder, 96, 1),
    'cine 192, 4 slices': lambda folder: make_cine(folder, 192, 4),
}


def tree_gb(root: psutil.Process) -> float:
    """Memory of a process and all below it; shared pages are counted once."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 1024**3


def measure(arguments: list[str]) -> tuple[float, float]:
    """Peak memory in GB and processor seconds of a run of the app."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = subprocess.Popen([sys.executable, '-m', 'bids_gsrecon', *arguments], stdout=subprocess.DEVNULL)
    process, peak = psutil.Process(started.pid), 0.0
    while started.poll() is None:
        try:
            peak = max(peak, tree_gb(process))
        except psutil.Error:
            break
        time.sleep(SAMPLE_SECONDS)
    if started.wait() != 0:
        raise SystemExit(
            f'the app failed (exit code {started.returncode}): bids_gsrecon {" ".join(arguments)}'
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return peak, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def estimate(arguments: list[str]):
    """What the app itself expects."""
    from bids_gsrecon.cli.parser import parse_args
    from bids_gsrecon.workflows.estimates import estimate_participant
    from bids_gsrecon.workflows.plan import plan_participants

    config = parse_args(arguments)
    return estimate_participant(config, plan_participants(config, {})[0])


def main() -> None:
    """Print the table."""
    from bids_gsrecon.workflows.estimates import job_memory_gb

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--nprocs', type=int, default=2)
    args = parser.parse_args()
    print(f'# {time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}, {platform.machine()}, {os.cpu_count()} cores, '
          f'Python {platform.python_version()}')  # fmt: skip
    print(f'# benchmarks/resources.py --nprocs {args.nprocs}\n')
    print('| case | largest step GB | job asks for GB | seen GB | expected CPU s | seen CPU s |')
    print('|---|---:|---:|---:|---:|---:|', flush=True)
    for name in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / 'bids'
            options = CASES[name](root)
            (root / 'dataset_description.json').write_text('{"Name": "resources", "BIDSVersion": "1.10.0"}')
            command = [str(root), f'{folder}/out', 'participant', '-w', f'{folder}/work', '--skip-bids-validation',
                       '--nprocs', str(args.nprocs), *options]  # fmt: skip
            expected = estimate(command)
            peak, seconds = measure(command)
        print(f'| {name} | {expected.memory_gb:.2f} | {job_memory_gb(expected, args.nprocs)} | {peak:.2f} | '
              f'{expected.cpu_seconds:.0f} | {seconds:.0f} |', flush=True)  # fmt: skip


if __name__ == '__main__':
    main()
