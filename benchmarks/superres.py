#!/usr/bin/env python3
"""One coarse or thick-slice scan -> the isotropic image it came from: baselines, `gsrecon superres`, and the
published model (`physics`).

  superres.py --data DIR                                 every case and protocol, cropped to the object
  superres.py --data DIR --cases sub-m12 --protocols cell-x2 slab-x5 --crop 96
  superres.py --case A_T2w.nii.gz B_FLAIR.nii.gz         own images, isotropic or nearly so
  superres.py --data DIR --cases sub-m06 --scan          the development case over a grid of strengths

Protocols, all with true headers and without noise: ``cell-xN`` means over N^3 voxels; ``trilinear-xN`` the
decimation of the physics-driven paper (x2 is the same as cell-x2, x3 every third voxel, x4 the mean of the
central 2^3 of 4^3); ``slab-xN`` box slices N voxels thick along one axis. Every method is told the
exact voxel profile (but see `SOFTENED`).

Scores, each against the image on its own grid, nothing aligned or rescaled: `masked` (PSNR, range = 99.5th
percentile of the truth in the mask; 3D SSIM; mask = the object's support in the truth, or --mask) and
`volume` (the whole grid scaled to [0, 1]; the grid is the object's box plus a margin, or with --whole the
file's). Strengths of the baselines were chosen on sub-m06 T2w alone, one per protocol (`STRENGTHS`; --scan
shows the grid). Seconds are wall time in this process after a warm-up on a small image; peak GB is the
resident memory of the whole process while the method ran.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # run as a script or loaded by a test
import superres_baselines as baselines

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.metrics import evaluate
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.sampling import make_sampling
from bids_gsrecon.imaging.simulate import coarse_voxels, thick_slices
from bids_gsrecon.imaging.support import find_support
from bids_gsrecon.interfaces.io import load_mask, load_volume

DATA_CASES = {
    'sub-m12': 'multicontrast/sub-m12/anat/sub-m12_T2w.nii.gz',
    'niimath': 'single/niimath_T1w.nii.gz',
    'ms07': 'single/ms07_FLAIR.nii.gz',
    'fetal-0009': 'fetal-truth/sub-0009_T2w.nii.gz',
    'sub-m06': 'multicontrast/sub-m06/anat/sub-m06_T2w.nii.gz',
}
PROTOCOLS = ('cell-x2', 'cell-x3', 'cell-x4', 'trilinear-x2', 'trilinear-x3', 'trilinear-x4',
             'slab-x3', 'slab-x5')  # fmt: skip
BASELINES = ('linear', 'cubic', 'cubic+', 'tikhonov', 'tv', 'nlm')
# Ours: the default, the published model, and the default without one of its options.
OURS = {
    'gsrecon': {},
    'physics': {'model': 'physics'},
    'no-learning': {'scale_learning': False, 'in_plane_learning': False},
    'no-similarity': {'self_similarity': False},
    'no-detail': {'detail_gaussians': False},
}
METHODS = (*BASELINES, 'gsrecon', 'physics')
ABLATIONS = ('no-learning', 'no-similarity', 'no-detail', 'oracle')
# Best masked PSNR of --scan on sub-m06 T2w.
STRENGTHS = {
    'tikhonov': dict.fromkeys(PROTOCOLS, 1e-4)
    | {'slab-x5': 1e-3, 'trilinear-x3': 3e-2, 'trilinear-x4': 3e-3},
    'tv': dict.fromkeys(PROTOCOLS, 3e-5) | {'trilinear-x3': 1e-3},
    'nlm': dict.fromkeys(PROTOCOLS, 1.0),
}
# Decimated points hardly bind the least-squares baselines, whose optimum then is a field of spikes: these
# are told a box of two thirds of a coarse voxel, which serves them best (at x3 on sub-m06 +1.1 dB and +2.8 dB).
SOFTENED = {'tikhonov': ('trilinear-x3', 'trilinear-x4'), 'tv': ('trilinear-x3', 'trilinear-x4')}
SCAN = {
    'tikhonov': (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    'tv': (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    'nlm': (0.5, 0.7, 1.0, 1.4, 2.0),
}


@dataclass(frozen=True)
class Problem:
    """What a method is given, and the truth on the grid it has to return."""

    protocol: str
    coarse: Volume
    profiles: tuple[SliceProfile, SliceProfile, SliceProfile]
    truth: Volume
    mask: np.ndarray


def degrade(truth: Volume, protocol: str, axis: int = 2):
    """(coarse image, its three profiles, the truth cut to whole coarse voxels)."""
    kind, factor = protocol.split('-x')
    factor = int(factor)
    factors = np.where(np.arange(3) == axis, factor, 1) if kind == 'slab' else np.full(3, factor)
    shape = np.array(truth.data.shape) // factors * factors
    truth = Volume(truth.data[tuple(slice(n) for n in shape)], truth.lattice.cropped((0, 0, 0), shape))
    if kind == 'slab':
        coarse = thick_slices(truth, axis=axis, factor=factor)
    else:
        coarse = coarse_voxels(truth, factor, kind)
    voxels = truth.lattice.voxel_sizes_mm
    if kind != 'trilinear':
        widths = factors * voxels
    elif factor % 2:  # the centre of a coarse voxel is that of a fine one
        widths = None
    else:  # it lies between two
        widths = 2 * voxels
    if widths is None:
        profiles = tuple(SliceProfile('point', float(voxels[a]), a) for a in range(3))
    else:
        profiles = tuple(SliceProfile('box', float(widths[a]), a) for a in range(3))
    return coarse, profiles, truth


def solve(method: str, problem: Problem, *, strength: float | None = None, seed: int = 0) -> np.ndarray:
    """The method's image on the truth's grid."""
    if method in OURS:
        from bids_gsrecon.recon.superres import SuperresOptions, superres

        options = SuperresOptions(**OURS[method])
        fine = problem.truth.lattice
        return superres(problem.coarse, fine, profiles=problem.profiles, options=options, seed=seed).image
    if method == 'oracle':
        return oracle(problem)
    image = solve_baseline(method, problem, strength)
    # Magnitude images are not negative: worth up to .06 dB (volume) to those that overshoot.
    return np.maximum(image, 0) if problem.coarse.data.min() >= 0 else image


def oracle(problem: Problem) -> np.ndarray:
    """The published model fitted to the truth itself: what so many Gaussians can hold, not a reconstruction."""
    from bids_gsrecon.imaging.render import render
    from bids_gsrecon.recon.geometry import optimise_geometry, squared_error_gradient
    from bids_gsrecon.recon.superres.physics import gaussian_per_voxel

    truth, coarse = problem.truth, problem.coarse
    unit = np.float32(np.percentile(truth.data[truth.data > 0], 99.5))
    region = coarse.data > 0.01 * unit
    field = gaussian_per_voxel(coarse.data / unit, coarse.lattice, region, 'image')
    weights = np.ones(truth.data.shape, np.float32)
    gradient = squared_error_gradient(truth.data / unit, weights, len(field))
    largest = 4.0 * float(coarse.lattice.voxel_sizes_mm.max())
    field = optimise_geometry(
        field, truth.lattice, gradient, n_iterations=200, learn_weights=True, max_scale_mm=largest
    )
    return render([field], truth.lattice) * unit


def solve_baseline(method: str, problem: Problem, strength: float | None) -> np.ndarray:
    coarse, fine = problem.coarse, problem.truth.lattice
    if method in ('linear', 'cubic'):
        return baselines.spline(coarse, fine, 1 if method == 'linear' else 3)
    profiles = problem.profiles
    if problem.protocol in SOFTENED.get(method, ()):
        sizes = coarse.lattice.voxel_sizes_mm
        profiles = [SliceProfile('box', float(size) * 2 / 3, axis) for axis, size in enumerate(sizes)]
    sampling = make_sampling(fine, coarse.lattice, profiles)
    if method == 'cubic+':
        return baselines.consistent_cubic(coarse, fine, sampling)
    if strength is None:
        strength = STRENGTHS[method][problem.protocol]
    if method == 'tikhonov':
        return baselines.tikhonov(coarse, fine, sampling, strength)
    if method == 'tv':
        return baselines.total_variation(coarse, fine, sampling, strength)
    return baselines.nonlocal_upsampling(coarse, fine, sampling, strength=strength)


def score(image: np.ndarray, problem: Problem) -> dict:
    """Both conventions."""
    row = {}
    for convention in ('masked', 'volume'):
        found = evaluate(
            Volume(image, problem.truth.lattice), problem.truth, problem.mask, convention=convention
        )
        row |= {f'psnr_{convention}': found['psnr'], f'ssim_{convention}': found['ssim']}
    return row


def measured(method: str, problem: Problem, **options) -> dict:
    """Scores, seconds and peak memory of one method, or that it failed."""
    watch = reset_peak()
    start = time.perf_counter()
    try:
        image = solve(method, problem, **options)
    except Exception:
        traceback.print_exc()
        return {'failed': True}
    seconds = time.perf_counter() - start
    memory = {'memory_gb': read_peak()} if watch else {}
    return {**score(image, problem), 'seconds': seconds, **memory}


def reset_peak() -> bool:
    """Start a new record of this process's peak resident memory; False where the system cannot."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return False
    return True


