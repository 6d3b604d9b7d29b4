#!/usr/bin/env python3
"""Moving stacks of thick slices -> volume and slice poses: simulations with known truth, ablations, and real stacks
by leave-one-stack-out prediction.

  svr.py --data DIR                            the table: fetal truth, four levels of motion, 3 and 6 stacks, voids
  svr.py --data DIR --ablations                what each part is worth, on one case
  svr.py --data DIR --displaced                whole stacks far away: who finds back
  svr.py --data DIR --wrong                    wrong masks, wrong order of acquisition, box profile, jumps
  svr.py --data DIR --real                     real stacks: every stack predicted from the others
  svr.py --data DIR --speed                    the whole command on one thread and on all cores: on a quiet machine
  svr.py --truth A_T1w.nii.gz --mask M.nii.gz --resolution 1   another truth

PSNR (range: maximum of the truth in the mask), SSIM and NCC in the true mask after ONE rigid motion, the one
that brings the estimated slice poses nearest to the true ones (least sum of distances), and one gain. TRE:
mean distance (mm) of the masks' points from their true places after that motion. Seconds are CPU seconds of
the method in this process, after a warm-up. `mean` is the mean of the stacks as the scanner placed them. The
held-out score of --real is the correlation, in the mask, of each slice with a volume made of the other
stacks; only the pose of that slice is fitted; the mean over slices, and the mean weighted by their pixels
(slices at the edge of the anatomy have few). `own slices seen`: the same score with the slice among the data,
as predicted at the end of the fit: a bound from above.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from bids_gsrecon.gpu import get_backend
from bids_gsrecon.imaging.foreground import dilated, eroded
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.metrics import ncc, psnr, resample_to, ssim
from bids_gsrecon.imaging.resample import resample
from bids_gsrecon.imaging.simulate_stacks import SimulatedStack, moving_stacks
from bids_gsrecon.imaging.stacks import SliceStack
from bids_gsrecon.interfaces.io import load_mask, load_volume, save_volume
from bids_gsrecon.recon.svr.method import svr
from bids_gsrecon.recon.svr.motion import Frame, mean_motion, neighbour_means
from bids_gsrecon.recon.svr.pixels import collect_pixels
from bids_gsrecon.recon.svr.poses import PoseProblem
from bids_gsrecon.recon.svr.shapes import NARROW_SIGMA
from bids_gsrecon.recon.svr.types import SvrOptions
from bids_gsrecon.recon.svr.view import GRID_SIGMA

FETAL_TRUTH = 'fetal-truth/sub-0009_T2w.nii.gz'
REAL = ('fetal/sub-01/anat', 'fetal/derivatives/masks/sub-01/anat')
MOTIONS = {
    'none': {'rotation_deg': 0.0, 'translation_mm': 0.0},
    'small': {'rotation_deg': 3.0, 'translation_mm': 1.2},
    'large': {'rotation_deg': 8.0, 'translation_mm': 5.0},
    'peaks': {'rotation_deg': 22.0, 'translation_mm': 12.0},  # 30 degrees and 16 mm at their largest
    'jumps': {'rotation_deg': 30.0, 'translation_mm': 16.0, 'motion': 'jerks'},
}
METHODS = {
    'still': {'stack_motion': False, 'slice_motion': False},
    'stacks only': {'slice_motion': False},
    'gsrecon': {},
}
ABLATIONS = {
    'no point spread': {'point_spread': False},
    'no robust weights': {'robust': False},
    'no slice bias': {'slice_bias': False},
    'no joint steps': {'joint_steps': 0},
    'no stack motion': {'stack_motion': False},
    'round Gaussians only': {'anisotropic': False},
    'no self-similarity': {'self_similarity': False},
    'neural residual': {'residual_field': True},
}


class Problem:
    """Simulated stacks and the truth that they are judged by.

    ``true`` holds, per stack, (n_slices, 4, 4) world motions from where the scanner believes a slice is to the truth.
    """

    def __init__(
        self, name: str, truth: Volume, mask: np.ndarray, simulated: list[SimulatedStack], resolution
    ):
        self.name, self.truth, self.mask, self.resolution = name, truth, mask, resolution
        self.stacks = [s.stack for s in simulated]
        self.true = [s.poses for s in simulated]

    def score(self, image: np.ndarray, lattice: Lattice, stacks, poses) -> dict:
        """Of a volume and the poses of all slices with a mask."""
        pixels = collect_pixels(stacks)
        pixels = pixels.selected(pixels.in_mask)
        true = np.stack([self.true[s][k] for s, k in zip(pixels.stack_of, pixels.index)])
        motion, error = nearest(pixels.placed(poses), pixels.placed(true))
        moved = Volume(image, Lattice(lattice.shape, motion @ lattice.affine))
        x, t = resample_to(moved, self.truth.lattice), self.truth.data
        x = x * float((x[self.mask] @ t[self.mask]) / max(float(x[self.mask] @ x[self.mask]), 1e-12))
        x, t = np.where(self.mask, x, 0), np.where(self.mask, t, 0)
        peak = float(t.max())
        return {
            'psnr': psnr(x, t, self.mask, peak=peak),
            'ssim': ssim(x, t, self.mask, peak=peak),
            'ncc': ncc(x, t, self.mask),
            'tre': float(error.mean()),
            'p95': float(np.percentile(error, 95)),
        }

    def run(self, method: str, stacks=None, **options) -> dict:
        stacks = stacks or self.stacks
        start = time.process_time()
        result = reconstruct(stacks, self.resolution, options)
        cpu = time.process_time() - start
        row = self.score(result.image, result.lattice, stacks, result.poses)
        excluded = int(result.slices.excluded.sum())
        return {'case': self.name, 'method': method, **row, 'cpu': cpu, 'excluded': excluded}

    def mean(self) -> dict:
        """Linear interpolation of every stack, averaged where it is."""
        lattice = self.truth.lattice
        total, count = np.zeros(lattice.shape), np.zeros(lattice.shape)
        for stack in self.stacks:
            index = stack.lattice.world_to_voxel @ lattice.affine
            for target, source in ((total, stack.data * stack.mask), (count, stack.mask.astype(np.float32))):
                target += resample(source, index, lattice.shape, order=1)
        image = (total / np.maximum(count, 1e-3)).astype(np.float32)
        still = np.tile(np.eye(4), (collect_pixels(self.stacks).n_slices, 1, 1))
        row = self.score(image, lattice, self.stacks, still)
        return {'case': self.name, 'method': 'mean', **row, 'cpu': 0.0, 'excluded': 0}


def nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rigid motion (4, 4) of points (N, 3) of the least sum of distances to others, and the distances (N,).

    Not the sum of squares: a few slices far away would move the volume that all others made.
    """
    weights = np.ones(len(a))
    for _ in range(20):
        centres = [np.average(points, axis=0, weights=weights) for points in (a, b)]
        turn, _ = Rotation.align_vectors(b - centres[1], a - centres[0], weights=weights)
        motion = np.eye(4)
        motion[:3, :3] = turn.as_matrix()
        motion[:3, 3] = centres[1] - motion[:3, :3] @ centres[0]
        error = np.linalg.norm(a @ motion[:3, :3].T + motion[:3, 3] - b, axis=1)
        weights = 1.0 / np.maximum(error, 0.01)
    return motion, error


