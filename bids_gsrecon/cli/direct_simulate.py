"""Make an acquisition with known truth out of a good image.

gsrecon simulate slices IN OUT --axis 2 --factor 5     slices five voxels thick along the third stored axis
gsrecon simulate coarse IN OUT --factor 2              voxels twice as large along every axis
gsrecon simulate stacks IN OUTDIR --mask M --in-plane 1 --thickness 3    three stacks of slices that moved
gsrecon simulate cine OUT.h5 --acceleration 8          raw data of a beating heart
"""

from __future__ import annotations

import argparse

from bids_gsrecon.cli import simulate_cine, simulate_stacks
from bids_gsrecon.cli.arguments import add_simulation_arguments, image_stem, output_image, positive_float
from bids_gsrecon.errors import InputError

SUMMARY = 'thick slices, coarse voxels, moving stacks or cine k-space with known truth, with true headers'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon simulate``."""
    kinds = parser.add_subparsers(dest='kind', metavar='KIND', required=True)
    slices = kinds.add_parser('slices', help='average over thick slices along one axis')
    slices.add_argument('input', metavar='IN', help='the truth, a NIfTI image')
    slices.add_argument(
        'output', metavar='OUT', help='thick image to write (.nii or .nii.gz; a .json beside it)'
    )
    slices.add_argument(
        '--axis', type=int, choices=(0, 1, 2), required=True, help='stored axis to cut across'
    )
    size = slices.add_mutually_exclusive_group(required=True)
    size.add_argument('--factor', type=positive_float, metavar='N', help='slice thickness in voxels of IN')
    size.add_argument('--thickness', type=positive_float, metavar='MM', help='slice thickness in mm')
    slices.add_argument(
        '--gap', type=float, default=0.0, metavar='MM', help='gap between slices (below 0: overlap)'
    )
    slices.add_argument(
        '--profile',
        choices=('box', 'gaussian'),
        default='box',
        help='slice profile; gaussian: FWHM = thickness',
    )
    _add_common_arguments(slices)

    coarse = kinds.add_parser('coarse', help='larger voxels along every axis')
    coarse.add_argument('input', metavar='IN', help='the truth, a NIfTI image')
    coarse.add_argument(
        'output', metavar='OUT', help='coarse image to write (.nii or .nii.gz; a .json beside it)'
    )
    coarse.add_argument(
        '--factor',
        type=positive_float,
        nargs='+',
        required=True,
        metavar='N',
        help='voxel size in voxels of IN: one number, or one per stored axis',
    )
    coarse.add_argument(
        '--how',
        choices=('cell', 'trilinear', 'kspace'),
        default='cell',
        help='mean over the voxel, linear interpolation at its centre, or the central block of k-space',
    )
    _add_common_arguments(coarse)

    stacks = kinds.add_parser('stacks', help='stacks of thick slices, each of which moved')
    simulate_stacks.add_arguments(stacks)

    cine = kinds.add_parser('cine', help='undersampled multi-coil k-space of a beating heart (ISMRMRD)')
    simulate_cine.add_arguments(cine)


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--noise', type=float, default=0.0, metavar='F', help='Rician noise, fraction of the 99th percentile'
    )
    add_simulation_arguments(parser, 'the noise')


def run(args: argparse.Namespace) -> str:
    """Simulate, write, and say what was written."""
    kinds = {
        'slices': _run_slices,
        'coarse': _run_coarse,
        'stacks': simulate_stacks.run,
        'cine': simulate_cine.run,
    }
    return kinds[args.kind](args)


def _run_slices(args: argparse.Namespace) -> str:
    from bids_gsrecon.imaging.simulate import thick_slices
    from bids_gsrecon.interfaces.io import load_volume

    output = output_image(args.output, args.input)
    volume = load_volume(args.input)
    try:
        thick = thick_slices(
            volume,
            axis=args.axis,
            factor=args.factor,
            thickness_mm=args.thickness,
            gap_mm=args.gap,
            profile=args.profile,
            noise=args.noise,
            seed=args.seed,
        )
    except ValueError as error:
        raise InputError(f'{args.input} cannot be cut so: {error}; choose other slices.') from error
    voxel = float(volume.lattice.voxel_sizes_mm[args.axis])
    spacing = float(thick.lattice.voxel_sizes_mm[args.axis])
    thickness = args.thickness or args.factor * voxel
    sidecar = {
        'SliceThickness': round(thickness, 6),
        'SpacingBetweenSlices': round(spacing, 6),
        'SliceProfile': args.profile,
        'SliceAxis': args.axis,
        'RicianNoiseFraction': args.noise,
    }
    _save(output, thick, sidecar)
    n = thick.data.shape[args.axis]
    return f'gsrecon simulate: ok, {n} slices of {thickness:g} mm every {spacing:g} mm -> {output}'


def _run_coarse(args: argparse.Namespace) -> str:
    from bids_gsrecon.imaging.simulate import coarse_voxels
    from bids_gsrecon.interfaces.io import load_volume

    output = output_image(args.output, args.input)
    volume = load_volume(args.input)
    factors = args.factor if len(args.factor) > 1 else args.factor * 3
    try:
        coarse = coarse_voxels(volume, factors, args.how, noise=args.noise, seed=args.seed)
    except ValueError as error:
        raise InputError(f'{args.input} cannot be coarsened so: {error}; choose other factors.') from error
    sizes = [round(float(size), 6) for size in coarse.lattice.voxel_sizes_mm]
    sidecar = {
        'VoxelSizes': sizes,
        'VoxelSampling': args.how,
        'CoarseningFactors': factors,
        'RicianNoiseFraction': args.noise,
    }
    _save(output, coarse, sidecar)
    shape, mm = ' x '.join(map(str, coarse.data.shape)), ' x '.join(f'{size:g}' for size in sizes)
    return f'gsrecon simulate: ok, {shape} voxels of {mm} mm -> {output}'


def _save(output, volume, sidecar: dict) -> None:
    from bids_gsrecon.interfaces.io import save_json, save_volume

    save_volume(output, volume.data, volume.affine)
    save_json(output.with_name(image_stem(output) + '.json'), sidecar)
