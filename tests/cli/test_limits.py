import shutil
from types import SimpleNamespace

import pytest

from bids_gsrecon.cli.build import build
from bids_gsrecon.cli.limits import check_free_space, needed_bytes
from bids_gsrecon.cli.parser import parse_args
from bids_gsrecon.errors import InputError
from bids_gsrecon.workflows.plan import plan_participants
from tests.bids_datasets import healthy


@pytest.fixture
def settings(tmp_path):
    bids = healthy(tmp_path / 'bids')

    def parse(*arguments):
        folders = [bids, tmp_path / 'out', 'participant', '-w', tmp_path / 'work']
        return parse_args([*folders, '--skip-bids-validation', *arguments])

    return parse


def messages(config):
    return [text for text in build(config).plans[0].messages if 'memory' in text]


@pytest.mark.parametrize('recon', ['harmonize', 'superres'])
def test_what_is_written_is_known_before(settings, recon):
    plans = plan_participants(settings('--recon', recon), {})
    assert 40 * 2 * 20**3 < needed_bytes(plans) < 1e8


def test_a_disk_that_cannot_hold_it_is_refused_before_the_run(settings, monkeypatch):
    config = settings()
    plans = plan_participants(config, {})
    check_free_space(config, plans)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: SimpleNamespace(free=30e6))
    with pytest.raises(
        InputError, match=r'output folder .*out and work folder .*work need about 0\.04 GB and 0\.03 GB'
    ):
        check_free_space(config, plans)


def test_a_step_that_may_not_fit_is_named_before_the_run(settings):
    said = messages(settings('--mem', '500M'))
    assert len(said) == 1
    assert 'may need up to 0.9 GB of memory and the limit here is 0.5 GB: it runs alone' in said[0]
    assert messages(settings('--mem', '16G')) == []


def test_fewer_at_a_time_than_there_are_processors_for_is_said(settings):
    assert (
        '1 at a time, although there are processors for 2'
        in messages(settings('--mem', '1500M', '--nprocs', '2', '--omp-nthreads', '1'))[0]
    )
    low = settings('--mem', '1500M', '--nprocs', '2', '--omp-nthreads', '1', '--low-mem')
    assert messages(low) == []


def test_under_low_mem_a_reconstruction_takes_every_processor(settings):
    def processors(*arguments):
        workflow = build(settings('--nprocs', '2', '--omp-nthreads', '1', *arguments)).workflow
        return workflow.get_node('sub_01_wf.session_wf.learn_scaffold').n_procs

    assert processors() == 1
    assert processors('--low-mem') == 2


def test_nodes_take_turns_at_a_gpu_that_auto_found(settings, monkeypatch):
    import bids_gsrecon.cli.build as module

    def takes_slot():
        return build(settings()).workflow.get_node('sub_01_wf.session_wf.learn_scaffold').inputs.use_gpu

    monkeypatch.setattr(module, '_backend', lambda config, plans: 'cpu')
    assert not takes_slot()
    monkeypatch.setattr(module, '_backend', lambda config, plans: 'cuda')
    assert takes_slot()