def reconstruct(stacks, resolution_mm: float, options=()):
    """On one thread: its CPU seconds are those of the work."""
    return svr(stacks, options=SvrOptions(resolution_mm=resolution_mm, n_threads=1, **dict(options)))


def make(args, level: str, *, n_stacks=3, voids=0.0, seed=7, **more) -> Problem:
    truth, mask = load_truth(args)
    options = {
        'in_plane_mm': args.in_plane, 'thickness_mm': args.thickness, 'void_share': voids, 'seed': seed,
        **MOTIONS[level], **more,
    }  # fmt: skip
    simulated = moving_stacks(truth, mask, n_stacks=n_stacks, **options)
    name = f'{level}, {n_stacks} stacks' + (', voids' if voids else '')
    return Problem(name, truth, mask, simulated, args.resolution)


def load_truth(args) -> tuple[Volume, np.ndarray]:
    """The truth on a grid of its own, cut to its mask."""
    path = Path(args.truth) if args.truth else Path(args.data) / FETAL_TRUTH
    volume = load_volume(path)
    mask = load_mask(args.mask, volume.lattice) if args.mask else volume.data > 0
    mask = np.asarray(getattr(mask, 'data', mask)) > 0
    where = np.argwhere(mask)
    low, high = np.maximum(where.min(0) - 4, 0), np.minimum(where.max(0) + 5, mask.shape)
    part = tuple(slice(a, b) for a, b in zip(low, high))
    return Volume(volume.data[part], volume.lattice.cropped(low, high)), mask[part]


