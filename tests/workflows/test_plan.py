import gzip
import json
import struct

import nibabel as nib
import numpy as np
import pytest

from tests.bids_datasets import (
    affine,
    anat,
    brain,
    healthy,
    write_image,
    write_t1w,
    write_thick,
)


def contrasts(session):
    return [target.name.stem() for target in session.targets]


def test_healthy_participants(tmp_path, plan):
    healthy(tmp_path / 'bids', labels=('01', '02'))
    plans = plan()
    assert list(plans) == ['01', '02']
    session = plans['01'].sessions[0]
    assert plans['01'].recon == 'harmonize'
    assert 'FLAIR, T2w' in plans['01'].reason
    assert plans['01'].errors == []
    assert contrasts(session) == ['sub-01_FLAIR', 'sub-01_T2w']
    assert [target.slice_axis for target in session.targets] == [1, 2]
    assert [target.slice_thickness_mm for target in session.targets] == [8.0, 8.0]
    assert {target.slice_profile for target in session.targets} == {'box'}


def test_only_wanted_participants_are_looked_at(tmp_path, plan):
    healthy(tmp_path / 'bids', labels=('01', '02'))
    assert list(plan('--participant-label', '02')) == ['02']
    unknown = plan('--participant-label', '02', '77')
    assert unknown['02'].errors == []
    assert 'sub-77 is not in' in unknown['77'].errors[0]


def test_no_t1w_names_the_finest_other_contrast(root, plan):
    write_thick(root, '01', 'T2w', thickness=16.0)
    write_thick(root, '01', 'FLAIR')
    item = plan('--recon', 'harmonize')['01']
    assert item.sessions == []
    assert len(item.errors) == 1
    assert 'no T1w' in item.errors[0]
    assert '--reference FLAIR' in item.errors[0]


def test_thick_t1w_is_no_scaffold_unless_asked_for(root, plan):
    write_t1w(root, '01', sizes=(4.0, 4.0, 16.0))
    write_thick(root, '01', 'T2w')
    item = plan()['01']
    assert item.sessions == []
    assert 'cannot guide the other contrasts' in item.errors[0]
    assert '--reference T2w' in item.errors[0]
    chosen = plan('--reference', 'T2w')['01']
    assert chosen.errors == []
    assert contrasts(chosen.sessions[0]) == ['sub-01_T1w']


def test_finest_of_several_t1w_is_the_reference(root, plan):
    coarse = write_t1w(root, '01', sizes=(5.0, 5.0, 5.0), entities='_run-1')
    fine = write_t1w(root, '01', entities='_run-2')
    thick = write_t1w(root, '01', sizes=(2.0, 2.0, 10.0), entities='_run-3')
    write_thick(root, '01')
    item = plan()['01']
    assert item.sessions[0].reference == str(fine)
    assert contrasts(item.sessions[0]) == ['sub-01_T2w']
    assert any(coarse.name in text and thick.name in text for text in item.messages)


def test_contrast_enhanced_t1w_is_a_contrast(root, plan):
    plain = write_t1w(root, '01')
    write_thick(root, '01', 'T1w', entities='_ce-gadolinium')
    session = plan()['01'].sessions[0]
    assert session.reference == str(plain)
    assert contrasts(session) == ['sub-01_ce-gadolinium_T1w']


def test_sessions_use_their_own_reference_or_the_other_ones(root, plan):
    first = write_t1w(root, '01', session='a')
    for session in ('a', 'b'):
        write_thick(root, '01', session=session)
    item = plan()['01']
    assert [s.session for s in item.sessions] == ['a', 'b']
    assert [s.reference for s in item.sessions] == [str(first)] * 2
    assert any('ses-b has no T1w' in text and 'ses-a' in text for text in item.messages)
    second = write_t1w(root, '01', session='b')
    assert [s.reference for s in plan()['01'].sessions] == [str(first), str(second)]
    assert [s.session for s in plan('--session-label', 'b')['01'].sessions] == ['b']


def test_runs_and_acquisitions_are_all_kept(root, plan):
    write_t1w(root, '01')
    for entities in ('_acq-ax_run-01', '_acq-ax_run-02', '_acq-cor'):
        write_thick(root, '01', entities=entities)
    assert contrasts(plan()['01'].sessions[0]) == [
        'sub-01_acq-ax_run-01_T2w',
        'sub-01_acq-ax_run-02_T2w',
        'sub-01_acq-cor_T2w',
    ]


