#!/usr/bin/env python3
"""GaussM2ASR trained on one subject, tested on another: T1w helps T2w, in-plane factors 1.5 to 6.

  m2asr.py --data DIR                                    every row (hours of processor time at the default minutes)
  m2asr.py --data DIR --rows cnn tiny --minutes 10       the two that matter
  m2asr.py --data DIR --rows no-spmf no-frequency --minutes 2
  m2asr.py --speed                                       forward pass of `tiny` at 256 x 256, memory, renderer
  m2asr.py --step paper --batch 1 --side 128             one training step: time and memory

Trained on sub-m06 alone (slices across all three axes: its voxels are isotropic), tested on axial slices of sub-m12,
every --every th. Coarse slices are magnitude images of centrally cropped k-space, on their true grid; k-space of a whole
slice, field of view included. PSNR (dB, range = 99.5th percentile of the truth) pooled over the mask, and over the mask
eroded by 5 voxels (`interior`: without the edge that the reference's skull strip reveals); zero-filled and bicubic in dB,
all others as gain over zero-filled. x6 is outside the training. Minutes are processor time of the training on --threads
threads: what else the machine does hardly changes it. Every network has the same data, optimiser and time; nothing was
chosen on sub-m12. ``consistent`` rows put the measured frequencies back, as `gsrecon m2asr apply` does.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))  # run as a script or loaded by a test
from m2asr_baselines import ResidualCnn

from bids_gsrecon.gpu import thread_limit
from bids_gsrecon.gpu.render2d import count_evaluations
from bids_gsrecon.imaging.kspace_crop import crop_kspace, replace_measured, zero_filled
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.metrics import data_range, psnr, resample_to
from bids_gsrecon.recon.m2asr import SIZES, LabelMap, Pair, TrainingOptions
from bids_gsrecon.recon.m2asr.method import _sampler
from bids_gsrecon.recon.m2asr.network import Network, n_parameters
from bids_gsrecon.recon.m2asr.training import Trainer
from bids_gsrecon.recon.m2asr.volumes import sharpen

SCALES = (1.5, 2.0, 3.0, 4.0, 6.0)
TRAINED, TESTED = 'sub-m06', 'sub-m12'
LABELS = 'labels/brain_labels_1mm.nii.gz'
ERODED = 5
WINDOW = 129  # pixels a side that the released renderer evaluates per Gaussian
PUBLISHED = dict(start='published')
TWO_STAGES = dict(first_stage_steps=40_000, steps=500_000)
# The modules of the paper that tiny leaves out for the time they take.
MODULES = dict(encoder_blocks=1, conv_blocks=4, cross_layers=1, edge_guided=True)
# Row: what it says, changes of the network, changes of the schedule, share of made-up pairs.
ROWS = {
    'cnn': ('residual CNN', {}, {}, 0.0),
    'tiny': ('tiny', {}, {}, 0.0),
    'no-spmf': ('tiny, no SPMF', dict(spmf=False), {}, 0.0),
    'absolute': ('tiny, absolute centres', dict(centres='absolute'), {}, 0.0),
    'no-reference': ('tiny, no reference', dict(reference=False), {}, 0.0),
    'adam': ('tiny, Adam alone', {}, dict(optimizer='adam'), 0.0),
    'random': ('tiny, published start, two stages', PUBLISHED, TWO_STAGES, 0.0),
    'random-single': ('tiny, published start, one stage', PUBLISHED, {}, 0.0),
    'modules': ('tiny + CSMF block, AG-DDCA, edge-guided AGGP', MODULES, {}, 0.0),
    'no-frequency': ('the same, no frequency branch', {**MODULES, 'frequency': False}, {}, 0.0),
    'no-top-t': ('the same, no Top-T', {**MODULES, 'top_t': 'none'}, {}, 0.0),
    'spatial-top-t': ('the same, spatial Top-T', {**MODULES, 'top_t': 'spatial'}, {}, 0.0),
    'synthetic': ('tiny, 15 % made up from labels, half weight', {}, {}, 0.15),
}


@dataclass(eq=False)
class Case:
    """The tested slices at one scale."""

    scale: float
    coarse: np.ndarray
    coarse_lattice: Lattice
    filled: np.ndarray


@dataclass(eq=False)
class Test:
    """The tested slices: truth, reference, masks, and coarse images of every scale."""

    truth: np.ndarray
    reference: np.ndarray
    lattice: Lattice
    mask: np.ndarray
    interior: np.ndarray
    peak: float
    cases: list[Case]

    def scores(self, image: np.ndarray) -> tuple[float, float]:
        """PSNR in the mask and in its interior."""
        return tuple(psnr(image, self.truth, m, peak=self.peak) for m in (self.mask, self.interior))


def load(data: Path, subject: str) -> Pair:
    """T1w and T2w of a subject; the mask is where the target has signal."""
    images = [
        nib.load(data / 'multicontrast' / subject / 'anat' / f'{subject}_{c}.nii.gz') for c in ('T1w', 'T2w')
    ]
    reference, target = (image.get_fdata(dtype=np.float32) for image in images)
    return Pair(subject, 'T2w', reference, target, Lattice(target.shape, images[1].affine), 2, target > 0)


def make_test(pair: Pair, every: int) -> Test:
    """Every so manieth axial slice, and what a scanner would have made of it."""
    where = np.flatnonzero(pair.mask.any((0, 1)))
    some = where[every // 2 :: every]
    interior = ndimage.binary_erosion(pair.mask, iterations=ERODED)
    truth, reference, mask, inner = (
        v[:, :, some] for v in (pair.target, pair.reference, pair.mask, interior)
    )
    lattice = Lattice(truth.shape, pair.lattice.affine)
    cases = []
    for scale in SCALES:
        coarse, coarse_lattice = crop_kspace(truth, lattice, 2, scale)
        cases.append(Case(scale, coarse, coarse_lattice, zero_filled(coarse, coarse_lattice, lattice, 2)))
    return Test(truth, reference, lattice, mask, inner, data_range(pair.target, pair.mask), cases)


def bicubic(case: Case, lattice: Lattice) -> np.ndarray:
    """Cubic splines in plane."""
    return resample_to(Volume(case.coarse, case.coarse_lattice), lattice, order=3)


def trained(name: str, pair: Pair, labels, args):
    """The averaged network, and its trainer."""
    _, network, schedule, synthetic = ROWS[name]
    size = SIZES['tiny']
    options = TrainingOptions(
        max_minutes=args.minutes, clock='processor', seed=args.seed, device='cpu', n_threads=args.threads,
        synthetic_fraction=synthetic,
        network=replace(size.network, **network),
        schedule=replace(size.schedule, **{'steps': 10**7, **schedule}),
    )  # fmt: skip
    sampler = _sampler([pair], labels if synthetic else (), options.network, options.schedule.batch, options)
    make = ResidualCnn if name == 'cnn' else Network
    trainer = Trainer(options.network, options.schedule, options, sampler, torch.device('cpu'), make)
    trainer.run(None, lambda done, total: None)
    return trainer.averaged(), trainer


def row(label: str, gains, remark: str) -> str:
    """A line of the table: mask gains, interior gains."""
    cells = ' | '.join(f'{a:.2f} ({b:.2f})' for a, b in gains)
    return f'| {label} | {cells} | {remark} |'


def tested(network, test: Test, zero, *, inverted: bool = False):
    """Gains over zero-filled (mask, interior) by scale: as predicted, and with the measured frequencies put back."""
    reference = test.reference
    if inverted:
        reference = np.where(test.mask, reference[test.mask].max() - reference, 0).astype(np.float32)
    plain, consistent = [], []
    for case, base in zip(test.cases, zero):
        image, _ = sharpen(
            network,
            case.coarse,
            case.coarse_lattice,
            reference,
            test.lattice,
            2,
            mask=test.mask,
            consistent=False,
        )
        plain.append(np.subtract(test.scores(image), base))
        image = replace_measured(image, case.coarse, case.coarse_lattice, test.lattice, 2)
        consistent.append(np.subtract(test.scores(image), base))
    return plain, consistent


def run_table(args) -> None:
    """Train and test every row."""
    test = make_test(load(args.data, TESTED), args.every)
    pair = load(args.data, TRAINED)
    labels = []
    if any(ROWS[name][3] for name in args.rows):
        image = nib.load(args.data / LABELS)
        voxels = np.asarray(image.dataobj).astype(np.int64)
        labels = [LabelMap(voxels, Lattice(voxels.shape, image.affine))]
    print('| method | ' + ' | '.join(f'x{s:g} mask (interior)' for s in SCALES) + ' | |')
    print('|---|' + '---:|' * len(SCALES) + '---|')
    zero = [test.scores(case.filled) for case in test.cases]
    print(row('zero-filled, dB', zero, f'{test.truth.shape[2]} slices'))
    print(
        row('bicubic, dB', [test.scores(bicubic(case, test.lattice)) for case in test.cases], ''), flush=True
    )
    for name in args.rows:
        started, load_before = time.perf_counter(), os.getloadavg()[0]
        with thread_limit(args.threads):
            network, trainer = trained(name, pair, labels, args)
        wall = (time.perf_counter() - started) / 60
        remark = (
            f'{n_parameters(network) / 1000:.0f} k, {trainer.minutes:.1f} processor min in {wall:.1f} min at load'
            f' {(load_before + os.getloadavg()[0]) / 2:.0f}, {trainer.step} steps'
        )
        with thread_limit(args.threads):
            if args.save:
                torch.save(network.state_dict(), args.save / f'{name}-{args.minutes:g}.pt')
            gains = tested(network, test, zero)
            print(row(ROWS[name][0], gains[0], remark), flush=True)
            print(row(f'{ROWS[name][0]}, consistent', gains[1], 'the same network'), flush=True)
            if name in ('tiny', 'synthetic'):
                gains = tested(network, test, zero, inverted=True)
                print(row(f'{ROWS[name][0]}; reference inverted', gains[0], 'the same network'), flush=True)


def run_speed(args) -> None:
    """Forward pass, memory, and how often the renderer evaluates its kernel."""
    network = Network(SIZES['tiny'].network).to(memory_format=torch.channels_last).eval()
    image = torch.rand(1, 256, 256)
    with thread_limit(args.threads), torch.inference_mode():
        network(image, image, torch.tensor([2.0])).render()
        before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        for _ in range(5):
            started = time.perf_counter(), time.process_time()
            prediction = network(image, image, torch.tensor([2.0]))
            prediction.render()
            seconds.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, processor = np.median(seconds, 0)
        print(
            f'forward and rendering of tiny ({n_parameters(network) / 1000:.0f} k parameters) at 256 x 256:'
            f' {wall:.2f} s wall, {processor:.2f} s processor on {args.threads} threads, load {os.getloadavg()[0]:.0f};'
            f' resident memory of the process {after / 2**20:.2f} GB at most ({(after - before) / 2**20:.2f} GB more'
            ' than after the first pass)'
        )
        window = 256 * 256 * WINDOW**2
        wide = prediction.gaussians.clone()
        for text, sigma in (('tiny at its start', None), ('published, s = 1, at most', 1 / 1.2),
                            ('published, s = 4, at most', 4 / 1.2)):  # fmt: skip
            if sigma is not None:
                wide[..., 2:4] = sigma
            n = count_evaluations(wide, (256, 256))
            print(
                f'kernel evaluations, {text}: {n / 65536:.0f} a Gaussian, 1/{window / n:.0f} of a +-64 window'
            )


@dataclass
class Noise:
    """In the place of a `Sampler`: images of noise, whole slices or pieces of them."""

    batch: int
    side: int
    subjects: tuple = ()

    def draw(self, step, rank, scales):
        rng = np.random.default_rng(step)
        images = rng.random((3, self.batch, self.side, self.side), dtype=np.float32)
        return images, np.full(self.batch, 2.0, np.float32), None


def run_step(args) -> None:
    """One training step of a size: time, and memory of a process that does nothing else."""
    size = SIZES[args.step]
    batch, side = args.batch or size.schedule.batch, args.side or size.network.patch or 256
    options = TrainingOptions(size=args.step, seed=args.seed, device='cpu', n_threads=args.threads)
    with thread_limit(args.threads):
        trainer = Trainer(size.network, size.schedule, options, Noise(batch, side), torch.device('cpu'))
        trainer.step = size.schedule.first_stage_steps  # of two stages the second
        before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        for _ in range(args.repeats + 1):  # the first also compiles
            started = time.perf_counter(), time.process_time()
            trainer.train_step()
            times.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    wall, processor = min(times[1:] or times)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f'a training step of {args.step} ({n_parameters(trainer.network) / 1e6:.2f} M parameters) on the CPU, batch {batch} of'
        f' {side} x {side}, {size.schedule.precision}: {processor:.2f} s processor, {wall:.2f} s wall on {args.threads} threads,'
        f' load {os.getloadavg()[0]:.0f}; resident memory of the process {after / 2**20:.2f} GB at most,'
        f' {(after - before) / 2**20:.2f} GB more than before the first step'
    )


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, help='folder that holds multicontrast/ and labels/')
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS))
    parser.add_argument('--minutes', type=float, default=10.0, help='processor time of every training')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--every', type=int, default=8, help='test every so manieth slice')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--save', type=Path, help='folder for the trained weights')
    parser.add_argument('--speed', action='store_true', help='time of a forward pass instead')
    parser.add_argument('--step', choices=SIZES, help='time and memory of a training step of a size instead')
    parser.add_argument('--batch', type=int, help='of --step (default: that of the size)')
    parser.add_argument('--side', type=int, help='of --step, pixels (default: the patch of the size, or 256)')
    parser.add_argument('--repeats', type=int, default=3, help='of --step: the best counts')
    return parser


def main(argv=None) -> int:
    """Print the table."""
    args = get_parser().parse_args(argv)
    if not args.speed and not args.step and args.data is None:
        get_parser().error('--data is needed')
    moment = datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
    print(f'# {moment}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}')
    said = shlex.join(sys.argv[1:] if argv is None else argv)
    for folder, name in ((args.data, 'DATA'), (args.save, 'WEIGHTS')):
        said = said.replace(str(folder), name) if folder else said
    print(f'# benchmarks/m2asr.py {said}\n', flush=True)
    (run_step if args.step else run_speed if args.speed else run_table)(args)
    return 0


if __name__ == '__main__':
    sys.exit(main())