def table(args):
    for n_stacks in args.stacks:
        for motion in args.motions:
            for voids in (0.0, 0.1):
                for seed in args.seeds:
                    problem = make(args, motion, n_stacks=n_stacks, voids=voids, seed=seed)
                    problem.name += f', seed {seed}' if len(args.seeds) > 1 else ''
                    yield problem.mean()
                    for method in args.methods:
                        yield problem.run(method, **METHODS[method])


def ablations(args):
    for motion in ('small', 'large'):
        problem = make(args, motion, voids=0.1, seed=8)
        for method, options in {'gsrecon': {}, **ABLATIONS}.items():
            yield problem.run(method, **options)
    problem = make(args, 'small', voids=0.05, seed=11, bias=0.3)
    problem.name += ', bias 30 %'
    for method in ('gsrecon', 'no slice bias'):
        yield problem.run(method, **ABLATIONS.get(method, {}))


def displaced(args):
    """One stack, or two, away as a whole."""
    for degrees, mm in ((30.0, 12.0), (60.0, 5.0), (90.0, 5.0)):
        for n_away in (1, 2):
            problem = make(args, 'small', seed=9)
            pixels = collect_pixels(problem.stacks)
            frame = Frame.around(pixels.points_mm[pixels.in_mask])
            for number in range(1, 1 + n_away):
                turn = np.radians(degrees) * frame.arm_mm * np.eye(3)[number % 3]
                away = frame.motions(np.array([*turn, 0, mm * (-1) ** number, 0]))[0]
                stack = problem.stacks[number]
                lattice = replace(stack.lattice, affine=np.linalg.inv(away) @ stack.lattice.affine)
                problem.stacks[number] = replace(stack, lattice=lattice)
                problem.true[number] = problem.true[number] @ away
            problem.name = f'{degrees:g} deg + {mm:g} mm, {n_away} of 3'
            yield problem.run('gsrecon')


def wrong(args):
    """What users get wrong, and what simulations usually get right."""
    problem = make(args, 'small', voids=0.05, seed=10)
    yield problem.run('as it is')
    for name, change in {
        'masks eroded 2 mm': lambda s: _grown(s, -2.0),
        'masks dilated 3 mm': lambda s: _grown(s, 3.0),
        'masks shifted 5 mm': lambda s: replace(s, mask=_shifted(s, 5.0)),
        'order wrong': lambda s: replace(s, order=tuple(range(s.data.shape[2]))),
    }.items():
        yield problem.run(name, [change(s) for s in problem.stacks])
    for name, more in {'box profile': {'profile': 'box'}, 'independent motion': {'motion': 'iid'}}.items():
        changed = make(args, 'small', voids=0.05, seed=10, **more)
        told_nothing = [replace(s, profile='gaussian') for s in changed.stacks]
        yield changed.run(name, told_nothing)


def _grown(stack: SliceStack, mm: float) -> SliceStack:
    change = dilated if mm > 0 else eroded
    return replace(stack, mask=change(stack.mask, stack.lattice, abs(mm)))


def _shifted(stack: SliceStack, mm: float) -> np.ndarray:
    return np.roll(stack.mask, round(mm / stack.lattice.voxel_sizes_mm[0]), axis=0)


def real(args):
    """Every real stack predicted from the others."""
    stacks = load_real(args)
    start = time.process_time()
    whole = reconstruct(stacks, args.resolution)
    yield {'case': 'all stacks', 'method': 'gsrecon', 'cpu': time.process_time() - start}
    yield {'case': 'all slices', 'method': 'own slices seen', **_held(*seen(stacks, whole)), 'cpu': 0.0}
    for method, options in {'stacks only': {'slice_motion': False}, 'gsrecon': {}}.items():
        all_scores, all_sizes = [], []
        for number in range(len(stacks)):
            start = time.process_time()
            scores, sizes = held_out(stacks, number, args.resolution, whole, options)
            cpu = time.process_time() - start
            case = f'stack {number + 1} held out'
            yield {'case': case, 'method': method, **_held(scores, sizes), 'cpu': cpu}
            all_scores.append(scores)
            all_sizes.append(sizes)
        together = _held(np.concatenate(all_scores), np.concatenate(all_sizes))
        yield {'case': 'all slices', 'method': method, **together, 'cpu': 0.0}


