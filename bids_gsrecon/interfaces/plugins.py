"""nipype plugins that end a run with an error where nipype's own would hang or hide it."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from traceback import format_exception

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node
from nipype.pipeline.plugins.slurm import SLURMPlugin

from bids_gsrecon.errors import killed_sentence


def initialise_worker(folder: str, nipype_level: str, resource_monitor: bool = False) -> None:
    """What every worker process does first: its folder, no telemetry, quiet nipype, an end with its parent."""
    from bids_gsrecon.interfaces.processes import follow_parent, keep_freed_memory

    follow_parent()
    keep_freed_memory()
    os.chdir(folder)
    os.environ['NO_ET'] = os.environ['NIPYPE_NO_ET'] = '1'
    import logging

    import nipype  # sets its own levels, once; ours come after

    for name in ('nipype.workflow', 'nipype.utils', 'nipype.interface', 'nipype.filemanip'):
        logging.getLogger(name).setLevel(nipype_level)
    if resource_monitor:
        nipype.config.update_config({'monitoring': {'sample_frequency': '0.5'}})
        nipype.config.enable_resource_monitor()


class ResilientMultiProc(MultiProcPlugin):
    """MultiProc that notices a worker killed from outside (out of memory).

    nipype's plugin waits forever for the result of such a worker. A killed worker also takes the tasks of its
    healthy neighbours with it. Here every lost task is tried once more in a process of its own, so that only
    the guilty one is lost again: it becomes a failed node, with a sentence that names it, its memory and the
    remedy.

    Parameters
    ----------
    plugin_args
        As for nipype's MultiProc, ``nipype_level``: logging level of the workers, and
        ``resource_monitor``: whether they record memory and processor use.
    """

    def __init__(self, plugin_args=None):
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown(wait=False)  # never used: ours has another initialiser and start method
        self.pool = self._new_pool(self.processors)
        self._jobs: dict[int, tuple] = {}  # task: (node, updatehash)
        self._retries: dict[int, ProcessPoolExecutor] = {}

    def _new_pool(self, n_workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=n_workers,
            initializer=initialise_worker,
            initargs=(
                self._cwd,
                self.plugin_args.get('nipype_level', 'CRITICAL'),
                self.plugin_args.get('resource_monitor', False),
            ),
            # Not fork: the parent has threads (progress bar, pool management).
            mp_context=multiprocessing.get_context(self.plugin_args.get('mp_context', 'spawn')),
        )

    def _submit_job(self, node, updatehash=False):
        self._taskid += 1
        task = self._taskid
        self._jobs[task] = (node, updatehash)
        try:
            self._task_obj[task] = self.pool.submit(run_node, node, updatehash, task)
        except BrokenProcessPool:
            self.pool.shutdown(wait=False)
            self.pool = self._new_pool(self.processors)
            self._task_obj[task] = self.pool.submit(run_node, node, updatehash, task)
        return task

    def _get_result(self, taskid):
        """The result of a finished task, None while it runs; called by nipype's polling loop."""
        future = self._task_obj[taskid]
        if not future.done():
            return None
        node, updatehash = self._jobs[taskid]
        try:
            return future.result()
        except (BrokenProcessPool, CancelledError) as error:
            if taskid in self._retries:
                lines = [killed_message(node.fullname, node.mem_gb, error)]
                return {'result': None, 'taskid': taskid, 'traceback': lines}
            self._retries[taskid] = self._new_pool(1)
            self._task_obj[taskid] = self._retries[taskid].submit(run_node, node, updatehash, taskid)
            return None
        except Exception as error:  # the result could not be sent back (pickling): the task's own failure
            return {'result': None, 'taskid': taskid, 'traceback': format_exception(error)}

    def _clear_task(self, taskid):
        super()._clear_task(taskid)
        del self._jobs[taskid]
        if taskid in self._retries:
            self._retries.pop(taskid).shutdown(wait=False)

    def _postrun_check(self):
        for pool in [self.pool, *self._retries.values()]:
            pool.shutdown(wait=False)


class ReadableSLURM(SLURMPlugin):
    """SLURM plugin that shows why a job was lost instead of a TypeError.

    nipype joins a traceback that is a plain text character by character and then fails on it. The numbers of the jobs
    go to the file ``jobs_file`` of its arguments: jobs outlive the process that submitted them (`cancel_jobs`).
    """

    def _submit_batchtask(self, scriptfile, node):
        job = super()._submit_batchtask(scriptfile, node)
        if jobs_file := self.plugin_args.get('jobs_file'):
            with open(jobs_file, 'a') as file:
                file.write(f'{job}\n')
        return job

    def _get_result(self, taskid):
        result = super()._get_result(taskid)
        if result and isinstance(result.get('traceback'), str):
            result['traceback'] = [
                *result['traceback'].splitlines(keepends=True),
                f'\nbids_gsrecon.errors.InputError: the SLURM job {taskid} ended without a result (cancelled, out '
                'of time or of memory): look at its slurm-*.out, raise its limits and run the same command again.\n',
            ]
        return result


def cancel_jobs(jobs_file) -> None:
    """Cancel the SLURM jobs of a run that is over; those that have ended do not mind."""
    import contextlib
    import subprocess

    try:
        with open(jobs_file) as file:
            jobs = file.read().split()
    except OSError:
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(['scancel', *jobs], capture_output=True, timeout=30, check=False)


def killed_message(name: str, mem_gb: float, error: BaseException) -> str:
    """One line, written as a traceback ends, for a node whose process was lost."""
    return f'bids_gsrecon.errors.InputError: {killed_sentence(name, mem_gb, type(error).__name__)}\n'


def make_plugin(name: str, plugin_args: dict):
    """The plugin to hand to ``workflow.run``: ours for MultiProc and SLURM, else nipype's by its name."""
    if name == 'MultiProc':
        return ResilientMultiProc(plugin_args=plugin_args)
    if name == 'SLURM':
        return ReadableSLURM(plugin_args=plugin_args)
    return name
