"""The graph of ``--recon superres``."""

import pytest

from bids_gsrecon.cli.build import build
from bids_gsrecon.cli.outcome import missing_results
from bids_gsrecon.recon.superres import SuperresOptions
from tests.bids_datasets import healthy, sink_paths, write_thick

NODE = 'sub_01_wf.session_wf.T2w_wf.super_resolve'


@pytest.fixture
def config(config):
    return lambda *arguments: config(*arguments, '--recon', 'superres')


def test_names_of_the_results(tmp_path, config):
    root = healthy(tmp_path / 'bids')
    write_thick(root, '01', entities='_acq-ax_run-01')
    paths = sink_paths(build(config()).workflow)
    stem = 'sub-01/anat/sub-01_acq-ax_run-01'
    assert [path for path in paths if path.startswith(stem)] == [
        f'{stem}_desc-field_T2w.h5',
        f'{stem}_res-iso_desc-amplitude_T2w.nii.gz',
        f'{stem}_res-iso_desc-relaxationproxy_T2w.nii.gz',
        f'{stem}_res-iso_desc-sr_T2w.nii.gz',
        f'{stem}_res-iso_desc-supportT2w_mask.nii.gz',
    ]
    assert len(paths) == len(set(paths)) == 15, 'no two results share a name'


def test_the_sidecar_speaks_of_an_image(tmp_path, config):
    healthy(tmp_path / 'bids')
    workflow = build(config()).workflow
    sink = workflow.get_node('sub_01_wf.session_wf.T2w_wf.ds_superres_wf.ds_image')
    assert sink.interface.inputs.metadata['Description'].startswith('one image, on a finer grid')


def test_what_a_session_must_have_made(tmp_path, config):
    healthy(tmp_path / 'bids')
    settings = config()
    plan = build(settings).plans[0]
    assert missing_results(settings, plan) == [
        'sub-01/anat/sub-01_res-iso_desc-sr_FLAIR.nii.gz',
        'sub-01/anat/sub-01_res-iso_desc-sr_T2w.nii.gz',
    ]


def test_options_reach_the_node(tmp_path, config):
    healthy(tmp_path / 'bids')
    inputs = build(config()).workflow.get_node(NODE).interface.inputs
    assert (inputs.output_mm, inputs.slice_axis, inputs.slice_thickness_mm) == (4.0, 2, 8.0)
    assert inputs.memory_limit_gb > 0
    arguments = ['--output-resolution', '2', '--random-seed', '9', '--superres-model', 'physics', '--sloppy']
    inputs = build(config(*arguments, '--slice-profile', 'gaussian')).workflow.get_node(NODE).interface.inputs
    assert (inputs.output_mm, inputs.seed, inputs.voxel_profile) == (2.0, 9, 'gaussian')
    options = SuperresOptions(**inputs.options)
    assert options.model == 'physics' and not options.scale_learning
    assert options.iterations < SuperresOptions().iterations


def test_memory_grows_with_the_output(tmp_path, config):
    healthy(tmp_path / 'bids')
    coarse, fine = (
        build(config('--output-resolution', mm)).workflow.get_node(NODE).mem_gb for mm in ('2', '0.5')
    )
    assert fine > coarse + 0.5


def test_two_builds_hash_alike(tmp_path, config):
    """The work folder of a run is found again by the next one."""
    healthy(tmp_path / 'bids')
    arguments = ['--nprocs', '3', '--omp-nthreads', '2', '--mem', '7G']
    digests = [
        build(settings).workflow.get_node(NODE).interface.inputs.get_hashval()[1]
        for settings in (config(), config(*arguments))
    ]
    assert digests[0] == digests[1]


def test_methods_text_says_what_was_learned(tmp_path, config):
    healthy(tmp_path / 'bids')
    text = build(config()).boilerplate
    for words in ('2603.09621', 'SMORE', 'Zero-Shot', 'finest voxel size'):
        assert words in text
    assert '[@' not in text and 'N4' not in text
    plain = build(config('--superres-model', 'physics', '--output-resolution', '2')).boilerplate
    assert 'SMORE' not in plain and 'isotropic voxels of 2 mm' in plain
