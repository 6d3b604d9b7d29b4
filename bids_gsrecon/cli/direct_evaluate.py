"""Score an image against the truth.

The prediction is resampled (cubic) to the grid of the truth by its header and never rescaled. Conventions:
  masked   PSNR over the mask (range: 99.5th percentile of the truth there), 3D SSIM averaged over the mask
  [default] volume   the whole grid, intensities mapped so that the truth spans [0, 1] slice    2D PSNR and
  SSIM (11 x 11 window), averaged over slices
Numbers of different conventions must not be compared.
"""

from __future__ import annotations

import argparse

from bids_gsrecon.errors import InputError

SUMMARY = 'PSNR, SSIM, NRMSE and correlation of an image against the truth'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon evaluate``."""
    parser.add_argument('prediction', metavar='PRED', help='image to score')
    parser.add_argument('truth', metavar='TRUTH', help='image to score it against')
    parser.add_argument('--mask', metavar='M', help='where to score (default: where TRUTH is positive)')
    parser.add_argument(
        '--convention', choices=('masked', 'volume', 'slice'), default='masked', help='see above'
    )
    parser.add_argument(
        '--range', choices=('p99.5', 'max'), default='p99.5', help='peak value: percentile or maximum'
    )
    parser.add_argument('--slice-axis', type=int, choices=(0, 1, 2), default=2, help='for --convention slice')
    parser.add_argument('--json', action='store_true', help='print one JSON object')


def run(args: argparse.Namespace) -> str:
    """The scores as one line, or as JSON."""
    import json

    from bids_gsrecon.imaging.metrics import evaluate
    from bids_gsrecon.interfaces.io import load_mask, load_volume

    prediction, truth = load_volume(args.prediction), load_volume(args.truth)
    mask = load_mask(args.mask, truth.lattice) if args.mask else None
    try:
        row = evaluate(
            prediction,
            truth,
            mask,
            convention=args.convention,
            range_kind=args.range,
            slice_axis=args.slice_axis,
        )
    except ValueError as error:
        raise InputError(
            f'{args.prediction} cannot be scored against {args.truth}: {error}; check both.'
        ) from error
    if args.json:
        return json.dumps(
            {k: v if not isinstance(v, float) or abs(v) < float('inf') else None for k, v in row.items()}
        )
    return (
        f'psnr {row["psnr"]:.3f} dB  ssim {row["ssim"]:.4f}  nrmse {row["nrmse"]:.4f}  ncc {row["ncc"]:.4f}  '
        f'(convention {row["convention"]}, range {row["range"]} = {row["data_range"]:.6g}, '
        f'{row["n_voxels"]} voxels)'
    )
