"""Estimates are those of the graph, and grow with the images."""

import numpy as np
import pytest

from bids_gsrecon.workflows.base import init_bids_gsrecon_wf
from bids_gsrecon.workflows.estimates import (
    Estimate,
    estimate_participant,
    job_memory_gb,
    job_minutes,
)
from bids_gsrecon.workflows.plan_types import ParticipantPlan
from bids_gsrecon.workflows.registry import RECONS
from tests.bids_datasets import affine, healthy, write_image
from tests.cine_cases import write_kspace
from tests.moving_datasets import write_moving


@pytest.fixture
def estimated(config, plan):
    """The estimate of participant 01, and the largest step of its graph."""

    def run(*arguments):
        settings, item = config(*arguments), plan(*arguments)['01']
        workflow = init_bids_gsrecon_wf(config=settings, plans=[item])
        nodes = [workflow.get_node(name) for name in workflow.list_node_names()]
        return estimate_participant(settings, item), max(node.mem_gb for node in nodes)

    return run


def test_every_method_that_runs_has_an_estimate():
    assert all(recon.estimator for recon in RECONS.values())


@pytest.mark.parametrize('recon', ['harmonize', 'superres', 'svr', 'cine'])
def test_memory_is_that_of_the_largest_step_of_the_graph(root, estimated, recon):
    if recon == 'svr':
        write_moving(root, '01')
    elif recon == 'cine':
        write_kspace(root)
    else:
        healthy(root)
    expected, largest = estimated('--recon', recon)
    assert expected.memory_gb == pytest.approx(largest)
    assert expected.cpu_seconds > 0


@pytest.mark.parametrize('recon', ['harmonize', 'superres'])
def test_larger_images_take_more(root, estimated, recon):
    healthy(root)
    small, _ = estimated('--recon', recon)
    for name, shape, sizes in (('T1w', (256, 256, 192), (1, 1, 1)), ('T2w', (256, 256, 32), (1, 1, 6))):
        data = np.zeros(shape, np.int8)
        data[::2] = 1
        write_image(root / 'sub-01' / 'anat' / f'sub-01_{name}.nii.gz', data, affine(sizes))
    large, _ = estimated('--recon', recon)
    assert large.memory_gb > 1.5 * small.memory_gb
    assert large.cpu_seconds > 3 * small.cpu_seconds


def test_finer_volumes_and_slow_models_take_more(root, tmp_path, estimated):
    write_moving(root, '01')
    write_kspace(root)
    plain, _ = estimated('--recon', 'svr')
    fine, _ = estimated('--recon', 'svr', '--output-resolution', '0.4')
    assert fine.memory_gb > plain.memory_gb and fine.cpu_seconds > 2 * plain.cpu_seconds
    settings = tmp_path / 'settings.toml'
    settings.write_text('[method]\nsvr = {residual_field = true}\ncine = {model = "free"}\n')
    assert estimated('--recon', 'svr', '--config-file', settings)[0].cpu_seconds > plain.cpu_seconds
    plain, _ = estimated('--recon', 'cine')
    assert estimated('--recon', 'cine', '--config-file', settings)[0].cpu_seconds > plain.cpu_seconds


def test_sessions_add_up_in_time_and_not_in_memory(root, estimated):
    write_kspace(root, session='a')
    one, _ = estimated('--recon', 'cine')
    write_kspace(root, session='b')
    two, _ = estimated('--recon', 'cine')
    assert two.memory_gb == one.memory_gb
    assert two.cpu_seconds == pytest.approx(2 * one.cpu_seconds)


def test_a_job_asks_for_whole_gigabytes_and_quarters_of_an_hour():
    small, large = Estimate(0.1, 10.0), Estimate(10.0, 7200.0)
    assert (job_memory_gb(small, 1), job_minutes(small, 1)) == (2, 15)
    assert job_memory_gb(large, 4) > 12
    assert job_minutes(large, 1) == 360, 'three times as long as expected'
    assert 90 < job_minutes(large, 4) < 360 and job_minutes(large, 4) % 15 == 0
    with pytest.raises(ValueError, match='sub-01 has nothing to run'):
        estimate_participant(None, ParticipantPlan('01'))
