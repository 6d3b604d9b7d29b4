#!/usr/bin/env python3
"""Thick T2w + isotropic T1w -> isotropic T2w: one table of linear, cubic, the guided voxel baseline, and
`gsrecon harmonize`.

  harmonize.py --data DIR                              every pair of DIR/multicontrast, whole brains
  harmonize.py --cases sub-m12 --factors 5 --size 96 96 70
  harmonize.py --t1 A_T1w.nii.gz --t2 A_T2w.nii.gz     own pairs on one grid
  harmonize.py --demo DIR                              the data set of `gsrecon demo`, with its lesions

The thick image is simulated from the true T2w (box slabs, header origin at the slab's centre). Scores:
convention `masked` (PSNR, range = 99.5th percentile of the truth in the mask; 3D SSIM), mask = T1w > 0 and
T2w > 0 where slabs exist; nothing is aligned or rescaled. `guided` is least squares on voxels with a
Laplacian weighted by T1w similarity, at h = .05, lambda = 1e-3; `--scan-guided` tries a grid of both and
reports the one that the truth likes best (row `guided*`). Seconds are wall time; ours is the whole process,
start-up included, with its peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import linalg

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.metrics import evaluate, resample_to
from bids_gsrecon.imaging.simulate import thick_slices
from bids_gsrecon.interfaces.io import load_mask, load_volume, save_volume

OURS = 'gsrecon harmonize {reference} {target} -o {out}'
OURS_DEMO = OURS + ' --register rigid'  # the head moves between the scans of the demo
SCAN_H = (0.03, 0.05, 0.08, 0.12)
SCAN_LAMBDA = (3e-4, 1e-3, 3e-3)


def guided(
    t1w: np.ndarray, thick: np.ndarray, factor: int, axis: int, *, h=0.05, strength=1e-3
) -> np.ndarray:
    """min |slab(x) - y|^2 + strength x' L x by preconditioned CG; arrays, the fine one cropped to whole
    slabs.

    L is the 26-neighbour graph Laplacian, edge weights (exp(-(dT1)^2 / 2 h^2) + 1e-3) / distance^2 (in
    voxels).
    """
    t1w = np.moveaxis(t1w, axis, -1)
    y = np.moveaxis(thick, axis, -1).astype(np.float32)
    fine = np.ascontiguousarray(t1w[..., : y.shape[-1] * factor], dtype=np.float32)
    fine /= np.percentile(t1w[t1w > 0], 99.5)
    shape, n = fine.shape, fine.size
    strides = (shape[1] * shape[2], shape[2], 1)
    # A symmetric banded matrix: every pair of opposite neighbours is one pair of diagonals.
    bands, offsets, degree = [], [], np.zeros(shape, np.float32)
    for step in product((-1, 0, 1), repeat=3):
        if step <= (0, 0, 0):
            continue
        here = tuple(slice(max(0, -s), size - max(0, s)) for s, size in zip(step, shape))
        there = tuple(slice(max(0, s), size - max(0, -s)) for s, size in zip(step, shape))
        weight = np.zeros(shape, np.float32)
        weight[here] = (np.exp(-((fine[here] - fine[there]) ** 2) / (2 * h * h)) + 1e-3) / sum(
            s * s for s in step
        )
        degree += weight
        degree[there] += weight[here]
        offset = int(np.dot(step, strides))
        lower = weight.ravel()
        upper = np.zeros(n, np.float32)  # diagonal storage is aligned to columns
        upper[offset:] = lower[: n - offset]
        bands += [lower, upper]
        offsets += [-offset, offset]
    neighbours = sparse.dia_matrix((np.stack(bands), offsets), shape=(n, n))

    def slab(x):
        return x.reshape(-1, factor).mean(1)

    def slab_adjoint(z):
        return np.repeat(z / factor, factor)

    def normal(x):
        x = x.ravel().astype(np.float32)
        return slab_adjoint(slab(x)) + strength * (degree.ravel() * x - neighbours @ x)

    diagonal = strength * degree.ravel() + 1.0 / factor**2
    operator = linalg.LinearOperator((n, n), matvec=normal, dtype=np.float32)
    scale = linalg.LinearOperator((n, n), matvec=lambda x: x.ravel() / diagonal, dtype=np.float32)
    start = np.repeat(y.ravel(), factor)
    x, _ = linalg.cg(operator, slab_adjoint(y.ravel()), x0=start, rtol=1e-4, maxiter=200, M=scale)
    return np.moveaxis(x.reshape(shape).astype(np.float32), -1, axis)


def crop(t1w: Volume, t2w: Volume, size=None, margin: int = 4) -> tuple[Volume, Volume]:
    """Both images cut to the support of the first (plus a margin), or to a central box of ``size`` voxels."""
    index = np.argwhere(t1w.data > 0)
    low, high = index.min(0), index.max(0) + 1
    if size is None:
        low, high = low - margin, high + margin
    else:
        centre = (low + high) // 2
        low, high = centre - np.array(size) // 2, centre + np.array(size) // 2
    low, high = np.maximum(low, 0), np.minimum(high, t1w.data.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high))
    lattice = t1w.lattice.cropped(low, high)
    return Volume(t1w.data[box], lattice), Volume(t2w.data[box], lattice)


def run_ours(command: str, **paths) -> tuple[float, float, str]:
    """(wall seconds, peak memory in GB, error text or '') of a command in its own process."""
    words = [word.format(**paths) for word in shlex.split(command)]
    if words[0] == 'gsrecon':
        words = [sys.executable, '-m', 'bids_gsrecon.cli.direct', *words[1:]]
    with tempfile.TemporaryFile('w+') as log:
        start = time.perf_counter()
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        text = f'{log.read()[-1500:]}\nexit code {process.returncode}' if process.returncode else ''
    return seconds, usage.ru_maxrss / 1024**2, text


def bench_pair(name: str, t1w: Volume, t2w: Volume, factor: int, args, work: Path):
    """Rows of one simulated case."""
    thick = thick_slices(
        t2w, axis=args.axis, factor=factor, profile=args.profile, noise=args.noise, seed=args.seed
    )
    mask = (t1w.data > 0) & (t2w.data > 0)
    covered = np.zeros(mask.shape, bool)
    np.moveaxis(covered, args.axis, 0)[: thick.data.shape[args.axis] * factor] = True
    mask &= covered

    def row(method, image, seconds, **more):
        score = evaluate(Volume(image, t2w.lattice), t2w, mask)
        measured = {'psnr': score['psnr'], 'ssim': score['ssim'], 'seconds': seconds}
        return {'case': name, 'factor': factor, 'method': method, **measured, **more}

    cubic = None
    for method, order in (('linear', 1), ('cubic', 3)):
        start = time.perf_counter()
        cubic = resample_to(thick, t2w.lattice, order=order)
        yield row(method, cubic, time.perf_counter() - start)

    def embedded(image):
        whole = cubic.copy()
        whole[tuple(slice(n) for n in image.shape)] = image
        return whole

    start = time.perf_counter()
    image = guided(t1w.data, thick.data, factor, args.axis)
    yield row('guided', embedded(image), time.perf_counter() - start)
    if args.scan_guided:
        best, start = None, time.perf_counter()
        for h, strength in product(SCAN_H, SCAN_LAMBDA):
            image = guided(t1w.data, thick.data, factor, args.axis, h=h, strength=strength)
            now = row('guided*', embedded(image), 0.0, note=f'h {h:g}, lambda {strength:g}')
            best = now if best is None or now['psnr'] > best['psnr'] else best
        yield {**best, 'seconds': time.perf_counter() - start}
    if args.no_ours:
        return
    folder = work / f'{name}-x{factor}-a{args.axis}'
    reference, target, out = folder / f'{name}_T1w.nii.gz', folder / f'{name}_T2w.nii.gz', folder / 'out'
    shutil.rmtree(out, ignore_errors=True)
    save_volume(reference, t1w.data, t1w.affine)
    save_volume(target, thick.data, thick.affine)
    seconds, memory, error = run_ours(args.command or OURS, reference=reference, target=target, out=out)
    if error:
        print(error, file=sys.stderr)
        yield {'case': name, 'factor': factor, 'method': 'ours', 'failed': True}
        return
    result = load_volume(out / target.name)
    yield row('ours', resample_to(result, t2w.lattice), seconds, memory_gb=memory)


def bench_demo(root: Path, args, work: Path):
    """Rows of the demo data set: scores in the brain, and what is left of each lesion's contrast."""
    for t1w_path in sorted(root.glob('sub-*/anat/*_T1w.nii.gz')):
        subject = t1w_path.name.split('_')[0]
        truths = root / 'derivatives' / 'truth' / subject / 'anat'
        lesions = separate(load_volume(truths / f'{subject}_space-T1w_label-lesion_mask.nii.gz').data > 0.5)
        mask = load_mask(truths / f'{subject}_space-T1w_desc-brain_mask.nii.gz')
        targets = [p for p in sorted(t1w_path.parent.glob('*.nii.gz')) if p != t1w_path]
        out = work / f'{subject}-demo'
        command = (args.command or OURS_DEMO).replace(
            '{target}', ' '.join(shlex.quote(str(p)) for p in targets)
        )
        seconds, memory, error = (0.0, 0.0, '')
        if not args.no_ours:
            shutil.rmtree(out, ignore_errors=True)
            seconds, memory, error = run_ours(command, reference=t1w_path, out=out)
            if error:
                print(error, file=sys.stderr)
        for path in targets:
            suffix = path.name.split('_')[-1].split('.')[0]
            truth = load_volume(truths / f'{subject}_space-T1w_desc-truth_{suffix}.nii.gz')
            thick = load_volume(path)
            sidecar = json.loads((truths / f'{subject}_space-T1w_desc-truth_{suffix}.json').read_text())
            moved = Volume(thick.data, thick.lattice.moved(np.array(sidecar['TargetToReferenceRAS'])))
            images = {'linear': (resample_to(moved, truth.lattice, order=1), {'seconds': 0.0})}
            images['cubic'] = (resample_to(moved, truth.lattice, order=3), {'seconds': 0.0})
            if not args.no_ours and not error:
                images['ours'] = (
                    load_volume(out / path.name).data,
                    {'seconds': seconds, 'memory_gb': memory},
                )
            whole = [lesion_contrast(truth.data, part, mask) for part in lesions]
            for method, (image, more) in images.items():
                score = evaluate(Volume(image, truth.lattice), truth, mask)
                kept = [100 * lesion_contrast(image, part, mask) / w for part, w in zip(lesions, whole)]
                note = 'lesion contrast ' + ' '.join(f'{share:.0f}' for share in kept) + ' %'
                measured = {'psnr': score['psnr'], 'ssim': score['ssim'], 'note': note}
                yield {'case': f'{subject} {suffix}', 'factor': 4, 'method': method, **measured, **more}


