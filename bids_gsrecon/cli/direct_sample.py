"""Render a saved field of Gaussians (FIELD.h5 of gsrecon harmonize --save-field) on any grid.

gsrecon sample T2w_field.h5 --like other.nii.gz -o T2w_on_other.nii.gz
"""

from __future__ import annotations

import argparse

from bids_gsrecon.cli.arguments import output_image, positive_float, positive_int
from bids_gsrecon.errors import InputError

SUMMARY = 'render a saved field on any grid'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon sample``."""
    parser.add_argument('field', metavar='FIELD.h5', help='field to render')
    grid = parser.add_mutually_exclusive_group(required=True)
    grid.add_argument('--like', metavar='GRID', help='image whose grid to use')
    grid.add_argument(
        '--resolution', type=positive_float, metavar='MM', help='isotropic voxel size, over the same box'
    )
    parser.add_argument(
        '-o', '--output', metavar='OUT', required=True, help='image to write (.nii or .nii.gz)'
    )
    parser.add_argument('--channel', help='name of the contrast (default: the first)')
    parser.add_argument(
        '--threads', type=positive_int, metavar='N', help='processor cores to use (default: all)'
    )


def run(args: argparse.Namespace) -> str:
    """Load, render, write."""
    from pathlib import Path

    from bids_gsrecon.cli.grids import load_lattice
    from bids_gsrecon.fields.io import load_field
    from bids_gsrecon.imaging.lattice import Lattice
    from bids_gsrecon.imaging.render import render
    from bids_gsrecon.interfaces.io import save_volume

    output = output_image(args.output, args.field, args.like)
    if not Path(args.field).exists():
        raise InputError(f'{args.field} does not exist: check the path.')
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
