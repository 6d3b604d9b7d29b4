"""The nodes of ``--recon m2asr``, their pictures, verdicts and the card."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.kspace_crop import crop_kspace
from bids_gsrecon.interfaces import m2asr_outputs
from bids_gsrecon.interfaces.io import load_volume, save_volume
from bids_gsrecon.interfaces.m2asr import ApplyNetwork, MakePair
from bids_gsrecon.interfaces.m2asr_card import card_text, described
from bids_gsrecon.interfaces.m2asr_files import save_weights
from bids_gsrecon.interfaces.m2asr_outputs import judge
from bids_gsrecon.interfaces.m2asr_pairs import load_pair
from bids_gsrecon.interfaces.m2asr_reportlets import M2asrReportlets
from bids_gsrecon.interfaces.registration import save_itk_transform
from bids_gsrecon.recon.m2asr import method
from bids_gsrecon.recon.m2asr.types import Applied
from bids_gsrecon.workflows.plan_m2asr import finer_in_plane
from tests.m2asr_fakes import ADDED, fake, fake_model
from tests.phantoms import head

__all__ = ['fake']
MOTION = np.eye(4)
MOTION[:3, 3] = [1.0, -2.0, 3.0]  # the head moved between the scans


@pytest.fixture
def case(tmp_path, monkeypatch):
    """A reference, a target with larger pixels that moved, masks, weights; nodes run in a folder of their own."""
    t1w, t2w, mask, _ = head()
    coarse, lattice = crop_kspace(t2w.data, t2w.lattice, 2, 2.0)
    save_volume(tmp_path / 't1w.nii.gz', t1w.data, t1w.affine)
    save_volume(tmp_path / 'mask.nii.gz', mask, t1w.affine, dtype=np.uint8)
    save_volume(tmp_path / 't2w.nii.gz', coarse, np.linalg.inv(MOTION) @ lattice.affine)
    save_itk_transform(tmp_path / 'to_t1w.txt', MOTION)
    save_weights(tmp_path / 'net.h5', fake_model())
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    return tmp_path


def inputs(case, **more):
    common = {
        'reference': str(case / 't1w.nii.gz'),
        'mask': str(case / 'mask.nii.gz'),
        'target': str(case / 't2w.nii.gz'),
        'transform': str(case / 'to_t1w.txt'),
        'source': '/data/sub-01_T2w.nii.gz',
        'contrast': 'T2w',
        'slice_axis': 2,
        'slice_thickness_mm': 1.0,
    }
    return {**common, **more}


def apply(case, **more):
    fine = finer_in_plane(load_volume(case / 't2w.nii.gz').lattice, 2, 1.0)
    grid = {'output_shape': list(fine.shape), 'output_affine': fine.affine.tolist()}
    return ApplyNetwork(weights=str(case / 'net.h5'), **grid, **inputs(case, **more)).run().outputs


def test_a_pair_is_made_in_its_place(case):
    path = case / 'pairs' / 'sub-01_T2w.h5'
    more = {'subject': 'sub-01', 'key': 'abc', 'sources': ['a', 'b'], 'out_path': str(path)}
    assert MakePair(**inputs(case, **more)).run().outputs.out_file == str(path)
    pair, (t1w, t2w, *_) = load_pair(path), head()
    assert (pair.subject, pair.contrast, pair.reference_contrast) == ('sub-01', 'T2w', 'T1w')
    assert pair.target.shape == (20, 22, 36)
    matrix = MOTION @ pair.lattice.affine
    np.testing.assert_allclose(matrix, crop_kspace(t2w.data, t2w.lattice, 2, 2.0)[1].affine, atol=1e-5)
    middle = (
        t1w.data[1::2, 1::2] / 4 + t1w.data[::2, ::2] / 4 + t1w.data[1::2, ::2] / 4 + t1w.data[::2, 1::2] / 4
    )
    inside = pair.mask & (middle > 0)
    assert np.corrcoef(pair.reference[inside], middle[inside])[0, 1] > 0.97
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_target_elsewhere_is_one_sentence(case):
    away = MOTION.copy()
    away[0, 3] = 300
    save_itk_transform(case / 'to_t1w.txt', away)
    more = {'subject': 'sub-01', 'key': 'abc', 'sources': [], 'out_path': str(case / 'x.h5')}
    with pytest.raises(InputError, match=r'/data/sub-01_T2w\.nii\.gz lies outside of its reference'):
        MakePair(**inputs(case, **more)).run()
    assert not (case / 'x.h5').exists()


def test_the_reference_is_brought_to_the_slices_and_the_result_lies_on_them(case, fake):
    done = apply(case, options={'device': 'cpu'}, n_threads=1)
    image, guide = load_volume(done.out_file), load_volume(done.out_reference)
    t1w, t2w, mask, _ = head()
    np.testing.assert_allclose(MOTION @ image.affine, t2w.affine, atol=1e-4)
    np.testing.assert_allclose(guide.data, t1w.data, atol=1e-3)
    np.testing.assert_array_equal(nib.load(done.out_mask).get_fdata() > 0, mask)
    np.testing.assert_allclose(image.data, load_volume(done.out_zero_filled).data + ADDED, atol=1e-3)
    (_, _, lattice, target, _), keywords = fake['apply'][0]
    assert lattice.same_as(image.lattice) and target.shape == (20, 22, 36)
    assert (keywords['device'], keywords['n_threads'], keywords['contrast']) == ('cpu', 1, 'T2w')
    record = json.loads(Path(done.metadata_file).read_text())
    assert record['SkullStripped'] is False, 'k-space rings beyond the brain'
    assert record['InPlaneFactors'] == [2.0, 2.0]
    assert record['Verdict'] == 'do not use' and record['FiguresOfMerit']['own_gain_db'] < -0.5
    assert record['FiguresOfMerit']['reference_coverage_percent'] > 90


def test_the_gain_on_itself_is_that_of_a_known_truth(case, monkeypatch):
    """A method that knows the coarser image's truth gains without bound; one that does nothing gains nothing."""
    calls = []

    def nothing(model, reference, lattice, target, target_lattice, **keywords):
        from bids_gsrecon.imaging.kspace_crop import zero_filled

        calls.append((reference, lattice, target, keywords))
        image = zero_filled(target, target_lattice, lattice, keywords['slice_axis'])
        return Applied(image, image, [], (2.0, 2.0))

    monkeypatch.setattr(method, 'apply', nothing)
    record = json.loads(Path(apply(case).metadata_file).read_text())
    assert record['FiguresOfMerit']['own_gain_db'] == 0.0 and record['Verdict'] == 'check'
    assert record['FiguresOfMerit']['change_percent'] == 0.0
    reference, lattice, target, keywords = calls[1]
    own = load_volume(case / 't2w.nii.gz')
    assert lattice is not None and lattice.same_as(own.lattice) and target.shape == (10, 11, 36)
    assert keywords['mask'].shape == own.data.shape
    t1w = head()[0]
    truth = crop_kspace(t1w.data, t1w.lattice, 2, 2.0)[0]
    np.testing.assert_allclose(reference, truth, atol=0.02 * truth.max())

    def knows(model, reference, lattice, target, target_lattice, **keywords):
        done = nothing(model, reference, lattice, target, target_lattice, **keywords)
        if lattice.shape == own.data.shape:
            done.image = own.data + 0.01
        return done

    monkeypatch.setattr(method, 'apply', knows)
    record = json.loads(Path(apply(case).metadata_file).read_text())
    assert record['FiguresOfMerit']['own_gain_db'] > 20
    assert record['Verdict'] == 'trust' and record['Reasons'] == []


