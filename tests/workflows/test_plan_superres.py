"""What ``--recon superres`` makes of a dataset, and when ``auto`` chooses it."""

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


@pytest.fixture
def plan(plan):
    return lambda *arguments, recon='superres': plan(*arguments, '--recon', recon)


def names(item):
    return [target.name.stem() for session in item.sessions for target in session.targets]


def test_every_image_by_itself_and_fine_ones_left_out(tmp_path, plan):
    healthy(tmp_path / 'bids')
    item = plan()['01']
    assert (item.recon, item.reason, item.errors) == ('superres', 'as asked for', [])
    assert names(item) == ['sub-01_FLAIR', 'sub-01_T2w']
    assert [t.slice_axis for t in item.sessions[0].targets] == [1, 2]
    assert {t.output_mm for t in item.sessions[0].targets} == {4.0}
    assert len(item.messages) == 1 and 'sub-01_T1w.nii.gz is left out' in item.messages[0]
    target = item.sessions[0].targets[1]
    assert target.output_lattice.shape == (20, 20, 20)
    np.testing.assert_allclose(target.output_lattice.centre_mm, target.lattice.centre_mm)


def test_output_resolution(tmp_path, plan):
    healthy(tmp_path / 'bids')
    assert names(plan('--output-resolution', '2')['01']) == ['sub-01_FLAIR', 'sub-01_T1w', 'sub-01_T2w']
    item = plan('--output-resolution', '8')['01']
    assert item.nothing_to_do and len(item.messages) == 3


def test_auto_chooses_it_for_lone_anisotropic_scans(root, plan):
    write_thick(root, '01')
    item = plan(recon='auto')['01']
    assert item.recon == 'superres' and 'lone anisotropic scan (T2w)' in item.reason
    for session in 'ab':
        write_thick(root, '02', 'FLAIR', session=session)
    item = plan(recon='auto')['02']
    assert item.recon == 'superres'
    assert [s.session for s in item.sessions] == ['a', 'b']
    write_t1w(root, '03', sizes=(4.0, 4.0, 16.0))
    assert plan(recon='auto')['03'].recon == 'superres', 'whatever its suffix'
    write_t1w(root, '04', sizes=(4.0, 4.0, 4.4))
    assert plan(recon='auto')['04'].nothing_to_do, 'nearly isotropic'


def test_auto_leaves_exams_with_a_reference_to_harmonize(tmp_path, root, plan):
    healthy(tmp_path / 'bids')
    assert plan(recon='auto')['01'].recon == 'harmonize'
    write_thick(root, '02')
    write_thick(root, '02', 'FLAIR')
    item = plan(recon='auto')['02']
    assert item.recon == 'harmonize' and '--recon superres' in item.errors[0]


def test_series_are_averaged_and_other_kinds_found(root, plan):
    folder = root / 'sub-01'
    data = brain((20, 20, 10), (4, 4, 8))[..., None].repeat(3, 3)
    dwi = write_image(folder / 'dwi' / 'sub-01_dwi.nii.gz', data, affine((4, 4, 8)))
    dwi.with_name('sub-01_dwi.bval').write_text('0 1000 5\n')
    write_image(folder / 'perf' / 'sub-01_asl.nii.gz', data, affine((4, 4, 8)))
    for suffix in ('PDw', 'T2starw', 'angio', 'UNIT1', 'inv-1_MP2RAGE'):
        write_image(folder / 'anat' / f'sub-01_{suffix}.nii.gz', data[..., 0], affine((4, 4, 8)))
    write_image(folder / 'anat' / 'sub-01_T1rho.nii.gz', data[..., 0], affine((4, 4, 8)))
    item = plan()['01']
    found = {target.name.suffix: target for target in item.sessions[0].targets}
    assert set(found) == {'dwi', 'asl', 'PDw', 'T2starw', 'angio', 'UNIT1', 'MP2RAGE'}
    assert (found['dwi'].average, found['dwi'].volumes) == (True, [0, 2])
    assert (found['asl'].average, found['asl'].volumes) == (True, [])
    assert any('it is a map' in text for text in item.messages)


def test_gaps_are_used_and_said(root, plan):
    write_thick(root, '01', metadata={'SliceThickness': 6.0})
    item = plan('--slice-profile', 'gaussian')['01']
    target = item.sessions[0].targets[0]
    assert (target.slice_thickness_mm, target.slice_profile) == (6.0, 'gaussian')
    assert any('slices of 6 mm every 8 mm, with gaps' in text for text in item.messages)


def test_bad_images_are_errors_and_the_others_run(root, plan):
    write_thick(root, '01')
    folder, stem = anat(root, '01')
    series = brain((20, 20, 10), (4, 4, 8))[..., None].repeat(2, 3)
    write_image(folder / f'{stem}_PDw.nii.gz', series, affine((4, 4, 8)))
    write_image(folder / f'{stem}_angio.nii.gz', brain((20, 20, 1), (4, 4, 8)), affine((4, 4, 8)))
    broken = write_thick(root, '01', 'FLAIR')
    broken.write_bytes(broken.read_bytes()[:500])
    item = plan()['01']
    assert names(item) == ['sub-01_T2w']
    assert len(item.errors) == 3
    for name, said in (('FLAIR', 'truncated'), ('PDw', '4 dimensions'), ('angio', 'single slice')):
        assert any(name in text and said in text for text in item.errors)


def test_the_space_of_a_reference_is_said_to_have_no_effect(root, plan):
    write_thick(root, '01')
    item = plan('--output-spaces', 'T1w', recon='auto')['01']
    assert item.recon == 'superres'
    assert any('--output-spaces T1w has no effect' in text for text in item.messages)
    assert plan('--output-spaces', 'native')['01'].messages == []


def test_no_image_at_all(root, plan):
    (root / 'sub-01').mkdir()
    assert 'has no anatomical image' in plan()['01'].errors[0]