def read_peak() -> float:
    """Peak resident memory since `reset_peak`, GB."""
    status = Path('/proc/self/status').read_text()
    line = next(line for line in status.splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) / 1024**2


def cut_out(volume: Volume, mask: np.ndarray, size: int | None, margin: int = 6):
    """Image and mask cut to the mask's box plus a margin, or to ``size`` voxels around its centre."""
    index = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    low, high = np.array([i[0] for i in index]), np.array([i[-1] + 1 for i in index])
    if size is None:
        low, high = low - margin, high + margin
    else:
        low = (low + high) // 2 - size // 2
        low = np.clip(low, 0, np.maximum(np.array(mask.shape) - size, 0))
        high = low + size
    low, high = np.maximum(low, 0), np.minimum(high, mask.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high))
    return Volume(volume.data[box].copy(), volume.lattice.cropped(low, high)), mask[box]


def find_cases(args) -> list[tuple[str, Path]]:
    if args.case:
        return [(path.name.split('.')[0], path) for path in args.case]
    found = []
    for name, place in DATA_CASES.items() if args.data else ():
        if args.cases and name not in args.cases:
            continue
        if (args.data / place).exists():
            found.append((name, args.data / place))
        else:
            print(f'# {name}: left out, {place} is not in the data folder')
    return found


