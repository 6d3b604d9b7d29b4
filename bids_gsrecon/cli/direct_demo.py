"""Make a small BIDS data set to try everything on: no download, no person scanned.

From the MNI152 maps inside nilearn: an isotropic T1w, a thick axial T2w and a thick coronal FLAIR with
lesions that the T1w does not show; the isotropic truth lies in DIR/derivatives/truth. A demo that is already
there is kept.
"""

from __future__ import annotations

import argparse

from bids_gsrecon.cli.arguments import positive_float, positive_int, seed_number

SUMMARY = 'a small BIDS data set with known truth, in seconds'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon demo``."""
    parser.add_argument('directory', metavar='DIR', help='folder to create')
    parser.add_argument('--subjects', type=positive_int, default=1, metavar='N', help='number of subjects')
    parser.add_argument(
        '--resolution', type=positive_float, default=1.5, metavar='MM', help='voxel size of the T1w'
    )
    parser.add_argument(
        '--noise', type=float, default=0.015, metavar='F', help='noise, fraction of the maximum'
    )
    parser.add_argument('--seed', type=seed_number, default=0, help='another seed, other heads')


def run(args: argparse.Namespace) -> str:
    """Write the data set."""
    from bids_gsrecon.interfaces.demo import make_demo

    made = make_demo(
        args.directory,
        n_subjects=args.subjects,
        resolution_mm=args.resolution,
        noise=args.noise,
        seed=args.seed,
    )
    what = 'written to' if made else 'already in'
    return f'gsrecon demo: ok, {args.subjects} subject(s) {what} {args.directory}'
