"""One isotropic volume, and the pose of every slice, from stacks of slices that moved (fetal MRI, ...).

gsrecon svr a.nii.gz b.nii.gz c.nii.gz --masks ma.nii.gz mb.nii.gz none -o OUT.nii.gz
gsrecon svr --sample OUT_field.h5 --like grid.nii.gz -o on_grid.nii.gz     (the same as gsrecon sample)

Written beside OUT.nii.gz:
  OUT_mask.nii.gz         the anatomy (the volume is zero outside)
  OUT_uncertainty.nii.gz  standard deviation of the error, in the units of the volume
  OUT_coverage.nii.gz     how many slices see a voxel, by their weights
  OUT_slices.tsv          every slice: fit to the others, weight, gain, motion, pose
  OUT_stacks.tsv          the same by stack
  OUT.json                inputs, how they were understood, options, warnings
  OUT_field.h5            with --save-field: gsrecon sample renders it on any other grid
and with --poses DIR in that folder:
  stack-N_slice-NNN.tfm      rigid transform (ITK): antsApplyTransforms -r OUT.nii.gz -i STACK -t FILE moves the
                             slice to its place (its numbers map points of the volume to the slice as stored)
  poses.npy, poses.tsv       world matrices in RAS mm, the other way: slice as stored to volume
  stack-N_simulated.nii.gz   what the volume predicts at the pixels of the stack, on its own grid
"""

from __future__ import annotations

import argparse

from bids_gsrecon.cli.arguments import positive_float
from bids_gsrecon.cli.method_options import (
    SLICE_ORDER_HELP,
    SLICE_ORDERS,
    TEMPLATE_HELP,
    add_seed_and_threads,
    add_slice_geometry,
)

SUMMARY = 'one volume from stacks of slices that moved'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon svr``."""
    parser.add_argument(
        'stacks', metavar='STACK', nargs='*', help='two stacks or more, in different directions'
    )
    parser.add_argument(
        '-o',
        '--output',
        metavar='OUT',
        required=True,
        help='image to write (.nii.gz, .nii; .nii.gz is added to a name without ending)',
    )
    parser.add_argument(
        '--masks',
        nargs='+',
        metavar='MASK',
        help='the anatomy in every stack, in their order; the word none for a stack without (default: found)',
    )
    parser.add_argument(
        '--resolution',
        type=positive_float,
        metavar='MM',
        help='voxel size of the volume, isotropic (default: 0.8)',
    )
    parser.add_argument(
        '--reference',
        metavar='STACK|N',
        help='stack, or its number from 1, whose frame the volume takes (default: the one that moved least)',
    )
    slices = parser.add_argument_group('slices')
    add_slice_geometry(slices, 'STACK', several=True)
    slices.add_argument(
        '--slice-order',
        choices=SLICE_ORDERS,
        help=SLICE_ORDER_HELP,
    )
    model = parser.add_argument_group('model')
    model.add_argument(
        '--no-slice-motion', action='store_true', help='move whole stacks only, not each slice by itself'
    )
    model.add_argument(
        '--no-robust', action='store_true', help='let slices that contradict all others count in full'
    )
    model.add_argument(
        '--no-slice-bias', action='store_true', help='slices have a gain only, no smooth field of brightness'
    )
    model.add_argument(
        '--round-gaussians',
        action='store_true',
        help='keep the Gaussians round, instead of thin across edges and long along them',
    )
    model.add_argument(
        '--no-self-similarity',
        action='store_true',
        help='do not let places that look alike tell each other what noise hid',
    )
    model.add_argument(
        '--residual-field',
        action='store_true',
        help='add the published neural residual field (three times the time, no gain measured)',
    )
    space = parser.add_argument_group('standard space (default: the axes of the reference stack)')
    space.add_argument(
        '--template',
        metavar='IMAGE|FOLDER',
        help=TEMPLATE_HELP,
    )
    space.add_argument(
        '--gestational-age',
        type=positive_float,
        metavar='WEEKS',
        help='age by which a template is chosen from the folder (its name states it: GA32, STA32, 32w, ...)',
    )
    more = parser.add_argument_group('further results')
    more.add_argument('--poses', metavar='DIR', help='also write the poses and simulated slices there')
    more.add_argument('--save-field', action='store_true', help='also write OUT_field.h5')
    sample = parser.add_argument_group('resampling a saved field')
    sample.add_argument(
        '--sample', metavar='FIELD.h5', help='render this field (with --like or --resolution)'
    )
    sample.add_argument('--like', metavar='GRID', help='image whose grid to use')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), help='where to compute (default: auto)')
    add_seed_and_threads(parser)


def run(args: argparse.Namespace) -> str:
    """Read, reconstruct, write; the verdict line."""
    if args.sample:
        return _sample(args)
    import time

    from bids_gsrecon.errors import about
    from bids_gsrecon.interfaces.processes import starting_up

    started = time.monotonic()
    with starting_up():
        from bids_gsrecon.cli.progress import ProgressBar
        from bids_gsrecon.cli.svr_files import oriented, read_inputs, write_outputs
        from bids_gsrecon.interfaces.svr_outputs import doubt_about

        if args.device == 'cuda':
            from bids_gsrecon.cli.checks import check_cuda

            check_cuda()
        inputs = read_inputs(args)
        for warning in inputs.checked.warnings:
            _note(warning)
        from bids_gsrecon.recon.svr.method import svr

    names, orientation = ', '.join(str(file.path) for file in inputs.checked.files), None
    with ProgressBar() as progress, about(names):
        result = svr(inputs.stacks, options=inputs.options, progress=progress)
        if inputs.template is not None:
            result, orientation = oriented(inputs, result, progress)
    for doubt in doubt_about(orientation, inputs.template_path):
        _note(doubt)
    output = write_outputs(args, inputs, result, orientation)
    shape = ' x '.join(str(n) for n in result.lattice.shape)
    size = f'{result.lattice.voxel_sizes_mm[0]:.4g}'
    n_slices, n_excluded = len(result.slices), int(result.slices.excluded.sum())
    seconds = time.monotonic() - started
    return (
        f'gsrecon svr: ok, {len(inputs.stacks)} stacks, {n_slices} slices ({n_excluded} excluded), '
        f'{shape} voxels of {size} mm in {seconds:.0f} s -> {output}'
    )


def _note(warning: str) -> None:
    import sys

    print(f'gsrecon svr: note: {warning}', file=sys.stderr)


def _sample(args: argparse.Namespace) -> str:
    """What ``gsrecon sample`` does."""
    from bids_gsrecon.cli import direct_sample
    from bids_gsrecon.errors import InputError

    if args.stacks:
        raise InputError(
            f'{args.stacks[0]}: --sample renders a saved field and takes no stacks: leave them out.'
        )
    if (args.like is None) == (args.resolution is None):
        raise InputError(f'{args.sample} needs a grid to be rendered on: give either --like or --resolution.')
    return direct_sample.run(
        argparse.Namespace(
            field=args.sample,
            like=args.like,
            resolution=args.resolution,
            output=args.output,
            channel=None,
            frames=None,
        )
    )
