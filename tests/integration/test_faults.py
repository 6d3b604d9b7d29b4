"""What goes wrong on clusters, done on purpose to the app on nodes that compute nothing: see benchmarks/faults.py."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != 'linux', reason='faults are made with a library of Linux'),
    pytest.mark.skipif(not (shutil.which('cc') or shutil.which('gcc')), reason='no C compiler for faults.c'),
]


def load_bench():
    path = Path(__file__).parents[2] / 'benchmarks' / 'faults.py'
    spec = importlib.util.spec_from_file_location('benchmark_faults', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


FAULTS = load_bench()
RUNS = sys.modules['struck_runs']
# exit code, words of the error or verdict; the others wait for GSRECON_TEST_ALL_FAULTS=1.
EXPECTED = {
    'killed (out of memory), one process': (1, 'sub_01_wf.session_wf.double0 was killed, most likely out of memory'),
    'worker killed (out of memory)': (1, 'double0 was killed, most likely out of memory'),
    'SIGTERM, deaf step': (130, 'sub-01 was not finished (stopped at the step bids_gsrecon_wf.sub_01_wf.session_wf.double0'),
    'node lost, last files empty': (-9, 'sub-01 was not finished: its run was killed'),
    'disk full: output': (1, 'No space left on device'),
    'locks refused (NFS)': (0, 'SUCCESS'),
    'two runs on one output': (1, 'sub-01 is being processed by run'),
}  # fmt: skip
SLOWER = {
    'worker killed once': (0, 'SUCCESS'),
    'segmentation fault': (1, 'double0 crashed (its process got SIGSEGV)'),
    'killed while planning': (
        1,
        'sub-01: the run failed (its process got SIGKILL) before anything was computed',
    ),
    'MemoryError': (1, 'sub-01: the step sub_01_wf.session_wf.double0 ran out of memory'),
    'SIGTERM (scancel, time limit)': (130, 'sub-01 was not finished (stopped at the step'),
    'SIGTERM, workers': (130, 'sub-01 was not finished (stopped at the step'),
    'SIGINT (Ctrl-C)': (130, 'sub-01 was not finished (stopped at the step'),
    'node lost (all killed)': (-9, 'sub-01 was not finished: its run was killed'),
    'first process killed': (-9, 'sub-01 was not finished: its run was killed'),
    'disk full: work': (1, 'the disk is full: free space'),
    'disk full from the start': (2, 'No space left on device'),
    'quota: output': (1, 'Disk quota exceeded'),
    'read-only work from the start': (2, 'Read-only file system'),
    'read-only work midway': (1, 'the disk is read-only: choose another folder'),
    'clock a day ahead, killed': (-9, 'sub-01 was not finished: its run was killed'),
    'two runs, other participants': (0, 'SUCCESS'),
}
CRASHES = {
    'killed (out of memory), one process',
    'worker killed (out of memory)',
    'segmentation fault',
    'MemoryError',
}


def test_every_fault_has_an_expectation():
    assert {*EXPECTED, *SLOWER} == set(FAULTS.FAULTS)


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
    return RUNS.Bench(tmp_path_factory.mktemp('faults'), RUNS.TOY)


@pytest.mark.parametrize('fault', [*EXPECTED, *SLOWER])
def test_fault(bench, fault):
    if fault in SLOWER and os.environ.get('GSRECON_TEST_ALL_FAULTS') != '1':
        pytest.skip('a minute for all: set GSRECON_TEST_ALL_FAULTS=1')
    code, words = {**EXPECTED, **SLOWER}[fault]
    report = FAULTS.strike(bench, fault)
    assert report.exit_code == code, report.text
    assert words in report.said, report.text
    assert 'Traceback' not in report.text
    assert report.seconds < 60, 'a bounded time, on a busy machine'
    if code == 1 and fault != 'two runs on one output' and 'disk' not in fault and 'quota' not in fault:
        assert report.crash_files
    if fault in CRASHES:
        assert any('double0' in text for text in report.crash_files)
    if code >= 0 and code != 2:
        assert report.text.count('participant(s) done') == 1, 'one verdict'
    assert report.left_over == []
    assert report.again_code == 0, report.text
    assert report.again_equal