def test_filters_choose_files(root, plan):
    write_t1w(root, '01', entities='_acq-good')
    write_t1w(root, '01', entities='_acq-bad', sizes=(2.0, 2.0, 2.0))
    write_thick(root, '01', entities='_acq-ax')
    write_thick(root, '01')
    item = plan(filters={'t1w': {'acquisition': 'good'}, 't2w': {'acquisition': None}})['01']
    assert 'acq-good' in item.sessions[0].reference
    assert contrasts(item.sessions[0]) == ['sub-01_T2w']


def test_database_is_reused_for_other_participants(tmp_path, plan):
    healthy(tmp_path / 'bids', labels=('01', '02'))
    for label in ('01', '02'):
        item = plan('--participant-label', label, '--bids-database-dir', tmp_path / 'db')[label]
        assert len(item.sessions[0].targets) == 2


def test_mask_and_scaffold_from_derivatives(tmp_path, plan):
    healthy(tmp_path / 'bids')
    folder = tmp_path / 'prep' / 'sub-01' / 'anat'
    mask = write_image(folder / 'sub-01_desc-brain_mask.nii.gz', np.ones((4, 4, 4), np.uint8), np.eye(4))
    (folder / 'sub-01_desc-scaffold_T1w.h5').write_bytes(b'x')
    session = plan('-d', tmp_path / 'prep')['01'].sessions[0]
    assert session.mask == str(mask)
    assert session.scaffold.endswith('sub-01_desc-scaffold_T1w.h5')


def series(path, n_volumes):
    data = np.repeat(brain((20, 20, 10), (4, 4, 8))[..., None], n_volumes, axis=3)
    return write_image(path, data, affine((4, 4, 8)))


def test_diffusion_and_perfusion_are_averaged(root, plan):
    write_t1w(root, '01')
    folder = root / 'sub-01'
    dwi = series(folder / 'dwi' / 'sub-01_dir-AP_dwi.nii.gz', 4)
    dwi.with_name('sub-01_dir-AP_dwi.bval').write_text('0 1000 5 1000\n')
    series(folder / 'perf' / 'sub-01_asl.nii.gz', 3)
    series(folder / 'perf' / 'sub-01_m0scan.nii.gz', 2)
    item = plan()['01']
    assert item.errors == []
    found = {target.name.suffix: target for target in item.sessions[0].targets}
    assert (found['dwi'].average, found['dwi'].volumes) == (True, [0, 2])
    assert (found['asl'].average, found['asl'].volumes) == (True, [])
    assert found['m0scan'].average


@pytest.mark.parametrize(
    ('bval', 'said'),
    [(None, 'has no sub-01_dwi.bval'), ('1000 900', 'no b=0'), ('0', '1 values for 2 volumes')],
)
def test_diffusion_without_b0(root, plan, bval, said):
    write_t1w(root, '01')
    write_thick(root, '01')
    dwi = series(root / 'sub-01' / 'dwi' / 'sub-01_dwi.nii.gz', 2)
    if bval:
        dwi.with_name('sub-01_dwi.bval').write_text(bval)
    item = plan()['01']
    assert said in item.errors[0]
    assert contrasts(item.sessions[0]) == ['sub-01_T2w'], 'the other contrast still runs'


def test_four_dimensional_images_are_refused(root, plan):
    write_t1w(root, '01')
    folder, stem = anat(root, '01')
    series(folder / f'{stem}_T2w.nii.gz', 3)
    item = plan()['01']
    assert '4 dimensions' in item.errors[0]
    assert 'T2w' in item.errors[0]
    series(folder / f'{stem}_T1w.nii.gz', 3)
    assert 'T1w.nii.gz has 4 dimensions' in plan()['01'].errors[0]


def test_single_slice(root, plan):
    write_t1w(root, '01')
    folder, stem = anat(root, '01')
    write_image(folder / f'{stem}_T2w.nii.gz', brain((20, 20, 1), (4, 4, 4)), affine((4, 4, 4)))
    assert 'single slice' in plan()['01'].errors[0]


@pytest.mark.parametrize('cut', [0.5, 0.999])
def test_truncated_archive(root, plan, cut):
    write_t1w(root, '01')
    path = write_thick(root, '01')
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    item = plan()['01']
    assert 'truncated' in item.errors[0]
    assert path.name in item.errors[0]


def test_whole_archive_in_several_members_is_accepted(root, plan):
    write_t1w(root, '01')
    path = write_thick(root, '01')
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    assert plan()['01'].errors == []