def separate(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask, the largest first."""
    labels, n = ndimage.label(mask)
    parts = [labels == i + 1 for i in range(n)]
    return sorted(parts, key=lambda part: -int(part.sum()))


def lesion_contrast(image: np.ndarray, lesion: np.ndarray, mask: np.ndarray) -> float:
    """Mean inside the lesions minus mean in a shell two to four voxels around them."""
    shell = (
        ndimage.binary_dilation(lesion, iterations=4) & ~ndimage.binary_dilation(lesion, iterations=2) & mask
    )
    return float(image[lesion].mean() - image[shell].mean())


def find_pairs(args) -> list[tuple[str, Path, Path]]:
    if args.t1:
        return [
            (Path(a).name.split('_T1w')[0].split('.')[0], Path(a), Path(b)) for a, b in zip(args.t1, args.t2)
        ]
    found = []
    for t1w in sorted((args.data / 'multicontrast').glob('sub-*/anat/*_T1w.nii.gz')) if args.data else []:
        name = t1w.name.split('_')[0]
        if not args.cases or name in args.cases:
            found.append((name, t1w, t1w.with_name(t1w.name.replace('_T1w', '_T2w'))))
    return found


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get('GSRECON_TEST_DATA')
    parser.add_argument(
        '--data', type=Path, default=Path(data) if data else None, help='default: $GSRECON_TEST_DATA'
    )
    parser.add_argument('--cases', nargs='+', help='names under DATA/multicontrast')
    parser.add_argument('--t1', nargs='+', help='own isotropic T1w images')
    parser.add_argument('--t2', nargs='+', help='their true T2w on the same grids')
    parser.add_argument('--demo', type=Path, help='a data set of `gsrecon demo`')
    parser.add_argument('--factors', type=int, nargs='+', default=[3, 5, 7])
    parser.add_argument('--axis', type=int, choices=(0, 1, 2), default=2)
    parser.add_argument('--size', type=int, nargs=3, help='central crop, voxels (default: the brain)')
    parser.add_argument('--profile', choices=('box', 'gaussian'), default='box')
    parser.add_argument(
        '--noise', type=float, default=0.0, help='Rician noise, fraction of the 99th percentile'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--scan-guided', action='store_true', help='also the best of a grid of h and lambda')
    parser.add_argument(
        '--command', help=f'the method under test (default: {OURS}; for --demo with --register rigid)'
    )
    parser.add_argument('--no-ours', action='store_true', help='baselines only')
    parser.add_argument('--work', type=Path, help='keep inputs and results here')
    parser.add_argument('--json', type=Path, help='append the rows to this file')
    return parser


def main(argv=None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if bool(args.t1) != bool(args.t2) or len(args.t1 or []) != len(args.t2 or []):
        parser.error('--t1 and --t2 need the same number of files')
    pairs = [] if args.demo else find_pairs(args)
    if not pairs and not args.demo:
        parser.error('no pairs: give --data, --t1 and --t2, or --demo')
    moment = datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
    print(f'# {moment}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}')
    print('# ' + shlex.join(['benchmarks/harmonize.py', *(sys.argv[1:] if argv is None else argv)]))
    print(
        f'{"case":16s} {"x":>2s} {"method":8s} {"PSNR dB":>8s} {"SSIM":>7s} {"seconds":>8s} {"peak GB":>8s}'
    )
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        for row in all_rows(pairs, args, work):
            failed |= bool(row.get('failed'))
            print(format_row(row), flush=True)
            if args.json:
                with args.json.open('a') as file:
                    file.write(json.dumps(row) + '\n')
    return int(failed)


def all_rows(pairs, args, work: Path):
    if args.demo:
        yield from bench_demo(args.demo, args, work)
    for name, t1w_path, t2w_path in pairs:
        t1w, t2w = crop(load_volume(t1w_path), load_volume(t2w_path), args.size)
        for factor in args.factors:
            yield from bench_pair(name, t1w, t2w, factor, args, work)


def format_row(row: dict) -> str:
    head = f'{row["case"]:16s} {row["factor"]:2d} {row["method"]:8s} '
    if row.get('failed'):
        return head + 'failed'
    note = row.get('note', '')
    memory = f'{row["memory_gb"]:8.2f}' if 'memory_gb' in row else ' ' * 8
    return head + f'{row["psnr"]:8.3f} {row["ssim"]:7.4f} {row["seconds"]:8.1f} {memory}  {note}'.rstrip()


if __name__ == '__main__':
    sys.exit(main())
