"""The graphs of ``--recon m2asr``."""

import pytest

from bids_gsrecon.cli.build import build
from bids_gsrecon.cli.outcome import missing_results
from bids_gsrecon.cli.parser import parse_args
from bids_gsrecon.interfaces.m2asr_files import save_weights
from tests.bids_datasets import sink_paths, write_t1w
from tests.m2asr_fakes import fake_model
from tests.workflows.test_plan_m2asr import write_coarse

WORKFLOW = 'sub_01_wf.session_wf.T2w_wf'


@pytest.fixture
def dataset(root, tmp_path):
    write_t1w(root, '01')
    write_coarse(root, '01', metadata={'SliceEncodingDirection': 'k', 'SliceThickness': 6.0})
    return save_weights(tmp_path / 'net.h5', fake_model())


@pytest.fixture
def applied(config, dataset):
    return lambda *arguments: config('--recon', 'm2asr', '--weights', dataset, *arguments)


@pytest.fixture
def training(tmp_path, dataset):
    folders = [tmp_path / 'bids', tmp_path / 'out', 'group', '-w', tmp_path / 'work']
    return lambda *arguments: parse_args([*folders, '--recon', 'm2asr', '--train', *arguments])


def test_names_of_the_results(applied, dataset):
    settings = applied()
    made = build(settings)
    image = 'sub-01/anat/sub-01_res-inplane_desc-sr_T2w.nii.gz'
    assert sink_paths(made.workflow) == ['sub-01/anat/sub-01_from-T2w_to-T1w_mode-image_xfm.txt', image]
    assert missing_results(settings, made.plans[0]) == [image]
    metadata = made.workflow.get_node(f'{WORKFLOW}.ds_m2asr_wf.ds_image').interface.inputs.metadata
    assert metadata['Sources'] == [
        'bids:raw:sub-01/anat/sub-01_T2w.nii.gz',
        'bids:raw:sub-01/anat/sub-01_T1w.nii.gz',
        f'file://{dataset}',
    ]
    assert 'SpatialReference' not in metadata


def test_settings_reach_the_node(applied, dataset):
    inputs = build(applied('--device', 'cpu')).workflow.get_node(f'{WORKFLOW}.apply_network').interface.inputs
    assert (inputs.weights, inputs.contrast, inputs.slice_axis) == (str(dataset), 'T2w', 2)
    assert inputs.slice_thickness_mm == 6.0 and inputs.output_shape == [20, 20, 10]
    assert inputs.options == {'device': 'cpu'}


def test_two_builds_hash_alike_and_other_weights_do_not(applied, tmp_path, config):
    def digest(settings):
        node = build(settings).workflow.get_node(f'{WORKFLOW}.apply_network')
        return node.interface.inputs.get_hashval(hash_method='content')[1]

    first = digest(applied())
    assert digest(applied('--nprocs', '3', '--omp-nthreads', '2')) == first
    (tmp_path / 'other').mkdir()
    other = save_weights(tmp_path / 'other' / 'net.h5', fake_model(seed=1))
    assert digest(config('--recon', 'm2asr', '--weights', other)) != first


def test_methods_text_says_what_the_network_is(applied):
    text = build(applied()).boilerplate
    for words in ('Anatomy Guidance', 'trained on T2w images of 1 subject, scored on 1 others', 'N4ITK'):
        assert words in text
    assert '[@' not in text


def test_a_training_makes_pairs_and_writes_nothing_else(training):
    made = build(training())
    assert sink_paths(made.workflow) == []
    node = made.workflow.get_node(f'{WORKFLOW}.make_pair').interface.inputs
    assert (node.subject, node.contrast, node.reference_contrast) == ('sub-01', 'T2w', 'T1w')
    assert node.out_path.endswith('work/m2asr_pairs/sub-01_T2w.h5')
    assert missing_results(training(), made.plans[0]) == [node.out_path]