def _held(scores: np.ndarray, sizes: np.ndarray) -> dict:
    return {'held': float(scores.mean()), 'held_pixels': float(np.average(scores, weights=sizes))}


def seen(stacks, whole) -> tuple[np.ndarray, np.ndarray]:
    """(slices,) correlations of all slices with what the volume made of them shows there, and their pixels."""
    scores, sizes = [], []
    for stack, simulated in zip(stacks, whole.predicted):
        inside = stack.mask & np.isfinite(simulated)
        for k in np.flatnonzero(inside.sum((0, 1)) > 2):
            part = inside[:, :, k]
            scores.append(np.corrcoef(stack.data[part, k], simulated[part, k])[0, 1])
            sizes.append(part.sum())
    return np.nan_to_num(np.array(scores)), np.array(sizes)


def held_out(stacks, number: int, resolution: float, whole, options) -> tuple[np.ndarray, np.ndarray]:
    """(slices,) correlations of a stack's slices with a volume made without it, and their pixels in the mask."""
    others = [s for n, s in enumerate(stacks) if n != number]
    result = reconstruct(others, resolution, options)
    pixels = collect_pixels([stacks[number]])
    frame = Frame.around(pixels.points_mm[pixels.in_mask])
    # Start from the poses of all stacks together, brought to the frame of this volume.
    kept = whole.slices.stack != number
    shift = result.poses @ np.linalg.inv(whole.poses[kept])
    found = ~(result.slices.excluded | whole.slices.excluded[kept])
    start = mean_motion(shift, found + 1e-9, frame.centre_mm)
    poses = start @ whole.poses[~kept]
    amplitudes = np.zeros(result.lattice.shape, np.float32)
    where = np.rint(result.lattice.to_index(result.field.means_mm)).astype(int)
    amplitudes[tuple(where.T)] = result.field.amplitudes[:, 0]
    own = pixels.selected(pixels.in_mask)
    sigma = NARROW_SIGMA if SvrOptions(**options).anisotropic else GRID_SIGMA
    problem = PoseProblem(own, result.lattice, [amplitudes], frame, get_backend('cpu'), sigma)
    # Slices differ in brightness by their gains, which have the mean one: the volume in the units of the stack.
    predicted = problem.predict(poses)
    amplitudes *= float(predicted @ own.values) / float(predicted @ predicted)
    each = np.arange(pixels.n_slices)
    poses, least = problem.refine(poses, each, n_steps=10)
    # A slice at the edge may start too far off: also from where its neighbours in time are.
    size = pixels.n_masked + 1e-9
    means = neighbour_means(frame.parameters(poses), pixels.stack_of, pixels.rank, size)
    others, cost = problem.refine(frame.motions(means), each, n_steps=10)
    poses = np.where((cost < least)[:, None, None], others, poses)
    predicted = problem.predict(poses)
    parts = [slice(*ends) for ends in zip(own.starts[:-1], own.starts[1:]) if ends[1] - ends[0] > 2]
    scores = [np.corrcoef(own.values[part], predicted[part])[0, 1] for part in parts]
    return np.nan_to_num(np.array(scores)), np.array([part.stop - part.start for part in parts])


def load_real(args) -> list[SliceStack]:
    root = Path(args.data)
    stacks = []
    for path in sorted((root / REAL[0]).glob('*_T2w.nii.gz')):
        (mask,) = (root / REAL[1]).glob(path.name.replace('_T2w.nii.gz', '*mask.nii.gz'))
        volume, inside = load_volume(path), load_volume(mask).data > 0
        axis = volume.lattice.coarsest_axis
        stacks.append(
            SliceStack.along(
                volume.data, volume.lattice, inside, axis, float(volume.lattice.voxel_sizes_mm[axis])
            )
        )
    return stacks


