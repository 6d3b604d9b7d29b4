"""What ``--recon cine`` makes of a dataset, and when ``auto`` chooses it."""

import pytest

from bids_gsrecon.workflows.plan_cine import estimated_memory_gb
from tests.bids_datasets import healthy, write_image, write_thick
from tests.cine_cases import write_kspace


@pytest.fixture
def plan(plan):
    return lambda *arguments, recon='cine': plan(*arguments, '--recon', recon)


def series(item):
    return [target.name.path('').as_posix() for session in item.sessions for target in session.targets]


def test_a_participant_may_have_nothing_but_sourcedata(root, plan):
    path = write_kspace(root, slices=2)
    item = plan()['01']
    assert (item.recon, item.reason, item.errors) == ('cine', 'as asked for', [])
    assert series(item) == ['sub-01/cine/sub-01_cine']
    target = item.sessions[0].targets[0]
    assert target.file == str(path)
    assert (target.matrix, target.n_slices, target.n_frames, target.n_coils) == ([32, 25], 2, 5, 4)
    assert item.messages == ['sub-01_cine.h5: 32 x 25 x 2 slice(s) x 5 frames, 4 coils, R = 2.1']


def test_sessions_and_several_files(root, plan):
    write_kspace(root, session='a', entities='_acq-sax')
    write_kspace(root, session='a', entities='_acq-4ch')
    write_kspace(root, session='b', extension='.mrd')
    write_kspace(root, '02')
    plans = plan()
    assert series(plans['01']) == [
        'sub-01/ses-a/cine/sub-01_ses-a_acq-4ch_cine',
        'sub-01/ses-a/cine/sub-01_ses-a_acq-sax_cine',
        'sub-01/ses-b/cine/sub-01_ses-b_cine',
    ]
    assert [session.session for session in plans['01'].sessions] == ['a', 'b']
    assert series(plans['02']) == ['sub-02/cine/sub-02_cine']
    plans = plan('--session-label', 'b', '--participant-label', '01')
    assert list(plans) == ['01'] and [session.session for session in plans['01'].sessions] == ['b']
    plans = plan('--session-label', 'b')
    assert 'no k-space in session b' in plans['02'].errors[0]


def test_a_broken_file_is_an_error_and_the_others_run(root, plan):
    broken = write_kspace(root, entities='_run-1')
    broken.write_bytes(broken.read_bytes()[:9000])
    write_kspace(root, entities='_run-2')
    item = plan()['01']
    assert series(item) == ['sub-01/cine/sub-01_run-2_cine']
    assert len(item.errors) == 1 and broken.name in item.errors[0] and 'truncated' in item.errors[0]


def test_two_files_of_one_name_are_not_both_written(root, plan):
    write_kspace(root)
    write_kspace(root, extension='.mrd')
    item = plan()['01']
    assert len(item.sessions[0].targets) == 1
    assert len(item.errors) == 1 and 'sub-01_cine.mrd has the name of' in item.errors[0]


def test_a_name_must_fit_its_folder(root, plan):
    path = write_kspace(root, session='a')
    path.rename(path.with_name('sub-01_cine.h5'))
    item = plan()['01']
    assert item.sessions == [] and 'must begin with sub-01_ses-a_' in item.errors[0]


def test_one_coil_is_refused(root, plan):
    write_kspace(root, coils=1)
    assert 'one coil' in plan()['01'].errors[0]


def test_nothing_found_says_where_it_was_looked_for(root, plan):
    write_thick(root, '01')
    item = plan()['01']
    assert item.sessions == [] and 'sourcedata/sub-01' in item.errors[0]


def test_broken_images_do_not_matter_here(root, plan):
    write_kspace(root)
    image = write_thick(root, '01')
    image.write_bytes(image.read_bytes()[:100])
    assert plan()['01'].errors == []
    item = plan(recon='auto')['01']
    assert item.recon == 'cine' and item.errors == [] and image.name in item.messages[0]


def test_retrospective_undersampling_needs_full_data(root, plan):
    write_kspace(root, entities='_run-1', acceleration=1.0)
    write_kspace(root, entities='_run-2', acceleration=3.0)
    item = plan('--retro-R', '4', '8')['01']
    assert [target.retro for target in item.sessions[0].targets] == [[4.0, 8.0], []]
    assert any('run-2_cine.h5 is undersampled already' in text for text in item.messages)
    assert not any('run-1_cine.h5 is undersampled' in text for text in item.messages)


def test_regions_are_found_in_derivatives(root, tmp_path, plan):
    import numpy as np

    write_kspace(root, session='a', entities='_run-1')
    write_kspace(root, session='a', entities='_run-2')
    name = 'sub-01_ses-a_run-2_desc-roi_dseg.nii.gz'
    drawn = tmp_path / 'drawn' / 'sub-01' / 'ses-a' / 'cine' / name
    write_image(drawn, np.ones((4, 4, 1), np.uint8), np.eye(4))
    item = plan('-d', tmp_path / 'drawn')['01']
    assert [target.regions for target in item.sessions[0].targets] == ['', str(drawn)]


def test_memory_grows_with_the_header_and_too_little_is_refused(root, plan):
    write_kspace(root)
    target = plan()['01'].sessions[0].targets[0]
    small = estimated_memory_gb(target)
    target.matrix, target.n_frames, target.n_coils = [256, 256], 30, 30
    target.n_lines, target.n_samples = 30 * 256, 512
    assert small < 1.0 < 4.0 < estimated_memory_gb(target)
    assert 'give more (--mem)' in plan('--mem', '0.2G')['01'].errors[0]


def test_auto_chooses_it_unless_there_is_an_exam(tmp_path, root, plan):
    write_kspace(root, '01')
    write_kspace(root, '02', session='a')
    write_kspace(root, '02', session='b')
    healthy(root, labels=('03',))
    write_kspace(root, '03')
    plans = plan(recon='auto')
    assert [plans[label].recon for label in ('01', '02', '03')] == ['cine', 'cine', 'harmonize']
    assert plans['02'].reason.endswith('but k-space under sourcedata (2 cine files)')
    assert any('it has k-space too (1 cine file)' in text for text in plans['03'].messages)
    assert plan('--session-label', 'a', recon='auto')['02'].reason.endswith('(1 cine file)')


def test_other_methods_do_not_see_sourcedata(root, plan):
    write_thick(root, '01')
    write_kspace(root, '02')
    assert list(plan(recon='superres')) == ['01']


def test_a_gpu_is_said_to_have_no_effect(root, config, monkeypatch):
    from bids_gsrecon.cli import checks
    from bids_gsrecon.workflows.plan import plan_participants

    monkeypatch.setattr(checks, 'check_cuda', lambda: None)
    write_kspace(root)
    (item,) = plan_participants(config('--recon', 'cine', '--device', 'cuda'), {})
    assert any('--device cuda has no effect' in text for text in item.messages)
