"""nipype plugins that end a run with an error where nipype's own would hang or hide it."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node
from nipype.pipeline.plugins.slurm import SLURMPlugin


def initialise_worker(folder: str, nipype_level: str) -> None:
    """What every worker process does first: its folder, no telemetry, quiet nipype."""
    os.chdir(folder)
    os.environ['NO_ET'] = os.environ['NIPYPE_NO_ET'] = '1'
    import logging

    from nipype import logging as nipype_logging

    for name in ('nipype.workflow', 'nipype.utils', 'nipype.interface', 'nipype.filemanip'):
        nipype_logging.getLogger(name.split('.', 1)[1])  # nipype sets its own level once, here
        logging.getLogger(name).setLevel(nipype_level)


class ResilientMultiProc(MultiProcPlugin):
    """MultiProc that notices a worker killed from outside (out of memory).

    nipype's plugin waits forever for the result of such a worker. Here the lost task becomes a failed node
    with a sentence that names it, its memory and the remedy, and the pool is made anew for the others.

    Parameters
    ----------
    plugin_args
        As for nipype's MultiProc, and ``nipype_level``: logging level of the workers.
    """

    def __init__(self, plugin_args=None):
        super().__init__(plugin_args=plugin_args)
        self._nodes: dict[int, tuple[str, float]] = {}
        self._broken = False
        self.pool.shutdown(wait=False)  # never used: ours has another initialiser and start method
        self.pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self.processors,
            initializer=initialise_worker,
            initargs=(self._cwd, self.plugin_args.get('nipype_level', 'CRITICAL')),
            # Not fork: the parent has threads (progress bar, pool management).
            mp_context=multiprocessing.get_context(self.plugin_args.get('mp_context', 'spawn')),
        )

    def _submit_job(self, node, updatehash=False):
        if self._broken:
            self.pool.shutdown(wait=False)
            self.pool = self._new_pool()
            self._broken = False
        self._taskid += 1
        task = self._taskid
        self._nodes[task] = (node.fullname, node.mem_gb)
        try:
            future = self.pool.submit(run_node, node, updatehash, task)
        except BrokenProcessPool:
            self.pool = self._new_pool()
            future = self.pool.submit(run_node, node, updatehash, task)
        self._task_obj[task] = future
        future.add_done_callback(lambda done: self._collect(task, done))
        return task

    def _collect(self, task: int, future) -> None:
        """Store the result of a task; an exception of the pool itself becomes a failed task."""
        try:
            result = future.result()
        except BaseException as error:  # noqa: BLE001 - also CancelledError: a lost task must never hang the run
            self._broken = self._broken or isinstance(error, BrokenProcessPool)
            name, mem_gb = self._nodes[task]
            result = {'result': None, 'taskid': task, 'traceback': [killed_message(name, mem_gb, error)]}
        self._taskresult[task] = result

    def _postrun_check(self):
        self.pool.shutdown(wait=not self._broken)


class ReadableSLURM(SLURMPlugin):
    """SLURM plugin that shows why a job was lost instead of a TypeError.

    nipype joins a traceback that is a plain text character by character and then fails on it.
    """

    def _get_result(self, taskid):
        result = super()._get_result(taskid)
        if result and isinstance(result.get('traceback'), str):
            result['traceback'] = [
                *result['traceback'].splitlines(keepends=True),
                f'\nbids_gsrecon.errors.InputError: the SLURM job {taskid} ended without a result (cancelled, out '
                'of time or of memory): look at its slurm-*.out, raise its limits and run the same command again.\n',
            ]
        return result


def killed_message(name: str, mem_gb: float, error: BaseException) -> str:
    """One line, written as a traceback ends, for a node whose process was lost."""
    return (
        f'bids_gsrecon.errors.InputError: the process of {name} was killed, most likely out of memory (it was '
        f'planned with {mem_gb:.1f} GB; {type(error).__name__}): give the job more memory, or lower --mem or '
        '--nprocs so that fewer steps run at a time, and run the same command again.\n'
    )


def make_plugin(name: str, plugin_args: dict):
    """The plugin to hand to ``workflow.run``: ours for MultiProc and SLURM, else nipype's by its name."""
    if name == 'MultiProc':
        return ResilientMultiProc(plugin_args=plugin_args)
    if name == 'SLURM':
        return ReadableSLURM(plugin_args=plugin_args)
    return name
