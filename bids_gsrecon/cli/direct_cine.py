"""Cine from undersampled multi-coil k-space (dynamic 2D Gaussians).

FILE is ISMRMRD (.h5, .mrd), Cartesian, 2D, any number of slices. Written beside OUT.nii.gz (magnitude; readout,
phase encoding, slice, frame):
  OUT_part-phase.nii.gz   phase in radians
  OUT.json                parameters, chi^2 (1: the data are described down to their noise), verdict and reasons
  OUT.gif                 looping picture
  OUT_model.h5            the Gaussians: any grid, any time between frames
  OUT_motion.nii.gz       with --save-motion: displacement in mm (two volumes per frame: readout, phase encoding)
  OUT_determinant.nii.gz, OUT_eigenvalue-ratio.nii.gz    with --save-motion: area and elongation of the Gaussians
  OUT_roi.tsv             with --roi: mean signal over time
  OUT_retro.tsv           with --retro-R: fully sampled data undersampled, against themselves
"""

from __future__ import annotations

import argparse

from bids_gsrecon.cli.arguments import positive_float, positive_int
from bids_gsrecon.cli.method_options import add_cine_model, add_seed_and_threads

SUMMARY = 'cine from undersampled multi-coil k-space (ISMRMRD)'
CINE_LOSSES = ('hdr', 'l2')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon cine``."""
    parser.add_argument('kspace', metavar='FILE', help='raw data, ISMRMRD (.h5, .mrd)')
    parser.add_argument(
        '-o', '--output', metavar='OUT', required=True, help='series to write (.nii.gz, .nii)'
    )
    data = parser.add_argument_group('data')
    data.add_argument('--slice', type=int, metavar='N', help='only this slice, from 0 (default: all)')
    data.add_argument('--set', type=int, default=0, metavar='N', help='which of several sets (default: 0)')
    data.add_argument(
        '--frame-ms', type=positive_float, metavar='MS', help='time of a frame (default: the header)'
    )
    data.add_argument(
        '--sigma', type=positive_float, metavar='S', help='noise of the raw samples (default: estimated)'
    )
    data.add_argument('--roi', metavar='LABELS', help='regions on the output grid: signal over time')
    model = parser.add_argument_group('model')
    add_cine_model(model)
    model.add_argument(
        '--gaussians', type=positive_int, metavar='N', help='how many (default: by the support)'
    )
    model.add_argument(
        '--harmonics', type=positive_int, metavar='N', help='of the beat, at the start (default: 2)'
    )
    model.add_argument(
        '--not-periodic', action='store_true', help='the last frame is not followed by the first'
    )
    model.add_argument('--no-fall-back', action='store_true', help='never add motion or modes')
    model.add_argument('--loss', choices=CINE_LOSSES, default='hdr', help='of the free model (default: hdr)')
    parser.add_argument(
        '--save-motion', action='store_true', help='also write motion and shape of the Gaussians'
    )
    add_seed_and_threads(parser)


def run(args: argparse.Namespace) -> str:
    """Read, reconstruct, write; the verdict line."""
    import time

    from bids_gsrecon.cli.cine_files import read_inputs, write_outputs
    from bids_gsrecon.cli.progress import ProgressBar
    from bids_gsrecon.errors import about
    from bids_gsrecon.interfaces.cine_io import worst_verdict
    from bids_gsrecon.interfaces.cine_outputs import retro_rows
    from bids_gsrecon.recon.cine import reconstruct_cine

    started = time.monotonic()
    inputs = read_inputs(args)
    with ProgressBar() as progress, about(args.kspace):
        results = [
            reconstruct_cine(one, inputs.options, seed=args.random_seed, progress=progress)
            for one in inputs.slices
        ]
        accelerations = args.retro_R or ()
        retro = retro_rows(
            inputs.slices, accelerations, inputs.options, seed=args.random_seed, progress=progress
        )
    write_outputs(args, inputs, results, retro)
    verdict, reasons = worst_verdict(results)
    n_x, n_y = inputs.slices[0].hybrid.shape[2:]
    n_frames, n_slices = len(inputs.slices[0].hybrid), len(results)
    why = f' ({"; ".join(reasons[:3])})' if reasons else ''
    chi2 = ', '.join(f'{r.chi2:.2f}' for r in results[:4]) + (', ...' if n_slices > 4 else '')
    return (
        f'gsrecon cine: {verdict}{why}, {n_x} x {n_y} x {n_slices} x {n_frames} frames, '
        f'R = {inputs.slices[0].acceleration:.1f}, chi^2 {chi2}, {time.monotonic() - started:.0f} s -> {args.output}'
    )
