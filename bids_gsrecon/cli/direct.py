"""``gsrecon``: the methods on single files, without BIDS.

Every subcommand is one module with ``SUMMARY``, ``add_arguments(parser)`` and ``run(args) -> str`` (the
verdict line). These modules import nothing heavy at import, so that ``--help`` answers at once. A new method
is a new module and a line in ``SUBCOMMANDS``.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import os
import sys
import traceback

from bids_gsrecon import __version__
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.processes import interrupt_on_signals, keep_freed_memory

SUBCOMMANDS = {
    'harmonize': 'bids_gsrecon.cli.direct_harmonize',
    'superres': 'bids_gsrecon.cli.direct_superres',
    'svr': 'bids_gsrecon.cli.direct_svr',
    'cine': 'bids_gsrecon.cli.direct_cine',
    'm2asr': 'bids_gsrecon.cli.direct_m2asr',
    'sample': 'bids_gsrecon.cli.direct_sample',
    'slurm': 'bids_gsrecon.cli.direct_slurm',
    'simulate': 'bids_gsrecon.cli.direct_simulate',
    'evaluate': 'bids_gsrecon.cli.direct_evaluate',
    'demo': 'bids_gsrecon.cli.direct_demo',
    'fetch-templates': 'bids_gsrecon.cli.direct_fetch_templates',
}

# What follows -- is not theirs, but of the program that they prepare.
PASSES_ON = ('slurm',)

EXIT_OK, EXIT_FAILED, EXIT_ARGUMENTS = 0, 1, 2

EPILOG = """\
A first try, in three commands:
  gsrecon demo demo
  gsrecon harmonize demo/sub-01/anat/sub-01_T1w.nii.gz demo/sub-01/anat/sub-01_T2w.nii.gz -o result
  gsrecon evaluate result/sub-01_T2w.nii.gz
  demo/derivatives/truth/sub-01/anat/sub-01_space-T1w_desc-truth_T2w.nii.gz
One image alone, on a finer grid:
  gsrecon superres demo/sub-01/anat/sub-01_T2w.nii.gz -o isotropic.nii.gz
Stacks of slices that moved:
  gsrecon simulate stacks demo/sub-01/anat/sub-01_T1w.nii.gz moved --in-plane 1 --thickness 3
  gsrecon svr moved/stack-1.nii.gz moved/stack-2.nii.gz moved/stack-3.nii.gz
  --masks moved/mask-1.nii.gz moved/mask-2.nii.gz moved/mask-3.nii.gz -o volume.nii.gz --resolution 1

A cine with known truth, and its reconstruction:
  gsrecon simulate cine case.h5 --acceleration 8
  gsrecon cine case.h5 -o cine.nii.gz

A network that makes slices finer in plane, from sharp pairs on one grid, and its use:
  gsrecon m2asr train --pair a_T1w.nii.gz a_T2w.nii.gz --pair b_T1w.nii.gz b_T2w.nii.gz -o net.h5 --max-minutes 10
  gsrecon m2asr apply --weights net.h5 --reference c_T1w.nii.gz --target c_T2w.nii.gz -o fine.nii.gz

Whole BIDS data sets: bids_gsrecon BIDS_DIR OUTPUT_DIR participant (see bids_gsrecon --help).
Exit codes: 0 done, 1 failed while running, 2 unusable arguments or input.
"""


def get_parser() -> argparse.ArgumentParser:
    """The command line of ``gsrecon`` (also read by the documentation)."""
    parser = argparse.ArgumentParser(
        prog='gsrecon',
        description='MRI reconstruction with explicit Gaussians, on single files.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'gsrecon {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, module_name in SUBCOMMANDS.items():
        module = importlib.import_module(module_name)
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.add_argument(
            '-v',
            '--verbose',
            action='store_true',
            default=argparse.SUPPRESS,
            help='show the traceback of an error',
        )
        command.set_defaults(run=module.run)
    return parser


def main(argv=None) -> int:
    """Entry point; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    passed_on = []
    if argv and argv[0] in PASSES_ON and '--' in argv:
        place = argv.index('--')
        argv, passed_on = argv[:place], argv[place + 1 :]
    args = get_parser().parse_args(argv)
    args.passed_on = passed_on
    verbose = getattr(args, 'verbose', False)
    _limit_threads(getattr(args, 'threads', None))
    atexit.register(gc.freeze)  # at exit no garbage is looked for once more
    interrupt_on_signals()
    keep_freed_memory()
    try:
        verdict = args.run(args)
    except InputError as error:
        return _fail(args.command, str(error), EXIT_ARGUMENTS, verbose)
    except KeyboardInterrupt as error:
        return _fail(args.command, str(error) or 'interrupted; nothing was half-written.', EXIT_FAILED, False)
    except MemoryError as error:
        remedy = 'out of memory: crop the images, give a mask, or ask for larger voxels.'
        return _fail(args.command, f'{remedy} ({error})' if str(error) else remedy, EXIT_FAILED, verbose)
    except Exception as error:
        message = f'{type(error).__name__}: {error} (run again with -v for the traceback and report it).'
        return _fail(args.command, message, EXIT_FAILED, verbose)
    if verdict:
        print(verdict)
    return EXIT_OK


def _fail(command: str, message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    print(f'gsrecon {command}: error: {" ".join(message.split())}', file=sys.stderr)
    return code


def _limit_threads(threads: int | None) -> None:
    """Set the thread counts of the numerical libraries, before any of them is imported."""
    if threads:
        for name in ('OMP_NUM_THREADS', 'NUMBA_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
            os.environ[name] = str(threads)


if __name__ == '__main__':
    sys.exit(main())
