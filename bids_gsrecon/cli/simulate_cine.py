"""``gsrecon simulate cine``: what it takes and what it writes."""

from __future__ import annotations

import argparse
from pathlib import Path

from bids_gsrecon.cli.arguments import (
    add_simulation_arguments,
    output_folder,
    positive_float,
    positive_int,
    refuse_overwrite,
)
from bids_gsrecon.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon simulate cine``."""
    parser.add_argument(
        'output', metavar='OUT', help='ISMRMRD file to write (.h5, .mrd; OUT_truth.nii.gz beside it)'
    )
    parser.add_argument('--series', metavar='IMAGES', help='4D NIfTI to acquire (default: a beating heart)')
    parser.add_argument('--phantom', choices=('sharp', 'soft'), default='sharp', help='edges of the heart')
    parser.add_argument(
        '--matrix',
        type=positive_int,
        nargs=2,
        default=(128, 96),
        metavar='N',
        help='readout and phase encoding',
    )
    parser.add_argument(
        '--frames', type=positive_int, default=20, metavar='N', help='of one beat (default: 20)'
    )
    parser.add_argument(
        '--slices', type=positive_int, default=1, metavar='N', help='apex to base (default: 1)'
    )
    parser.add_argument('--coils', type=positive_int, default=8, metavar='N', help='default: 8')
    parser.add_argument(
        '--acceleration',
        type=positive_float,
        default=8.0,
        metavar='R',
        help='one of R lines a frame (default: 8)',
    )
    parser.add_argument(
        '--noise',
        type=float,
        default=0.02,
        metavar='F',
        help='share of the brightest coil image (default: 0.02)',
    )
    parser.add_argument(
        '--drift', type=float, default=0.0, metavar='PX', help='way of the body over the scan'
    )
    parser.add_argument('--breathing', type=float, default=0.0, metavar='PX', help='amplitude of breathing')
    parser.add_argument('--fov', type=positive_float, default=360.0, metavar='MM', help='along the readout')
    parser.add_argument('--frame-ms', type=positive_float, default=40.0, metavar='MS', help='time of a frame')
    add_simulation_arguments(parser, 'texture and noise')


def run(args: argparse.Namespace) -> str:
    """Simulate, write k-space and truth together, and say what was written."""
    import numpy as np

    from bids_gsrecon.cli.staging import staged
    from bids_gsrecon.imaging.ismrmrd_write import write_cine
    from bids_gsrecon.interfaces.cine_io import save_series, stack_affine

    output = Path(args.output)
    if output.suffix not in ('.h5', '.mrd'):
        raise InputError(f'{output} does not end in .h5 or .mrd: name the output so.')
    refuse_overwrite(output, args.series)
    if args.coils < 2 or args.noise <= 0:
        raise InputError(f'{output} needs at least two coils and some noise: change --coils or --noise.')
    folder = output_folder(output.parent)
    slices = _slices(args)
    truth = f'{output.stem}_truth.nii.gz'
    with staged(folder, [output.name, truth]) as staging:
        path = staging / output.name
        affines = write_cine(path, slices, fov_mm=args.fov, frame_ms=args.frame_ms, seed=args.seed)
        affine = stack_affine(path, affines)
        save_series(staging / truth, np.stack([np.abs(one.truth) for one in slices]), affine, args.frame_ms)
    lines = int(slices[0].mask[0].sum())
    n_frames, n_coils, n_x, n_y = slices[0].kspace.shape
    return (
        f'gsrecon simulate: ok, {n_x} x {n_y} x {len(slices)}, {n_frames} frames of {lines} lines, {n_coils} coils '
        f'-> {output}'
    )


def _slices(args):
    from bids_gsrecon.imaging.cine_simulate import simulate_phantom, simulate_series

    shared = dict(n_coils=args.coils, acceleration=args.acceleration, noise=args.noise)
    try:
        if args.series:
            series = _load_series(args.series)
            return [
                simulate_series(series[:, :, k].transpose(2, 0, 1), seed=args.seed + k, **shared)
                for k in range(series.shape[2])
            ]
        levels = (
            [0.0] if args.slices == 1 else [2.0 * k / (args.slices - 1) - 1.0 for k in range(args.slices)]
        )
        motion = dict(drift_px=args.drift, breathing_px=args.breathing)
        return [
            simulate_phantom(
                tuple(args.matrix),
                args.frames,
                kind=args.phantom,
                level=level,
                seed=args.seed + k,
                **motion,
                **shared,
            )
            for k, level in enumerate(levels)
        ]
    except ValueError as error:
        raise InputError(f'{args.output} cannot be simulated so: {error}; choose other sizes.') from error


def _load_series(path):
    import nibabel as nib
    import numpy as np

    try:
        data = np.asarray(nib.load(path).dataobj)
    except Exception as error:
        raise InputError(f'{path} cannot be read ({str(error)[:120]}): give a NIfTI series.') from error
    if data.ndim == 3:
        data = data[:, :, None]
    if data.ndim != 4 or not np.isfinite(data).all() or not np.any(data):
        raise InputError(f'{path} is not a series (x, y, slice, frame) of finite values: give one.')
    return data