def all_rows(cases, args):
    """A row per case, protocol and method."""
    for name, path in cases:
        whole = load_volume(path)
        mask = load_mask(args.mask) if args.mask else find_support(whole)[0]
        truth, mask = (whole, mask) if args.whole else cut_out(whole, mask, args.crop)
        for protocol in args.protocols:
            coarse, profiles, fine = degrade(truth, protocol, args.axis)
            inside = mask[tuple(slice(n) for n in fine.data.shape)]
            problem = Problem(protocol, coarse, profiles, fine, inside)
            head = {'case': name, 'protocol': protocol}
            if args.scan:
                for method in args.methods:
                    for strength in SCAN.get(method, ()):
                        row = measured(method, problem, strength=strength)
                        yield {**head, 'method': f'{method} {strength:g}', **row}
                continue
            for method in args.methods:
                yield {**head, 'method': method, **measured(method, problem, seed=args.seed)}


def warm_up(methods) -> None:
    """Compile and load what the methods use, so that it is not timed."""
    x = np.sin(np.arange(24) / 3)
    data = (20 + x[:, None, None] + x[:, None] * x).astype(np.float32)
    coarse, profiles, truth = degrade(Volume.from_affine(data, np.eye(4)), 'cell-x2')
    problem = Problem('cell-x2', coarse, profiles, truth, np.ones(data.shape, bool))
    for method in methods:
        with contextlib.suppress(Exception):  # its own row will say so
            solve(method, problem)


