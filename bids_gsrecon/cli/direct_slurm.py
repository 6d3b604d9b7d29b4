"""Write what a SLURM cluster needs to process a BIDS data set: participants, array script, submission.

Every participant is planned here, by file names and headers, as bids_gsrecon would do it; who has nothing to
reconstruct is said and left out. Memory and time are estimated from the images. What follows -- goes to
bids_gsrecon:

  gsrecon slurm /data/bids /data/derivatives -w /scratch/me/work --image app.sif -- --recon svr
  bash /data/derivatives/logs/slurm/submit.sh
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bids_gsrecon.cli.arguments import positive_int

SUMMARY = 'participant list and array job of a BIDS data set, with resources estimated from its images'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon slurm``."""
    parser.add_argument('bids_dir', type=Path, metavar='BIDS', help='root folder of a BIDS dataset')
    parser.add_argument('output_dir', type=Path, metavar='OUT', help='folder for the derivatives and reports')
    parser.add_argument(
        '-w', '--work-dir', type=Path, metavar='PATH',
        help='intermediate results; all nodes should see it, so that a task goes on elsewhere (default: ./work)',
    )  # fmt: skip
    parser.add_argument(
        '--image',
        type=Path,
        metavar='SIF',
        help='container (default: the one that this program runs in, else the installed program)',
    )
    parser.add_argument(
        '--unfinished',
        action='store_true',
        help='only participants whose last run did not end well, or who had none',
    )
    parser.add_argument(
        '--scripts', type=Path, metavar='DIR', help='where to write (default: OUT/logs/slurm)'
    )
    slurm = parser.add_argument_group('Options of the job, as sbatch spells them')
    slurm.add_argument('--partition', metavar='NAME', help="default: the cluster's")
    slurm.add_argument('--account', metavar='NAME', help='who pays')
    slurm.add_argument('--qos', metavar='NAME', help='quality of service')
    slurm.add_argument('--constraint', metavar='LIST', help='features of nodes')
    slurm.add_argument(
        '--cpus-per-task',
        type=positive_int,
        default=4,
        metavar='N',
        help='processors of a participant (default: 4)',
    )
    slurm.add_argument('--mem', metavar='SIZE', help='memory of a participant, as 8G (default: estimated)')
    slurm.add_argument(
        '--time', metavar='TIME', help='time limit, as 2:30:00 or 1-12:00:00 (default: estimated)'
    )
    slurm.add_argument(
        '--gpus', type=positive_int, metavar='N', help='GPUs of a participant; adds --device cuda'
    )
    slurm.add_argument(
        '--concurrent',
        type=positive_int,
        default=50,
        metavar='N',
        help='participants at a time (default: 50)',
    )
    slurm.add_argument(
        '--max-restarts', type=positive_int, default=3, metavar='N',
        help='how often a task that is out of time goes on in a new one (default: 3)',
    )  # fmt: skip


def run(args: argparse.Namespace) -> str:
    """Plan, estimate, write."""
    from bids_gsrecon.cli.slurm_files import write_job

    return write_job(args)
