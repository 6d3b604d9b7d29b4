"""What ``--recon svr`` makes of a dataset, and when ``auto`` chooses it."""

import json

import nibabel as nib
import numpy as np
import pytest

from tests.bids_datasets import anat, healthy, write_image, write_t1w, write_thick


@pytest.fixture
def plan(plan):
    return lambda *arguments, recon='svr': plan(*arguments, '--recon', recon)


def orthogonal(root, label='01', suffix='T2w', n=3, entities='_run-{}', **kwargs):
    """Stacks along the three axes of the same box."""
    return [
        write_thick(root, label, suffix, axis=2 - k % 3, entities=entities.format(k + 1), **kwargs)
        for k in range(n)
    ]


def volumes(item):
    return {
        target.name.stem(): [stack.path.name for stack in target.stacks]
        for session in item.sessions
        for target in session.targets
    }


def test_runs_become_one_volume(root, plan):
    paths = orthogonal(root)
    item = plan()['01']
    assert (item.recon, item.reason, item.errors) == ('svr', 'as asked for', [])
    assert volumes(item) == {'sub-01_rec-svr_T2w': [path.name for path in paths]}
    target = item.sessions[0].targets[0]
    assert [stack.axis for stack in target.stacks] == [2, 1, 0]
    assert (target.output_mm, target.mask_label, target.template) == (0.8, 'brain', '')
    assert len(item.messages) == 1 and 'made of 3 stacks, none of them with a given mask' in item.messages[0]
    assert plan('--output-resolution', '1.5')['01'].sessions[0].targets[0].output_mm == 1.5


def test_entities_that_differ_are_dropped_from_the_name(root, plan):
    for n, (acq, axis) in enumerate((('ax', 2), ('cor', 1), ('sag', 0)), 1):
        write_thick(root, '01', axis=axis, entities=f'_acq-{acq}_dir-AP_run-{n}')
    for n, axis in enumerate((2, 1), 1):
        write_thick(root, '02', axis=axis, entities=f'_acq-haste_run-{n}')
        write_thick(root, '03', axis=axis, entities=f'_rec-norm_run-{n}')
    assert list(volumes(plan()['01'])) == ['sub-01_rec-svr_dir-AP_T2w']
    assert list(volumes(plan()['02'])) == ['sub-02_acq-haste_rec-svr_T2w']
    assert list(volumes(plan()['03'])) == ['sub-03_rec-normsvr_T2w']


def test_an_acquisition_that_is_complete_is_a_volume_by_itself(root, plan):
    for acq in ('haste', 'trufi'):
        orthogonal(root, entities=f'_acq-{acq}_run-{{}}')
    assert {name: len(stacks) for name, stacks in volumes(plan()['01']).items()} == {
        'sub-01_acq-haste_rec-svr_T2w': 3,
        'sub-01_acq-trufi_rec-svr_T2w': 3,
    }
    write_thick(root, '01', entities='_acq-more_run-1')
    assert {name: len(stacks) for name, stacks in volumes(plan()['01']).items()} == {'sub-01_rec-svr_T2w': 7}


def test_sessions_and_contrasts_are_kept_apart(root, plan):
    for session in 'ab':
        orthogonal(root, session=session)
    orthogonal(root, suffix='FLAIR', n=2, session='b')
    write_thick(root, '01', 'PDw', session='b')
    item = plan()['01']
    assert [session.session for session in item.sessions] == ['a', 'b']
    assert {name: len(stacks) for name, stacks in volumes(item).items()} == {
        'sub-01_ses-a_rec-svr_T2w': 3,
        'sub-01_ses-b_rec-svr_FLAIR': 2,
        'sub-01_ses-b_rec-svr_T2w': 3,
    }
    assert [[t.mask_label for t in s.targets] for s in item.sessions] == [
        ['brain'],
        ['brainFLAIR', 'brainT2w'],
    ]
    assert any('sub-01_ses-b_PDw.nii.gz' in text and 'not used' in text for text in item.messages)
    assert [s.session for s in plan('--session-label', 'b')['01'].sessions] == ['b']


