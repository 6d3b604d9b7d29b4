"""Run the graph with nipype: environment, logging, plugin, progress."""

from __future__ import annotations

import logging
import os
import sys
import traceback

from bids_gsrecon.config import Config

POLL_SECONDS = 0.25  # nipype's default of 2 s is waited at every level of the graph
JOBS_FILE = 'slurm_jobs.txt'  # below the run's log folder, with --use-plugin SLURM
LOGGERS = ('workflow', 'utils', 'interface', 'filemanip')


def prepare_environment(config: Config) -> None:
    """What must stand in the environment before nipype, ITK, numba or a BLAS is imported anywhere.

    Children inherit it. One ITK thread and a fixed ANTs seed are what makes runs repeat exactly.
    """
    threads = str(config.resources.omp_nthreads)
    os.environ['NO_ET'] = os.environ['NIPYPE_NO_ET'] = '1'
    # Fields of Gaussians are written under names of their own and then renamed: nothing to lock, and network file
    # systems may have no locks.
    os.environ.setdefault('HDF5_USE_FILE_LOCKING', 'FALSE')
    os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'] = '1'
    os.environ['ANTS_RANDOM_SEED'] = str(config.execution.random_seed + 7)
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NUMBA_NUM_THREADS'):
        os.environ.setdefault(name, threads)
    os.environ.setdefault('MPLBACKEND', 'Agg')
    os.environ.setdefault('LOGNAME', 'bids_gsrecon')  # nipype names SLURM jobs by it; batch jobs may lack it


def apply_nipype_settings(config: Config) -> None:
    """nipype's own configuration: crash files as text, short polling, no telemetry.

    Workflows and nodes copy it when they are made: the process that builds the graph needs it too.
    """
    from nipype import config as nipype_config

    level = _level_name(config.execution.verbose)
    settings = {
        'execution': {
            'crashdump_dir': str(config.log_dir),
            'crashfile_format': 'txt',
            'poll_sleep_duration': POLL_SECONDS,
            'stop_on_first_crash': config.execution.stop_on_first_crash,
            'hash_method': 'content',
            'check_version': False,
            'create_report': False,  # a page per node that nobody reads, and shared files that parallel runs write
        },
        'logging': {'workflow_level': level, 'interface_level': level, 'utils_level': level},
    }
    nipype_config.update_config(settings)
    if config.execution.resource_monitor:
        nipype_config.update_config({'monitoring': {'sample_frequency': '0.5'}})
        nipype_config.enable_resource_monitor()


def start_logging(config: Config) -> None:
    """nipype's messages: all of them to ``nipype.log`` of this run, on the terminal as many as ``-v`` asks for."""
    import nipype  # noqa: F401 - makes the loggers

    config.log_dir.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = (
        config.execution.verbose > 0
    )  # a full disk is reported by what cannot be computed
    handler = logging.FileHandler(config.log_dir / 'nipype.log', delay=True)
    handler.setFormatter(logging.Formatter('%(asctime)s %(name)s %(levelname)s: %(message)s'))
    level = _level_name(config.execution.verbose)
    root = logging.getLogger('nipype')
    for existing in root.handlers:
        existing.setLevel(level)
    root.addHandler(handler)
    for name in LOGGERS:
        logger = logging.getLogger(f'nipype.{name}')
        logger.setLevel('DEBUG' if config.execution.verbose > 1 else 'INFO')
        for existing in logger.handlers:
            existing.setLevel(level)


def run_workflow(workflow, config: Config) -> dict[str, str]:
    """Run every node that can be run; a failing participant does not keep the others from it.

    Returns
    -------
    dict
        Nodes that failed (full name) and the traceback of the first of them; empty if nipype reported no error.
    """
    from bids_gsrecon.cli.node_progress import NodeProgress
    from bids_gsrecon.interfaces.plugins import make_plugin

    resources = config.resources
    plugin = resources.plugin or ('MultiProc' if resources.nprocs > 1 else 'Linear')
    with NodeProgress(workflow, folder=config.log_dir) as progress:
        plugin_args = {
            'n_procs': resources.nprocs,
            'memory_gb': resources.memory_gb,
            'raise_insufficient': False,  # a node that asks for more than there is runs alone
            'n_gpu_procs': 1,
            'nipype_level': _level_name(config.execution.verbose),
            'resource_monitor': config.execution.resource_monitor,
            **resources.plugin_args,
            'jobs_file': str(config.log_dir / JOBS_FILE),
            'status_callback': progress,
        }
        try:
            workflow.run(plugin=make_plugin(plugin, plugin_args), plugin_args=plugin_args)
        except Exception as error:  # what failed is in the crash files; --verbose shows the rest
            if config.execution.verbose:
                print(f'nipype: {error}', file=sys.stderr)
            text = ''.join(traceback.format_exception(error))
            return {name: f'Node: {name}\n\n{text}' for name in progress.failed or ['unknown']}
    return {}


def write_graph(workflow, config: Config) -> str:
    """Write the graph below the run's log folder; the picture needs Graphviz, the text (.dot) does not."""
    import contextlib
    import io
    import shutil

    stem = config.log_dir / 'graph.dot'
    with contextlib.redirect_stdout(io.StringIO()):
        if shutil.which('dot'):
            workflow.write_graph(dotfilename=str(stem), graph2use='colored', format='svg', simple_form=True)
            return f'graph of the workflow: {stem.with_suffix(".svg")}'
        workflow.write_hierarchical_dotfile(dotfilename=str(stem), colored=True, simple_form=True)
    return f'graph of the workflow: {stem} (install Graphviz for a picture)'


def _level_name(verbose: int) -> str:
    return ('CRITICAL', 'INFO', 'DEBUG')[min(verbose, 2)]