def speed(args):
    """The whole command: CPU and wall seconds on one thread, on all cores, and of two at once on one thread each
    (what work without any serial part would gain from a second core of this machine: twice the time of one alone
    over theirs)."""
    problem = make(args, 'small')
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for n, stack in enumerate(problem.stacks):
            for what, data in (('stack', stack.data), ('mask', stack.mask.astype(np.uint8))):
                names.append(f'{folder}/{what}-{n}.nii.gz')
                save_volume(names[-1], data, stack.lattice.affine)
        command = [
            sys.executable, '-m', 'bids_gsrecon.cli.direct', 'svr', *names[::2], '--masks', *names[1::2],
            '--resolution', str(args.resolution), '--thickness', str(args.thickness),
        ]  # fmt: skip
        walls = {}
        for turn in range(TURNS + 1):  # the first compiles and fills the caches
            for threads, at_once in ((1, 1), (os.cpu_count(), 1), (1, 2)):
                before, start = _children_cpu(), time.perf_counter()
                running = [
                    subprocess.Popen(
                        [*command, '--threads', str(threads), '-o', f'{folder}/out-{n}.nii.gz'],
                        stdout=subprocess.DEVNULL,
                    )
                    for n in range(at_once)
                ]
                if any(process.wait() for process in running):
                    raise RuntimeError('the command failed: see above')
                wall, cpu = time.perf_counter() - start, (_children_cpu() - before) / at_once
                name = f'{threads} thread(s)' + (f', {at_once} at once' if at_once > 1 else '')
                if turn:
                    walls.setdefault(name, []).append((wall, cpu))
                    yield {'case': f'whole command, run {turn}', 'method': name, 'cpu': cpu, 'wall': wall}
        for what, of in (('fastest', np.min), ('median', np.median)):
            for name, times in walls.items():
                wall, cpu = of(times, 0)
                yield {'case': f'whole command, {what} of {TURNS}', 'method': name, 'cpu': cpu, 'wall': wall}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


TURNS = 6  # of --speed
COLUMNS = (
    ('case', 'case', '{}'), ('method', 'method', '{}'), ('psnr', 'PSNR dB', '{:.2f}'), ('ssim', 'SSIM', '{:.4f}'),
    ('ncc', 'NCC', '{:.4f}'), ('held', 'held-out NCC', '{:.4f}'),
    ('held_pixels', 'by pixels', '{:.4f}'), ('tre', 'TRE mm', '{:.3f}'),
    ('p95', '95 % mm', '{:.2f}'), ('excluded', 'excluded', '{}'), ('cpu', 'CPU s', '{:.1f}'),
    ('wall', 'wall s', '{:.1f}'),
)  # fmt: skip


def format_row(row: dict) -> str:
    return '| ' + ' | '.join(form.format(row[key]) if key in row else '' for key, _, form in COLUMNS) + ' |'


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', help='folder of development data')
    parser.add_argument('--truth', help='isotropic image to simulate from (default: the fetal one of --data)')
    parser.add_argument('--mask', help='of the truth (default: where it is positive)')
    parser.add_argument('--resolution', type=float, default=1.0, help='mm, of the reconstruction')
    parser.add_argument('--in-plane', type=float, default=1.1, help='mm')
    parser.add_argument('--thickness', type=float, default=3.3, help='mm')
    parser.add_argument('--stacks', type=int, nargs='+', default=[3, 6])
    parser.add_argument('--motions', nargs='+', choices=MOTIONS, default=list(MOTIONS))
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS), help='of the table')
    parser.add_argument('--seeds', type=int, nargs='+', default=[7], help='of the simulations of the table')
    for name in ('ablations', 'displaced', 'wrong', 'real', 'speed'):
        parser.add_argument(f'--{name}', action='store_true', help=globals()[name].__doc__)
    return parser


def main(argv=None) -> int:
    args = get_parser().parse_args(argv)
    if not (args.data or args.truth):
        print('svr.py: give --data DIR or --truth IMAGE', file=sys.stderr)
        return 2
    asked = [f for f in (ablations, displaced, wrong, real, speed) if getattr(args, f.__name__)] or [table]
    now = datetime.now(timezone.utc)
    print(
        f'# {now:%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, Python '
        f'{platform.python_version()}\n# benchmarks/svr.py {shlex.join(sys.argv[1:] if argv is None else argv)}\n'
    )
    print('| ' + ' | '.join(title for _, title, _ in COLUMNS) + ' |\n' + '|---' * len(COLUMNS) + '|')
    for part in asked:
        for row in part(args):
            print(format_row(row), flush=True)
    print(f'\npeak memory of all this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