def test_echoes_are_no_stacks_of_one_volume(root, plan):
    for echo, axis in ((1, 2), (2, 1)):
        write_thick(root, '01', axis=axis, entities=f'_echo-{echo}')
    assert 'no two stacks of one contrast' in plan()['01'].errors[0]


def test_masks_are_those_of_each_run(root, tmp_path, plan):
    paths = orthogonal(root)
    for run in (1, 3):
        write_image(
            tmp_path / 'prep' / 'sub-01' / 'anat' / f'sub-01_run-{run}_desc-brain_mask.nii.gz',
            np.ones((4, 4, 4), np.uint8),
            np.eye(4),
        )
    item = plan('-d', tmp_path / 'prep')['01']
    masks = [stack.mask.rpartition('/')[2] for stack in item.sessions[0].targets[0].stacks]
    assert masks == ['sub-01_run-1_desc-brain_mask.nii.gz', '', 'sub-01_run-3_desc-brain_mask.nii.gz']
    assert '2 of them with a given mask' in item.messages[0] and paths[0].name in item.messages[0]


def test_metadata_of_the_slices_is_inherited(root, plan):
    orthogonal(root)
    (root / 'T2w.json').write_text(json.dumps({'SliceThickness': 6.0, 'Manufacturer': 'nobody'}))
    stacks = plan()['01'].sessions[0].targets[0].stacks
    assert [stack.metadata for stack in stacks] == [{'SliceThickness': 6.0}] * 3


@pytest.mark.parametrize(
    ('make', 'said'),
    [
        (lambda root: write_thick(root, '01'), ('sub-01_T2w.nii.gz', 'two or more', '--recon superres')),
        (lambda root: write_t1w(root, '01'), ('no stack of thick slices', 'sub-01_T1w.nii.gz')),
        (lambda root: (root / 'sub-01').mkdir(), ('no anatomical image',)),
        (lambda root: (write_thick(root, '01'), write_thick(root, '01', 'FLAIR', axis=1)), ('one contrast',)),
    ],
)
def test_what_cannot_be_done_is_one_sentence(root, plan, make, said):
    make(root)
    item = plan()['01']
    assert item.sessions == [] and len(item.errors) == 1
    assert all(words in item.errors[0] for words in said)


def test_stacks_of_different_places_are_an_error(root, plan):
    away = orthogonal(root)[1]
    image = nib.load(away)
    affine = image.affine.copy()
    affine[:3, 3] += 300
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), affine), away)
    item = plan()['01']
    assert item.sessions == [] and 'do not overlap' in item.errors[0] and away.name in item.errors[0]
    assert plan(recon='auto')['01'].recon != 'svr'


def test_parallel_stacks_are_done_if_asked_for_with_a_warning(root, plan):
    for run in (1, 2):
        write_thick(root, '01', entities=f'_run-{run}')
    item = plan()['01']
    assert len(item.sessions) == 1 and item.errors == []
    assert any('same direction' in text for text in item.messages)
    assert plan(recon='auto')['01'].recon == 'harmonize'


def test_a_truncated_stack_is_an_error_and_the_others_run(root, plan):
    broken = orthogonal(root)[0]
    broken.write_bytes(broken.read_bytes()[:500])
    item = plan()['01']
    assert len(item.errors) == 1 and broken.name in item.errors[0]
    assert [len(stacks) for stacks in volumes(item).values()] == [2]


def test_the_space_of_a_reference_is_said_to_have_no_effect(root, plan):
    orthogonal(root)
    assert '--output-spaces T1w has no effect' in plan('--output-spaces', 'T1w')['01'].messages[0]


def test_maps_and_series_are_no_stacks(root, plan):
    orthogonal(root, suffix='T1rho')
    assert 'no stack of thick slices' in plan()['01'].errors[0]
    assert plan(recon='auto')['01'].recon != 'svr'
    for path in orthogonal(root, '02'):
        image = nib.load(path)
        data = np.repeat(image.get_fdata(dtype=np.float32)[..., None], 2, axis=3)
        nib.save(nib.Nifti1Image(data, image.affine), path)
    assert 'no stack of thick slices' in plan()['02'].errors[0]