HEADER = (
    '| protocol | case | method | masked PSNR dB | SSIM | volume PSNR dB | SSIM | seconds | peak GB |\n'
    '|---|---|---|---:|---:|---:|---:|---:|---:|'
)


def format_row(row: dict) -> str:
    if row.get('failed'):
        return f'| {row["protocol"]} | {row["case"]} | {row["method"]} | failed |' + ' |' * 5
    memory = f'{row["memory_gb"]:.2f}' if 'memory_gb' in row else ''
    return (
        f'| {row["protocol"]} | {row["case"]} | {row["method"]} | {row["psnr_masked"]:.2f} '
        f'| {row["ssim_masked"]:.4f} | {row["psnr_volume"]:.2f} | {row["ssim_volume"]:.4f} '
        f'| {row["seconds"]:.1f} | {memory} |'
    )


def summary(rows, subject: str = 'gsrecon') -> list[str]:
    """Lines of a table: ``subject`` minus every other method, dB, masked / volume."""
    rows = [row for row in rows if not row.get('failed')]
    others = [m for m in (*METHODS, *ABLATIONS) if m != subject and any(r['method'] == m for r in rows)]
    lines = []
    for key, group in groupby(rows, key=lambda r: (r['protocol'], r['case'])):
        by_method = {row['method']: row for row in group}
        if subject not in by_method:
            continue
        ours = by_method[subject]
        cells = [
            ' / '.join(f'{ours[f"psnr_{c}"] - by_method[m][f"psnr_{c}"]:+.2f}' for c in ('masked', 'volume'))
            if m in by_method
            else ''
            for m in others
        ]
        lines.append(f'| {key[0]} | {key[1]} | ' + ' | '.join(cells) + ' |')
    if not lines:
        return []
    return [
        f'PSNR of {subject} minus that of each method, dB, masked / volume:',
        '',
        '| protocol | case | ' + ' | '.join(others) + ' |',
        '|---|---|' + '---:|' * len(others),
        *lines,
    ]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get('GSRECON_TEST_DATA')
    parser.add_argument(
        '--data', type=Path, default=Path(data) if data else None, help='default: $GSRECON_TEST_DATA'
    )
    parser.add_argument('--cases', nargs='+', choices=DATA_CASES, help='some of those in the data folder')
    parser.add_argument('--case', type=Path, nargs='+', help='own images instead')
    parser.add_argument('--mask', type=Path, help='mask of the only --case, on its grid')
    parser.add_argument('--protocols', nargs='+', choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument('--methods', nargs='+', choices=(*METHODS, *ABLATIONS), default=list(METHODS))
    parser.add_argument('--axis', type=int, choices=(0, 1, 2), default=2, help='slice axis of slab')
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument('--crop', type=int, help='this many voxels around the centre of the object')
    extent.add_argument('--whole', action='store_true', help='the grid of the file, air and all')
    parser.add_argument('--scan', action='store_true', help='the baselines over a grid of strengths')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', type=Path, help='append the rows to this file')
    return parser


def main(argv=None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.mask and len(args.case or []) != 1:
        parser.error('--mask goes with one --case')
    moment = datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
    print(f'# {moment}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}')
    print('# ' + shlex.join(['benchmarks/superres.py', *(sys.argv[1:] if argv is None else argv)]))
    cases = find_cases(args)
    if not cases:
        parser.error('no images: give --data or --case')
    if args.scan:
        args.methods = [m for m in args.methods if m in SCAN]
    warm_up(args.methods)
    print('\n' + HEADER)
    rows = []
    for row in all_rows(cases, args):
        rows.append(row)
        print(format_row(row), flush=True)
        if args.json:
            with args.json.open('a') as file:
                file.write(json.dumps(row) + '\n')
    lines = [] if args.scan else summary(rows)
    if lines:
        print('\n' + '\n'.join(lines))
    return int(any(row.get('failed') for row in rows))


if __name__ == '__main__':
    sys.exit(main())