def test_broken_affine(root, plan):
    write_t1w(root, '01')
    path = write_thick(root, '01')
    image = nib.load(path)
    broken = nib.Nifti1Image(image.get_fdata(dtype=np.float32), None)
    broken.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(broken, path)
    assert 'broken affine' in plan()['01'].errors[0]


@pytest.mark.parametrize('size', [0.0, -8.0])
def test_voxel_sizes_that_cannot_be(root, plan, capfd, size):
    write_t1w(root, '01')
    path = write_thick(root, '01')
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into('<f', content, 88, size)  # pixdim[3]
    path.write_bytes(gzip.compress(content))
    assert 'zero or negative voxel size' in plan()['01'].errors[0]
    assert capfd.readouterr().err == '', 'nibabel would mend it with a guess, and a line'


def test_one_broken_participant_leaves_the_others(tmp_path, plan):
    root = healthy(tmp_path / 'bids', labels=('01',))
    write_thick(root, '02')
    write_thick(root, '02', 'FLAIR')
    plans = plan()
    assert plans['01'].errors == []
    assert plans['01'].sessions
    assert plans['02'].errors


def test_slice_metadata(root, plan):
    write_t1w(root, '01')
    write_thick(
        root, '01', entities='_acq-gap', metadata={'SliceThickness': 6.0, 'SpacingBetweenSlices': 8.0}
    )
    write_thick(root, '01', entities='_acq-lie', metadata={'SliceThickness': 0.9})
    write_thick(root, '01', entities='_acq-dir', metadata={'SliceEncodingDirection': 'i'})
    item = plan('--slice-profile', 'gaussian')['01']
    found = {target.name.entities['acq']: target for target in item.sessions[0].targets}
    assert found['gap'].slice_thickness_mm == 6.0
    assert found['lie'].slice_thickness_mm == 8.0
    assert found['dir'].slice_axis == 2
    assert {target.slice_profile for target in found.values()} == {'gaussian'}
    assert any('0.9 mm' in text for text in item.messages)
    assert any('SliceEncodingDirection' in text for text in item.messages)


def test_inherited_metadata(root, plan):
    write_t1w(root, '01')
    write_thick(root, '01', metadata={})
    (root / 'T2w.json').write_text(json.dumps({'SliceThickness': 7.0}))
    assert plan()['01'].sessions[0].targets[0].slice_thickness_mm == 7.0
    (root / 'sub-01' / 'anat' / 'sub-01_T2w.json').write_text(json.dumps({'SliceThickness': 6.5}))
    assert plan()['01'].sessions[0].targets[0].slice_thickness_mm == 6.5


def test_point_profile_is_for_superres_only(root, plan):
    write_t1w(root, '01')
    write_thick(root, '01')
    assert '--slice-profile point' in plan('--slice-profile', 'point')['01'].errors[0]
    plans = plan('--slice-profile', 'point', '--recon', 'superres')
    assert plans['01'].sessions[0].targets[0].slice_profile == 'point'


def test_t1w_alone_is_nothing_to_do(root, plan):
    write_t1w(root, '01')
    item = plan()['01']
    assert item.nothing_to_do
    assert item.messages


def test_a_shared_database_is_put_in_place_whole_by_the_first(root, plan, tmp_path):
    write_t1w(root, '01')
    write_thick(root, '01')
    database = tmp_path / 'db'
    arguments = ('--recon', 'harmonize', '--bids-database-dir', database)
    first = plan(*arguments)['01']
    assert first.errors == [] and len(first.sessions[0].targets) == 1
    content = {path: path.read_bytes() for path in database.iterdir()}
    assert any(path.suffix == '.sqlite' for path in content)
    second = plan(*arguments)['01']
    assert second.sessions == first.sessions
    assert {path: path.read_bytes() for path in database.iterdir()} == content, 'it is only read'
    assert not list(tmp_path.glob('.tmp-*'))


def test_two_that_make_the_database_at_once_both_go_on(root, plan, tmp_path, monkeypatch):
    from bids_gsrecon.workflows import collect

    write_t1w(root, '01')
    write_thick(root, '01')
    arguments = ('--recon', 'harmonize', '--bids-database-dir', tmp_path / 'db')
    real, seen = collect._layout, []

    def meanwhile(*given):
        layout = real(*given)
        if not seen:
            seen.append(1)
            assert plan(*arguments)['01'].errors == []
        return layout

    monkeypatch.setattr(collect, '_layout', meanwhile)
    assert plan(*arguments)['01'].errors == []
    assert not list(tmp_path.glob('.tmp-*'))
