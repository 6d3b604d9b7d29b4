"""The plugins against what they are for: workers killed from outside."""

import os

import pytest

os.environ.setdefault('NO_ET', '1')
os.environ.setdefault('NIPYPE_NO_ET', '1')

from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from bids_gsrecon.interfaces.plugins import ReadableSLURM, ResilientMultiProc, cancel_jobs, make_plugin


def _kill(x):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    return x


def _work(x):
    import time

    time.sleep(1.0)  # still running when its neighbour is killed
    return x + 1


def _node(name, function, folder):
    node = pe.Node(Function(input_names=['x'], output_names=['y'], function=function), name=name)
    node.inputs.x = 1
    return node


def test_killed_worker_fails_alone_and_the_run_ends(tmp_path):
    workflow = pe.Workflow('w', base_dir=str(tmp_path))
    workflow.config['execution'] = {
        'crashdump_dir': str(tmp_path / 'crash'),
        'crashfile_format': 'txt',
        'poll_sleep_duration': 0.2,
    }
    victim, neighbour, after = (
        _node(name, function, tmp_path)
        for name, function in (('victim', _kill), ('neighbour', _work), ('after', _work))
    )
    workflow.add_nodes([victim])
    workflow.connect(neighbour, 'y', after, 'x')
    plugin = ResilientMultiProc(plugin_args={'n_procs': 2, 'memory_gb': 2})
    with pytest.raises(RuntimeError, match='victim was killed, most likely out of memory'):
        workflow.run(plugin=plugin)
    crashes = list((tmp_path / 'crash').glob('crash-*.txt'))
    assert len(crashes) == 1
    assert 'InputError: the process of w.victim was killed' in crashes[0].read_text()
    assert (tmp_path / 'w' / 'after' / 'result_after.pklz').is_file(), 'what was healthy finished'


def test_ordinary_error_keeps_its_traceback(tmp_path):
    def fail(x):
        raise ValueError('on purpose')

    workflow = pe.Workflow('w', base_dir=str(tmp_path))
    workflow.config['execution'] = {
        'crashdump_dir': str(tmp_path), 'crashfile_format': 'txt', 'poll_sleep_duration': 0.2
    }  # fmt: skip
    workflow.add_nodes([_node('bad', fail, tmp_path)])
    with pytest.raises(RuntimeError, match='on purpose'):
        workflow.run(plugin=ResilientMultiProc(plugin_args={'n_procs': 2, 'memory_gb': 2}))


def test_slurm_job_without_result_is_a_readable_failure(monkeypatch):
    from nipype.pipeline.plugins.slurm import SLURMPlugin

    lost = {'result': None, 'traceback': 'OSError: Job id (7) finished\nno results file'}
    monkeypatch.setattr(SLURMPlugin, '_get_result', lambda self, taskid: dict(lost))
    lines = ReadableSLURM()._get_result(7)['traceback']
    assert isinstance(lines, list)
    assert 'SLURM job 7' in ''.join(lines)
    assert 'InputError' in lines[-1]


def test_other_plugins_are_left_to_nipype():
    assert make_plugin('Linear', {}) == 'Linear'


def test_slurm_jobs_are_cancelled_with_their_run(tmp_path, monkeypatch):
    from nipype.pipeline.plugins.slurm import SLURMPlugin

    numbers = iter((7, 8))
    monkeypatch.setattr(SLURMPlugin, '_submit_batchtask', lambda self, script, node: next(numbers))
    plugin = ReadableSLURM(plugin_args={'jobs_file': str(tmp_path / 'jobs.txt')})
    assert [plugin._submit_batchtask('script', None) for _ in range(2)] == [7, 8]
    scancel = tmp_path / 'scancel'
    scancel.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/cancelled\n')
    scancel.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    cancel_jobs(tmp_path / 'jobs.txt')
    assert (tmp_path / 'cancelled').read_text() == '7 8\n'
    cancel_jobs(tmp_path / 'none.txt')
