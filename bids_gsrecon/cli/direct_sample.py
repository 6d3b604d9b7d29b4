"""Render saved Gaussians on any grid: FIELD.h5 of --save-field, or MODEL.h5 of gsrecon cine (also at any time).

gsrecon sample T2w_field.h5 --like other.nii.gz -o T2w_on_other.nii.gz
gsrecon sample cine_model.h5 --frames 60 --resolution 1 -o smooth.nii.gz
"""

from __future__ import annotations

import argparse

from bids_gsrecon.cli.arguments import output_image, positive_float, positive_int
from bids_gsrecon.errors import InputError

SUMMARY = 'render a saved field or cine model on any grid'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon sample``."""
    parser.add_argument('field', metavar='FIELD.h5', help='field to render')
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument('--like', metavar='GRID', help='image whose grid to use')
    grid.add_argument(
        '--resolution',
        type=positive_float,
        metavar='MM',
        help='isotropic voxel size (cine: pixel size), over the same box',
    )
    parser.add_argument(
        '-o', '--output', metavar='OUT', required=True, help='image to write (.nii or .nii.gz)'
    )
    parser.add_argument(
        '--frames', type=positive_int, metavar='N', help='of a cine model: so many over its whole time'
    )
    parser.add_argument('--channel', help='name of the contrast (default: the first)')
    parser.add_argument(
        '--threads', type=positive_int, metavar='N', help='processor cores to use (default: all)'
    )


def run(args: argparse.Namespace) -> str:
    """Load, render, write."""
    from pathlib import Path

    from bids_gsrecon.cli.grids import load_lattice
    from bids_gsrecon.fields.dynamic import is_cine
    from bids_gsrecon.fields.io import load_field
    from bids_gsrecon.imaging.lattice import Lattice
    from bids_gsrecon.imaging.render import render
    from bids_gsrecon.interfaces.io import save_volume

    output = output_image(args.output, args.field, args.like)
    if not Path(args.field).exists():
        raise InputError(f'{args.field} does not exist: check the path.')
    if is_cine(args.field):
        return _sample_cine(args, output)
    if args.frames or not (args.like or args.resolution):
        raise InputError(f'{args.field} is a field: give --like or --resolution, and no --frames.')
    layers, metadata = load_field(args.field)
    channels = list(dict.fromkeys(name for layer in layers for name in layer.channels))
    channel = args.channel or channels[0]
    if channel not in channels:
        raise InputError(f'{args.field} has no channel {channel}: it has {", ".join(channels)}.')
    if args.like:
        lattice = load_lattice(args.like)
    elif 'lattice_shape' in metadata:
        own = Lattice(tuple(metadata['lattice_shape']), metadata['lattice_affine'])
        lattice = own.resampled(args.resolution)
    else:
        raise InputError(f'{args.field} does not say which grid it was made on: use --like.')
    save_volume(output, render(layers, lattice, channel=channel), lattice.affine)
    n = sum(len(layer) for layer in layers)
    return f'gsrecon sample: ok, {n} Gaussians on a grid of {"x".join(map(str, lattice.shape))} -> {output}'


def _sample_cine(args: argparse.Namespace, output) -> str:
    """Magnitudes of a cine model, over its own field of view."""
    import numpy as np

    from bids_gsrecon.fields.dynamic import load_cine
    from bids_gsrecon.interfaces.cine_io import save_series

    if args.like or args.channel:
        raise InputError(f'{args.field} is a cine model: it takes --resolution and --frames alone.')
    slices, metadata = load_cine(args.field)
    affine, shape = np.array(metadata['affine']), metadata['shape']
    sizes = np.linalg.norm(affine[:3, :2], axis=0)
    zoom = sizes / args.resolution if args.resolution else np.ones(2)
    shape = np.maximum(1, np.rint(shape * zoom)).astype(int)
    # The corner of the field of view stays where it is: pixels are cells.
    offset = (zoom - 1) / 2
    affine[:3, 3] -= affine[:3, :2] @ (offset / zoom)
    affine[:3, :2] /= zoom
    n_frames = args.frames or slices[0].n_frames
    times = np.arange(n_frames) * slices[0].n_frames / n_frames
    images = [one.render(tuple(shape), times=times, matrix=np.diag(zoom), offset=offset) for one in slices]
    frame_ms = metadata['frame_ms'] * slices[0].n_frames / n_frames
    save_series(output, np.abs(np.stack(images)), affine, frame_ms)
    return f'gsrecon sample: ok, {n_frames} frames of {shape[0]} x {shape[1]} pixels -> {output}'
