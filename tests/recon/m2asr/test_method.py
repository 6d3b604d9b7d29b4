"""GaussM2ASR on whole volumes: sizes, intensities, warnings, refusals."""

import dataclasses

import numpy as np
import pytest
import torch

from bids_gsrecon.imaging.kspace_crop import crop_kspace, replace_measured, zero_filled
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.m2asr import Model, apply, train
from bids_gsrecon.recon.m2asr.method import build
from bids_gsrecon.recon.m2asr.network import Network
from bids_gsrecon.recon.m2asr.slices import HALO, cut, join, predict, reflect
from tests.m2asr_cases import NETWORK, make_pair, options


@pytest.fixture(scope='module')
def model():
    return train([make_pair(), make_pair('02', seed=1)], options(validation_subjects=('02',)))


@pytest.fixture(scope='module')
def untrained(model):
    """Renders its input: what is left of errors is that of the way there and back."""
    return Model(NETWORK, Network(NETWORK).state_dict(), model.card)


def coarse_case(pair, factors, slice_axis=2):
    coarse, lattice = crop_kspace(pair.target, pair.lattice, slice_axis, factors)
    return pair.reference, pair.lattice, coarse, lattice


def start_of(case, axis):
    """The zero-filled magnitude image with the measured frequencies put back."""
    _, lattice, coarse, where = case
    return replace_measured(zero_filled(coarse, where, lattice, axis), coarse, where, lattice, axis)


def run(model, case, **changes):
    return apply(model, *case, **{'n_threads': 1, 'device': 'cpu', **changes})


@pytest.mark.parametrize('shape', [(40, 37, 5), (33, 50, 4), (24, 21, 3)])
@pytest.mark.parametrize('factors', [2.0, 1.37, (1.0, 2.6)])
def test_odd_sizes_and_any_factors(untrained, shape, factors):
    case = coarse_case(make_pair(shape=(*shape[:2], 30)), factors)
    done = run(untrained, case)
    assert done.image.shape == case[0].shape and done.image.dtype == np.float32
    filled = start_of(case, 2)
    # The exact start through pieces, padding and normalisation is the zero-filled image.
    assert np.abs(done.image - filled).max() < 2e-3 * np.ptp(filled)
    expected = [a / b for a, b in zip(case[0].shape[:2], case[2].shape[:2])]
    assert done.scale == pytest.approx(expected)


@pytest.mark.parametrize('axis', [0, 1])
def test_slices_across_any_axis(untrained, axis):
    case = coarse_case(make_pair(), 2.0, axis)
    done = run(untrained, case)
    filled = start_of(case, axis)
    assert np.abs(done.image - filled).max() < 2e-3 * np.ptp(filled)
    assert np.array_equal(done.zero_filled, zero_filled(case[2], case[3], case[1], axis))


def test_intensities_are_those_of_the_target(model):
    """An affine change of the target's intensities is that of the result; one of the reference's changes nothing."""
    reference, lattice, coarse, where = coarse_case(make_pair(seed=3), 2.0)
    plain = run(model, (reference, lattice, coarse, where)).image
    mapped = run(model, (reference, lattice, 3.7 * coarse, where)).image
    np.testing.assert_allclose(mapped, 3.7 * plain, atol=2e-3 * np.ptp(mapped))
    shifted = run(model, (10 * reference + 5, lattice, coarse, where)).image
    np.testing.assert_allclose(shifted, plain, atol=2e-3 * np.ptp(plain))


def test_measured_frequencies_are_kept(model):
    pair = make_pair(shape=(41, 37, 30), seed=4)
    factors = (41 / 21, 37 / 19)
    case = coarse_case(pair, factors)
    again, _ = crop_kspace(run(model, case).image, pair.lattice, 2, factors)
    assert np.abs(again - case[2]).max() < 0.01 * np.ptp(case[2])


def test_a_mask_spares_the_rest(model):
    case = coarse_case(make_pair(), 2.0)
    mask = np.zeros(case[0].shape, bool)
    mask[10:30, 10:30, 12:15] = True
    done = run(model, case, mask=mask)
    filled = start_of(case, 2)
    assert np.abs(done.image[:, :, :12] - filled[:, :, :12]).max() < 1e-3 * np.ptp(filled)
    assert np.abs(done.image[mask] - filled[mask]).max() > 1e-3 * np.ptp(filled)


def test_threads_hardly_matter(model):
    case = coarse_case(make_pair(), 2.0)
    one, two = (run(model, case, n_threads=n).image for n in (1, 2))
    assert np.abs(one - two).max() < 1e-5 * np.ptp(one)


def test_pieces_fit_together():
    images = torch.rand(2, 3, 37, 50)
    pieces, at, size = cut(images, 24)
    assert pieces.shape[2:] == (24, 24) and size[0] % (24 - 2 * HALO) == 0
    assert torch.equal(join(pieces[0], at, size, 24)[:, :37, :50], images[0])