def test_a_reference_of_another_kind_is_warned_about(case, fake):
    save_weights(case / 'net.h5', fake_model(edge_correlation=[0.5, 0.9]))
    record = json.loads(Path(apply(case).metadata_file).read_text())
    assert record['FiguresOfMerit']['edge_correlation'] < 0
    assert any('relates to the image otherwise' in text for text in record['Warnings'])
    save_weights(case / 'net.h5', fake_model(edge_correlation=[-0.9, -0.5]))
    assert json.loads(Path(apply(case).metadata_file).read_text())['Warnings'] == []


def test_verdicts():
    good = {'own_gain_db': 2.0, 'reference_coverage_percent': 100.0}
    assert judge([], good) == ('trust', [])
    assert judge(['The factor is large.'], good) == ('check', ['The factor is large'])
    assert judge([], {**good, 'own_gain_db': 0.1})[0] == 'check'
    assert judge(['a'], {**good, 'own_gain_db': -1.0})[0] == 'do not use'
    verdict, reasons = judge([], {'reference_coverage_percent': 40.0})
    assert verdict == 'check' and 'shows 40 %' in reasons[0]


def test_errors_of_the_method_name_the_image(case, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError('it is odd: leave it')

    monkeypatch.setattr(m2asr_outputs.method, 'apply', refuse)
    with pytest.raises(InputError, match=r'/data/sub-01_T2w\.nii\.gz is odd'):
        apply(case)


def test_pictures_flip_and_say_what_is_known(case, fake):
    done = apply(case)
    node = M2asrReportlets(
        target=str(case / 't2w.nii.gz'),
        zero_filled=done.out_zero_filled,
        result=done.out_file,
        reference=done.out_reference,
        mask=done.out_mask,
        metadata_file=done.metadata_file,
        parameters={'slice_axis': 'k'},
        summary={'method': 'm2asr'},
    )
    drawn = node.run().outputs
    assert drawn.parts == [
        'before',
        'interpolated',
        'after',
        'guide',
        'registration',
        'change',
        'merit',
        'summary',
    ]
    sizes = {Image.open(path).size for path in (drawn.before, drawn.interpolated, drawn.after, drawn.guide)}
    assert len(sizes) == 1
    merit = json.loads(Path(drawn.merit).read_text())
    assert merit['verdict'] == 'do not use' and merit['parameters']['network_size'] == 'tiny'
    assert merit['output_shape'] == [40, 44, 36] and merit['parameters']['slice_axis'] == 'k'


def test_the_card_says_what_a_person_must_know():
    card = fake_model(
        scores={'2': {'psnr_db': 30.123, 'zero_filled_db': 27.0}}, warnings=['Beware of cats.']
    ).card
    text = card_text('net', card)
    for words in (
        '| Size | tiny |',
        '| 2 | 30.12 | 27 |',
        '- Beware of cats.',
        'Held out 1: sub-02.',
        '| torch | 0 |',
    ):
        assert words in text
    assert 'Nobody was held out' in card_text('net', {**card, 'scores': {}})
    assert described(card) == (
        'It (size tiny) had been trained on T2w images of 1 subject, scored on 1 others, for in-plane factors of 1 to 4.'
    )
