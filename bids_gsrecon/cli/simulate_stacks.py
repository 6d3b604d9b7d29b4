"""``gsrecon simulate stacks``: what it takes and what it writes."""

from __future__ import annotations

import argparse

from bids_gsrecon.cli.arguments import (
    add_simulation_arguments,
    output_folder,
    positive_float,
    positive_int,
    refuse_overwrite,
)
from bids_gsrecon.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon simulate stacks``."""
    parser.add_argument('input', metavar='IN', help='the truth, a NIfTI image')
    parser.add_argument(
        'output',
        metavar='OUTDIR',
        help='folder for stack-1.nii.gz (and .json), mask-1.nii.gz, ..., poses.tsv, truth.nii.gz',
    )
    parser.add_argument('--mask', metavar='M', help='the anatomy (default: IN above 0)')
    parser.add_argument('--in-plane', type=positive_float, required=True, metavar='MM', help='pixel size')
    parser.add_argument(
        '--thickness', type=positive_float, required=True, metavar='MM', help='slice thickness'
    )
    parser.add_argument(
        '--gap', type=float, default=0.0, metavar='MM', help='gap between slices (below 0: overlap)'
    )
    parser.add_argument(
        '--orientations',
        nargs='+',
        choices=('axial', 'coronal', 'sagittal'),
        default=['axial', 'coronal', 'sagittal'],
        help='one per stack, by world axes (default: all three)',
    )
    parser.add_argument(
        '--stacks',
        type=positive_int,
        metavar='N',
        help='how many, 6 at most (default: one per orientation); repeats are tilted',
    )
    parser.add_argument(
        '--rotation', type=float, default=3.0, metavar='DEG', help='amplitude of rotation (default: 3)'
    )
    parser.add_argument(
        '--translation', type=float, default=2.0, metavar='MM', help='amplitude of translation (default: 2)'
    )
    parser.add_argument(
        '--motion',
        choices=('smooth', 'iid', 'jerks'),
        default='smooth',
        help='smooth in (interleaved) acquisition time, every slice by itself, or sudden',
    )
    parser.add_argument(
        '--share-moving', type=float, default=1.0, metavar='F', help='share of slices that move at all'
    )
    parser.add_argument(
        '--gain', type=float, default=0.03, metavar='F', help='brightness of slices varies by this'
    )
    parser.add_argument('--void-share', type=float, default=0.0, metavar='F', help='share of signal voids')
    parser.add_argument(
        '--bias', type=float, default=0.0, metavar='F', help='amplitude of a smooth bias field per stack'
    )
    parser.add_argument(
        '--profile', choices=('gaussian', 'box'), default='gaussian', help='slice profile (default: gaussian)'
    )
    parser.add_argument(
        '--noise',
        type=float,
        default=0.02,
        metavar='F',
        help='Rician noise, fraction of the 99.5th percentile in the mask (default: 0.02)',
    )
    add_simulation_arguments(parser, 'motion, gains and noise')


def run(args: argparse.Namespace) -> str:
    """Simulate, write everything together, and say what was written."""
    from bids_gsrecon.cli.staging import staged
    from bids_gsrecon.imaging.simulate_stacks import moving_stacks
    from bids_gsrecon.interfaces.io import load_mask, load_volume, save_json, save_volume

    volume = load_volume(args.input)
    mask = load_mask(args.mask, volume.lattice) if args.mask else volume.data > 0
    folder = output_folder(args.output)
    n_stacks = args.stacks or len(args.orientations)
    names = [f'{kind}-{n}.nii.gz' for n in range(1, n_stacks + 1) for kind in ('stack', 'mask')]
    for name in [*names, 'truth.nii.gz', 'truth-mask.nii.gz']:
        refuse_overwrite(folder / name, args.input, args.mask)
    for item in sorted(folder.glob('stack-*.nii.gz')):
        if item.name not in names:
            raise InputError(f'{folder} holds {item.name} of another simulation: choose another folder.')
    try:
        stacks = moving_stacks(
            volume,
            mask,
            in_plane_mm=args.in_plane,
            thickness_mm=args.thickness,
            gap_mm=args.gap,
            orientations=args.orientations,
            n_stacks=n_stacks,
            rotation_deg=args.rotation,
            translation_mm=args.translation,
            motion=args.motion,
            share_moving=args.share_moving,
            gain=args.gain,
            void_share=args.void_share,
            bias=args.bias,
            noise=args.noise,
            profile=args.profile,
            seed=args.seed,
        )
    except ValueError as error:
        raise InputError(
            f'{args.input} cannot be imaged so: {error}; choose other slices or motion.'
        ) from error
    rows = ['\t'.join(['stack', 'slice', *(f'm{i}{j}' for i in range(4) for j in range(4))])]
    with staged(folder) as staging:
        for number, simulated in enumerate(stacks, 1):
            stack = simulated.stack
            save_volume(staging / f'stack-{number}.nii.gz', stack.data, stack.lattice.affine)
            save_volume(staging / f'mask-{number}.nii.gz', stack.mask, stack.lattice.affine, dtype='uint8')
            save_json(staging / f'stack-{number}.json', _sidecar(simulated, args))
            for k, pose in enumerate(simulated.poses):
                rows.append('\t'.join([str(number), str(k), *(f'{x:.9g}' for x in pose.ravel())]))
        (staging / 'poses.tsv').write_text('\n'.join(rows) + '\n')
        save_volume(staging / 'truth.nii.gz', volume.data, volume.affine)
        save_volume(staging / 'truth-mask.nii.gz', mask, volume.affine, dtype='uint8')
    n_slices = sum(len(s.poses) for s in stacks)
    return (
        f'gsrecon simulate: ok, {n_stacks} stacks, {n_slices} slices of {args.thickness:g} mm, '
        f'{sum(int(s.voids.sum()) for s in stacks)} voids -> {folder}'
    )


def _sidecar(simulated, args: argparse.Namespace) -> dict:
    stack = simulated.stack
    return {
        'SliceThickness': round(stack.thickness_mm, 6),
        'SpacingBetweenSlices': round(float(stack.lattice.voxel_sizes_mm[2]), 6),
        'SliceEncodingDirection': 'k',
        # One slice a second: only the order is of interest.
        'SliceTiming': [float(rank) for rank in stack.acquisition_rank()],
        'SliceProfile': stack.profile,
        'SliceGains': [round(float(g), 6) for g in simulated.gains],
        'SignalVoids': [int(k) for k in simulated.voids.nonzero()[0]],
        'Motion': args.motion,
        'RotationAmplitude': args.rotation,
        'TranslationAmplitude': args.translation,
        'ShareMoving': args.share_moving,
        'BiasAmplitude': args.bias,
        'RicianNoiseFraction': args.noise,
        'RandomSeed': args.seed,
    }