def test_a_single_slice_is_an_error(root, plan):
    orthogonal(root, n=2)
    folder, stem = anat(root, '01')
    flat = nib.load(folder / f'{stem}_run-1_T2w.nii.gz')
    nib.save(flat.slicer[:, :, :1], folder / f'{stem}_run-3_T2w.nii.gz')
    item = plan()['01']
    assert len(item.sessions[0].targets[0].stacks) == 2
    assert len(item.errors) == 1 and 'run-3' in item.errors[0]


def test_auto_chooses_it_without_an_isotropic_t1w(root, plan):
    orthogonal(root, '01')
    item = plan(recon='auto')['01']
    assert item.recon == 'svr' and item.errors == []
    assert item.reason == 'no isotropic T1w, but stacks of thick slices in different directions (3 T2w)'
    orthogonal(root, '02', 'FLAIR', n=2)
    assert plan(recon='auto')['02'].recon == 'svr', 'whatever the contrast'
    orthogonal(root, '03', 'T1w')
    assert '3 T1w' in plan(recon='auto')['03'].reason
    orthogonal(root, '04')
    write_t1w(root, '04', sizes=(4.0, 4.0, 16.0))
    assert plan(recon='auto')['04'].recon == 'svr', 'a thick T1w is no reference'


def test_auto_leaves_the_rest_to_the_other_methods(tmp_path, root, plan):
    orthogonal(root, '01')
    write_t1w(root, '01')
    assert plan(recon='auto')['01'].recon == 'harmonize'
    orthogonal(root, '02')
    assert plan('--reference', 'T2w', recon='auto')['02'].recon != 'svr', 'the user wants a reference'
    write_thick(root, '03')
    write_thick(root, '03', 'FLAIR', axis=1)
    assert plan(recon='auto')['03'].recon == 'harmonize', 'two contrasts are no two stacks'
    write_thick(root, '04', axis=1)
    assert plan(recon='auto')['04'].recon == 'superres'
    healthy(tmp_path / 'bids', labels=('05',))
    assert plan(recon='auto')['05'].recon == 'harmonize'


def test_templates_are_chosen_by_age(root, tmp_path, plan):
    atlas = tmp_path / 'atlas'
    for week in (28, 32):
        write_image(atlas / f'STA{week}.nii.gz', np.ones((4, 4, 4), np.float32), np.eye(4))
    orthogonal(root, '01', session='a')
    orthogonal(root, '01', session='b')
    orthogonal(root, '02')
    orthogonal(root, '03')
    table = 'participant_id\tgestational_age\nsub-01\t28.3\nsub-02\t31.6\nsub-03\tn/a\n'
    (root / 'participants.tsv').write_text(table)
    (root / 'sub-01' / 'sub-01_sessions.tsv').write_text('session_id\tscan_age\nses-b\t32.0\n')
    plans = plan('--svr-template', atlas)
    targets = [session.targets[0] for session in plans['01'].sessions]
    assert [target.gestational_age_weeks for target in targets] == [28.3, 32.0]
    assert [target.template.rpartition('/')[2] for target in targets] == ['STA28.nii.gz', 'STA32.nii.gz']
    assert targets[0].name.stem() == 'sub-01_ses-a_rec-svr_space-template_T2w'
    assert plans['02'].sessions[0].targets[0].template.endswith('STA32.nii.gz')
    assert plans['03'].sessions == [] and 'sub-03 has no gestational age' in plans['03'].errors[0]
    one = plan('--svr-template', atlas / 'STA28.nii.gz')['03']
    assert one.errors == [] and one.sessions[0].targets[0].template.endswith('STA28.nii.gz')
    (root / 'participants.tsv').write_text('participant_id\tgestational_age\nsub-02\tnewborn\n')
    assert "'newborn'" in plan('--svr-template', atlas)['02'].errors[0]