def test_reflection():
    row = torch.arange(4.0).expand(1, 4)
    assert reflect(row, [(0, 0), (2, 5)])[0].tolist() == [2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert reflect(torch.ones(1, 1), [(1, 1), (0, 2)]).shape == (3, 3)


def test_whole_slices_are_padded_to_windows():
    config = dataclasses.replace(NETWORK, patch=0)
    image = np.random.default_rng(0).uniform(size=(2, 19, 30)).astype(np.float32)
    out = predict(Network(config), image, image, 2.0)
    assert np.abs(out - image).max() < 1e-4


def test_card(model):
    card = model.card
    assert card['subjects'] == ['01'] and card['validation_subjects'] == ['02']
    assert card['contrasts'] == ['T2w'] and card['reference_contrast'] == 'T1w'
    assert card['steps'] == 6 and card['n_parameters'] == sum(
        t.numel() for t in Network(NETWORK).parameters()
    )
    assert set(card['scores']) == {'1.5', '2', '3', '4'}
    for row in card['scores'].values():
        assert row['psnr_db'] > 10 and row['zero_filled_db'] > 10
    assert card['voxel_mm'] == [1, 1] and card['field_of_view_mm'] == [37, 40]
    assert not card['warnings']
    import json

    json.dumps(card)
    assert 'one subject' in train([make_pair()], options(max_steps=1)).card['warnings'][0]
    pairs = [make_pair(), make_pair('02', seed=1)]
    assert 'held out' in train(pairs, options(max_steps=1)).card['warnings'][0]


def test_warned_outside_the_training(model):
    pair = make_pair()
    assert not run(model, coarse_case(pair, 2.0), contrast='T2w').warnings
    far = run(model, coarse_case(pair, 5.0), contrast='FLAIR').warnings
    assert any('outside those of the training, 1 to 4' in w for w in far)
    assert any('not trained on FLAIR' in w for w in far)
    assert any('differ' in w for w in run(model, coarse_case(pair, (1.0, 2.0))).warnings)
    big = dataclasses.replace(pair, lattice=Lattice(pair.lattice.shape, np.diag([1.5, 1.5, 1.5, 1])))
    found = ' '.join(run(model, coarse_case(big, 2.0)).warnings)
    assert 'voxels' in found and 'field of view' in found


def test_refused_input(model):
    pair = make_pair()
    reference, lattice, coarse, where = coarse_case(pair, 2.0)
    with pytest.raises(ValueError, match='NaN'):
        run(model, (reference, lattice, np.where(coarse > 100, np.nan, coarse), where))
    with pytest.raises(ValueError, match='one value'):
        run(model, (reference, lattice, np.ones_like(coarse), where))
    with pytest.raises(ValueError, match='not both 1'):
        run(model, (reference, lattice, pair.target, lattice))
    with pytest.raises(ValueError, match='6 at most'):
        run(model, coarse_case(pair, 7.0))
    with pytest.raises(ValueError, match='share no slices'):
        run(
            model,
            (
                reference,
                lattice,
                coarse[:, :, ::2],
                Lattice(coarse[:, :, ::2].shape, where.affine @ np.diag([1, 1, 2, 1])),
            ),
        )
    moved = where.affine.copy()
    moved[0, 3] += 8
    with pytest.raises(ValueError, match='fields of view'):
        run(model, (reference, lattice, coarse, Lattice(where.shape, moved)))
    turned = where.affine.copy()
    turned[:3, :3] = [[0, 2, 0], [2, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match='directions'):
        run(model, (reference, lattice, coarse, Lattice(where.shape, turned)))
    with pytest.raises(ValueError, match='mask'):
        run(model, (reference, lattice, coarse, where), mask=np.ones((3, 3, 3)))
    with pytest.raises(ValueError, match='another size or version'):
        build(Model(dataclasses.replace(NETWORK, channels=16), model.state, model.card))


def test_without_a_mask_a_larger_background_changes_nothing(model):
    """The map of the intensities is that of the signal, not of the field of view."""
    case = coarse_case(make_pair(), 2.0)
    padded = [np.pad(v, ((20, 20), (20, 20), (0, 0))) for v in (make_pair().reference, make_pair().target)]
    lattice = Lattice(padded[0].shape, case[1].affine)
    coarse, where = crop_kspace(padded[1], lattice, 2, 2.0)
    wide = run(model, (padded[0], lattice, coarse, where)).image[20:-20, 20:-20]
    narrow = run(model, case).image
    # The k-space grids differ a little, the brightness must not.
    assert abs(wide.mean() / narrow.mean() - 1) < 0.01


def test_an_empty_mask_leaves_the_zero_filled_image(model):
    case = coarse_case(make_pair(), 2.0)
    done = run(model, case, mask=np.zeros(case[0].shape, bool))
    assert np.abs(done.image - start_of(case, 2)).max() < 1e-3 * np.ptp(done.image)
