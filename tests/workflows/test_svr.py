"""The graph of ``--recon svr``."""

import pytest

from bids_gsrecon.cli.build import build
from bids_gsrecon.cli.outcome import missing_results
from bids_gsrecon.interfaces.bids import FolderSink
from bids_gsrecon.recon.svr.types import SvrOptions
from tests.bids_datasets import sink_paths, write_thick

WORKFLOW = 'sub_01_wf.session_wf.recsvr_T2w_wf'


@pytest.fixture
def stacks(root):
    for run, axis in enumerate((2, 1, 0), 1):
        write_thick(root, '01', axis=axis, entities=f'_run-{run}', metadata={'SliceThickness': 8.0})
    return root


def node(workflow, name):
    return workflow.get_node(f'{WORKFLOW}.{name}')


def test_names_of_the_results(stacks, config):
    settings = config()
    made = build(settings)
    stem = 'sub-01/anat/sub-01_rec-svr_desc'
    assert sink_paths(made.workflow) == [
        f'{stem}-brain_mask.nii.gz',
        f'{stem}-coverage_T2w.nii.gz',
        f'{stem}-field_T2w.h5',
        f'{stem}-recon_T2w.nii.gz',
        f'{stem}-slices_T2w.tsv',
        f'{stem}-stacks_T2w.tsv',
        f'{stem}-uncertainty_T2w.nii.gz',
    ]
    poses = node(made.workflow, 'ds_svr_wf.ds_poses').interface
    assert isinstance(poses, FolderSink) and poses.inputs.out_path == 'sub-01/svr/sub-01_rec-svr_T2w'
    assert missing_results(settings, made.plans[0]) == [f'{stem}-recon_T2w.nii.gz']
    metadata = node(made.workflow, 'ds_svr_wf.ds_image').interface.inputs.metadata
    assert metadata['Sources'] == [f'bids:raw:sub-01/anat/sub-01_run-{n}_T2w.nii.gz' for n in (1, 2, 3)]
    assert 'SpatialReference' not in metadata


def test_two_contrasts_of_a_session_share_no_name(stacks, config):
    for run, axis in enumerate((2, 1), 1):
        write_thick(stacks, '01', 'FLAIR', axis=axis, entities=f'_run-{run}')
    paths = sink_paths(build(config()).workflow)
    assert len(paths) == len(set(paths)) == 14
    assert 'sub-01/anat/sub-01_rec-svr_desc-brainFLAIR_mask.nii.gz' in paths


def test_options_reach_the_nodes(stacks, config, tmp_path):
    workflow = build(config()).workflow
    inputs = node(workflow, 'reconstruct').interface.inputs
    assert SvrOptions(**inputs.options) == SvrOptions(resolution_mm=0.8)
    assert inputs.memory_limit_gb > 0
    assert node(workflow, 'prepare_stacks').interface.inputs.metadata == [{'SliceThickness': 8.0}] * 3
    correct = node(workflow, 'correct_stacks').interface.inputs
    assert (correct.bias_field, correct.denoise) == (True, False)
    arguments = ['--output-resolution', '2', '--no-svr-slice-motion', '--no-svr-robust', '--sloppy']
    workflow = build(config(*arguments, '--svr-denoise', '--svr-slice-order', 'ascending')).workflow
    options = SvrOptions(**node(workflow, 'reconstruct').interface.inputs.options)
    assert (options.resolution_mm, options.slice_motion, options.robust) == (2.0, False, False)
    assert options.joint_steps < SvrOptions().joint_steps
    assert node(workflow, 'prepare_stacks').interface.inputs.slice_order == 'ascending'
    assert node(workflow, 'correct_stacks').interface.inputs.denoise


def test_without_corrections_there_is_no_step_for_them(stacks, config):
    workflow = build(config('--no-svr-bias-correction')).workflow
    assert node(workflow, 'correct_stacks') is None
    assert node(workflow, 'reconstruct') is not None


def test_a_template_names_the_space(stacks, config, tmp_path):
    template = write_thick(tmp_path / 'atlas', '00')
    workflow = build(config('--svr-template', template)).workflow
    assert 'sub-01/anat/sub-01_rec-svr_space-template_desc-recon_T2w.nii.gz' in sink_paths(workflow)
    assert node(workflow, 'reconstruct').interface.inputs.template == str(template)
    metadata = node(workflow, 'ds_svr_wf.ds_mask').interface.inputs.metadata
    assert metadata['SpatialReference'] == f'file://{template}'
    plain = build(config()).workflow
    hashes = [node(w, 'prepare_stacks').interface.inputs.get_hashval()[1] for w in (plain, workflow)]
    assert hashes[0] == hashes[1], 'what does not depend on it is not done again'
    pictures = node(workflow, 'ds_svr_wf.ds_pictures').interface.inputs.entities
    assert 'space' not in pictures, 'the report shows the last run'


def test_memory_grows_with_the_resolution_only_as_far_as_stacks_overlap(stacks, config):
    coarse, fine = (
        node(build(config('--output-resolution', mm)).workflow, 'reconstruct').mem_gb for mm in ('2', '0.5')
    )
    assert fine > coarse + 0.5
    assert coarse < 1.0


def test_two_builds_hash_alike(stacks, config):
    """The work folder of a run is found again by the next one."""
    arguments = ['--nprocs', '3', '--omp-nthreads', '2', '--mem', '7G']
    digests = [
        [
            node(build(settings).workflow, name).interface.inputs.get_hashval()[1]
            for name in ('prepare_stacks', 'reconstruct')
        ]
        for settings in (config(), config(*arguments))
    ]
    assert digests[0] == digests[1]


def test_methods_text_says_what_was_done(stacks, config):
    text = build(config()).boilerplate
    for words in (
        '2603.00145',
        'N4ITK',
        'complete outlier removal',
        'voxels of 0.8 mm',
        'jointly with the volume',
    ):
        assert words in text
    assert '[@' not in text and 'denois' not in text and 'template' not in text
    plain = build(config('--no-svr-bias-correction', '--svr-denoise', '--no-svr-slice-motion')).boilerplate
    assert 'N4' not in plain and 'non-local means' in plain and 'whole stacks.' in plain
