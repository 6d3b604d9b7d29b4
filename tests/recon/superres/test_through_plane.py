"""Across the slices: the linear way, and what the slices' own planes teach."""

import numpy as np
import pytest

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.metrics import resample_to
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.sampling import make_sampling
from bids_gsrecon.imaging.simulate import thick_slices
from bids_gsrecon.recon.superres.through_plane import AcrossSlices, intermediate_lattice, slices_to_planes
from tests.phantoms import folded_head

FACTOR = 4


def silent(stage, done, total):
    pass


@pytest.mark.parametrize(('kind', 'thickness'), [('box', 4.0), ('box', 2.6), ('gaussian', 4.0)])
def test_sampling_is_the_operator_of_the_whole_image(kind, thickness):
    lattice = Lattice((3, 4, 6), np.diag([1.0, 1.0, 4.0, 1.0]))
    planes = intermediate_lattice(lattice, 2, FACTOR)
    assert planes.shape == (3, 4, 24)
    profile = SliceProfile(kind, thickness, 2)
    profiles = (SliceProfile('box', 1.0, 0), SliceProfile('box', 1.0, 1), profile)
    expected = make_sampling(planes, lattice, profiles).bands[2].dense()
    found = AcrossSlices(FACTOR, profile, 4.0).sampling(6)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('profile', [SliceProfile('box', 4.0, 2), SliceProfile('gaussian', 4.0, 2)])
def test_the_linear_way_explains_the_slices_and_keeps_constants(profile):
    across = AcrossSlices(FACTOR, profile, 4.0)
    sampling, reconstruction = across.sampling(8), across.reconstruction(8)
    np.testing.assert_allclose(reconstruction.sum(1), 1, atol=1e-3)
    slices = np.random.default_rng(0).random((8, 3, 5)).astype(np.float32)
    planes = across.linear(slices)
    assert planes.shape == (32, 3, 5)
    again = np.tensordot(sampling, planes, 1)
    assert np.sqrt(np.mean((again - slices) ** 2)) < 0.06 * slices.std()
    # The smoothest: a ramp across the slices is continued through them.
    ramp = across.linear(np.arange(8, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32))
    expected = (np.arange(32) - 1.5) / FACTOR
    np.testing.assert_allclose(ramp[8:24, 0, 0], expected[8:24], atol=0.05)


def stack(axis=2, shape=(40, 40, 40), **options):
    truth, mask = folded_head(shape, seed=2)
    coarse = thick_slices(truth, axis=axis, factor=FACTOR, **options)
    order = (axis, *(a for a in range(3) if a != axis))
    slices = np.ascontiguousarray(coarse.data.transpose(order)) / 500
    region = mask.transpose(order).reshape(len(slices), FACTOR, *slices.shape[1:]).any(1)
    cubic = resample_to(coarse, truth.lattice, order=3).transpose(order) / 500
    return slices, region, truth.data.transpose(order) / 500, mask.transpose(order), cubic


def rms(x, mask):
    return float(np.sqrt(np.mean(x[mask] ** 2)))


ACROSS = AcrossSlices(FACTOR, SliceProfile('box', 4.0, 2), 4.0)


@pytest.mark.parametrize('axis', [0, 2])
def test_learned_planes_beat_the_linear_ones_and_cubic(axis):
    slices, region, truth, mask, cubic = stack(axis)
    options = dict(learnable_axes=(1, 2), seed=0, progress=silent)
    linear, figures = slices_to_planes(slices, region, ACROSS, learn=False, **options)
    assert figures == {}
    np.testing.assert_array_equal(linear, ACROSS.linear(slices))
    learned, figures = slices_to_planes(slices, region, ACROSS, learn=True, **options)
    assert 0 < figures['in_plane_gain'] <= 1
    error = {
        name: rms(x - truth, mask) for name, x in (('linear', linear), ('cubic', cubic), ('learned', learned))
    }
    assert error['learned'] < 0.9 * min(error['linear'], error['cubic']), error
    outside = ~np.repeat(region, FACTOR, 0)
    np.testing.assert_array_equal(learned[outside], linear[outside])


def test_one_learnable_axis_is_enough():
    slices, region, truth, mask, _ = stack()
    learned, _ = slices_to_planes(
        slices, region, ACROSS, learn=True, learnable_axes=(2,), seed=0, progress=silent
    )
    assert rms(learned - truth, mask) < 0.95 * rms(ACROSS.linear(slices) - truth, mask)


def test_same_seed_same_bits():
    slices, region, *_ = stack()
    a, b, other = (
        slices_to_planes(
            slices, region, ACROSS, learn=True, learnable_axes=(1, 2), seed=seed, progress=silent
        )[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, other)


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 7, 6), (3, 8, 9)])
def test_too_few_pixels_to_learn_from_give_the_linear_planes(shape):
    slices = np.random.default_rng(0).random(shape).astype(np.float32)
    planes, figures = slices_to_planes(
        slices, np.ones(shape, bool), ACROSS, learn=True, learnable_axes=(1, 2), seed=0, progress=silent
    )
    assert figures == {'in_plane_gain': 0.0}
    np.testing.assert_array_equal(planes, ACROSS.linear(slices))
    assert np.isfinite(planes).all()


def test_noise_teaches_little():
    """Pixels without any relation: the gain must not amplify them."""
    slices = np.random.default_rng(0).random((6, 40, 40)).astype(np.float32)
    learned, figures = slices_to_planes(
        slices,
        np.ones(slices.shape, bool),
        ACROSS,
        learn=True,
        learnable_axes=(1, 2),
        seed=0,
        progress=silent,
    )
    linear = ACROSS.linear(slices)
    assert 0 <= figures['in_plane_gain'] <= 1
    assert (learned - linear).std() < 0.5 * slices.std()
