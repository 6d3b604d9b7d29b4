"""One image on a finer grid, learned from that image alone (physics-driven 3D Gaussians).

Any contrast, organ and orientation; without a grid option, thick slices become isotropic voxels of the
in-plane size, and isotropic voxels are halved. Written beside OUT.nii.gz:
  OUT_amplitude.nii.gz         amplitudes of the Gaussians, without their relaxation weights
  OUT_relaxation-proxy.nii.gz  how much a Gaussian prevails over its neighbours (no unit, no relaxation time)
  OUT_mask.nii.gz              where the image was reconstructed (elsewhere it is interpolated)
  OUT_residual.nii.gz          IN minus what the acquisition makes of the result, on the grid of IN
  OUT.json                     parameters and figures of merit
  OUT_field.h5                 with --save-field: gsrecon sample renders it on any other grid
"""

from __future__ import annotations

import argparse

from bids_gsrecon.cli.arguments import positive_float, positive_int
from bids_gsrecon.cli.method_options import (
    SHARED_SWITCHES,
    SUPERRES_SWITCHES,
    VOXEL_PROFILES,
    add_seed_and_threads,
    add_slice_geometry,
    add_superres_model,
    add_switches,
)

SUMMARY = 'one image on a finer grid, from that image alone'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon superres``."""
    parser.add_argument('image', metavar='IN', help='any 3D image')
    parser.add_argument('-o', '--output', metavar='OUT', required=True, help='image to write (.nii.gz, .nii)')
    parser.add_argument('--mask', help='where to reconstruct (default: the object, found in the image)')
    parser.add_argument(
        '--copy-if-fine', action='store_true', help='copy an image that is as fine as the output already'
    )
    grid = parser.add_argument_group('output grid').add_mutually_exclusive_group()
    grid.add_argument(
        '--zooms',
        type=positive_float,
        nargs='+',
        metavar='MM',
        help='voxel sizes: one number or three (write IN before it)',
    )
    grid.add_argument(
        '--shape', type=positive_int, nargs=3, metavar='N', help='number of voxels along the three axes'
    )
    grid.add_argument('--like', metavar='REF', help='image whose grid to use')
    grid.add_argument('--isotropic', action='store_true', help='the smallest voxel size of IN along all axes')
    slices = parser.add_argument_group('voxels of IN')
    add_slice_geometry(slices, 'IN')
    slices.add_argument(
        '--profile',
        choices=VOXEL_PROFILES,
        default='auto',
        help='how a voxel averages: cell (mean over the voxel; default), box or gaussian across slices of '
        '--thickness, point (value at its centre)',
    )
    model = parser.add_argument_group('model')
    add_superres_model(model)
    add_switches(model, {**SHARED_SWITCHES, **SUPERRES_SWITCHES})
    parser.add_argument('--save-field', action='store_true', help='also write OUT_field.h5')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), help='where to compute (default: auto)')
    add_seed_and_threads(parser)


def run(args: argparse.Namespace) -> str:
    """Read, reconstruct, write; the verdict line."""
    import time

    from bids_gsrecon.cli.progress import ProgressBar
    from bids_gsrecon.cli.superres_files import copy_image, read_inputs, write_outputs
    from bids_gsrecon.errors import about

    started = time.monotonic()
    if args.device == 'cuda':
        from bids_gsrecon.cli.checks import check_cuda

        check_cuda()
    inputs = read_inputs(args)
    if inputs.copy:
        copy_image(args)
        return f'gsrecon superres: ok, {args.image} is as fine as the output already: copied -> {args.output}'
    from bids_gsrecon.recon.superres import superres

    with ProgressBar() as progress, about(args.image):
        result = superres(
            inputs.image,
            inputs.lattice,
            profiles=inputs.profiles,
            mask=inputs.mask,
            options=inputs.options,
            seed=args.random_seed,
            progress=progress,
        )
    write_outputs(args, inputs, result)
    shape = ' x '.join(str(n) for n in result.lattice.shape)
    sizes = ' x '.join(f'{size:.4g}' for size in result.lattice.voxel_sizes_mm)
    seconds = time.monotonic() - started
    return f'gsrecon superres: ok, {shape} voxels of {sizes} mm in {seconds:.0f} s on {result.backend} -> {args.output}'
