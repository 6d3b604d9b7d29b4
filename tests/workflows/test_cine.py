"""The graph of ``--recon cine``."""

import pytest

from bids_gsrecon.cli.build import build
from bids_gsrecon.cli.outcome import collect_outcomes, missing_results
from bids_gsrecon.recon.cine.types import CineOptions
from tests.bids_datasets import sink_paths, write_image
from tests.cine_cases import write_kspace

WORKFLOW = 'sub_01_wf.ses_a_wf.run1_cine_wf'
STEM = 'sub-01/ses-a/cine/sub-01_ses-a_run-1'


@pytest.fixture
def kspace(root):
    return write_kspace(root, session='a', entities='_run-1', acceleration=1.0)


def node(workflow, name):
    return workflow.get_node(f'{WORKFLOW}.{name}')


def test_names_of_the_results(kspace, config):
    settings = config()
    made = build(settings)
    assert sink_paths(made.workflow) == [
        f'{STEM}_desc-determinant_cine.nii.gz',
        f'{STEM}_desc-eigenvalueratio_cine.nii.gz',
        f'{STEM}_desc-model_cine.h5',
        f'{STEM}_desc-motion_cine.nii.gz',
        f'{STEM}_desc-recon_cine.gif',
        f'{STEM}_part-mag_desc-recon_cine.nii.gz',
        f'{STEM}_part-phase_desc-recon_cine.nii.gz',
    ]
    assert missing_results(settings, made.plans[0]) == [f'{STEM}_part-mag_desc-recon_cine.nii.gz']
    metadata = node(made.workflow, 'ds_cine_wf.ds_magnitude').interface.inputs.metadata
    assert metadata['Sources'] == ['bids:raw:sourcedata/sub-01/ses-a/cmr/sub-01_ses-a_run-1_cine.h5']
    assert made.backend == 'cpu'


def test_files_share_no_name_and_no_node(kspace, root, config):
    write_kspace(root, session='a', entities='_run-2')
    write_kspace(root, session='a')
    workflow = build(config()).workflow
    paths = sink_paths(workflow)
    assert len(paths) == len(set(paths)) == 21
    assert sum(name.endswith('.reconstruct') for name in workflow.list_node_names()) == 3


def test_options_reach_the_node(kspace, config):
    reconstruct = node(build(config()).workflow, 'reconstruct')
    assert CineOptions(**reconstruct.interface.inputs.options) == CineOptions()
    assert not reconstruct.interface.inputs.use_gpu and 0.5 < reconstruct.mem_gb < 1
    arguments = ['--cine-model', 'free', '--cine-iterations', '7', '--no-cine-periodic', '--sloppy']
    settings = config(*arguments, '--retro-R', '4', '--nprocs', '4', '--omp-nthreads', '2')
    workflow = build(settings).workflow
    reconstruct = node(workflow, 'reconstruct')
    options = CineOptions(**reconstruct.interface.inputs.options)
    assert (options.model, options.iterations, options.periodic, options.fall_back) == (
        'free',
        7,
        False,
        False,
    )
    assert reconstruct.interface.inputs.retro == [4.0] and reconstruct.n_procs == 2
    assert f'{STEM}_desc-retro_cine.tsv' in sink_paths(workflow)


def test_regions_reach_the_node_and_the_sidecar(kspace, config, tmp_path):
    import numpy as np

    drawn = tmp_path / 'drawn' / f'{STEM}_desc-roi_dseg.nii.gz'
    write_image(drawn, np.ones((4, 4, 1), np.uint8), np.eye(4))
    workflow = build(config('-d', tmp_path / 'drawn')).workflow
    assert node(workflow, 'reconstruct').interface.inputs.regions == str(drawn)
    assert f'{STEM}_desc-roi_cine.tsv' in sink_paths(workflow)
    metadata = node(workflow, 'ds_cine_wf.ds_magnitude').interface.inputs.metadata
    assert metadata['Sources'][1] == f'file://{drawn}'


def test_two_builds_hash_alike(kspace, config):
    """The work folder of a run is found again by the next one."""
    digests = [
        node(build(settings).workflow, 'reconstruct').interface.inputs.get_hashval()[1]
        for settings in (config(), config('--nprocs', '3', '--omp-nthreads', '2', '--mem', '7G'))
    ]
    assert digests[0] == digests[1]


def test_methods_text_says_what_was_done(kspace, config):
    text = build(config()).boilerplate
    for words in ('ISMRM Raw data format', 'ESPIRiT', 'few temporal modes', 'chi^2'):
        assert words in text
    assert '[@' not in text and 'regions' not in text and 'undersampled (R' not in text
    other = build(config('--cine-model', 'free', '--retro-R', '4', '8')).boilerplate
    assert 'as published' in other and 'few temporal modes' not in other and '(R = 4, 8)' in other


def test_the_verdict_is_read_from_what_was_written(kspace, root, config):
    import json

    write_kspace(root, session='a', entities='_run-2')
    settings = config()
    plan = build(settings).plans[0]
    sidecar = settings.output_dir / f'{STEM}_part-mag_desc-recon_cine.json'
    sidecar.parent.mkdir(parents=True)
    sidecar.write_text(json.dumps({'Verdict': 'do not use', 'Reasons': ['chi^2 is 9.00', 'R = 30']}))
    outcome = collect_outcomes(settings, [plan], ran=True)[0]
    assert outcome.verdicts == ['sub-01_ses-a_run-1_cine: do not use (chi^2 is 9.00; R = 30)']
    assert collect_outcomes(settings, [plan], ran=False)[0].verdicts == []
