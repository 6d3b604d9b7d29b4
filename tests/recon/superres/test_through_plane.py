"""Across the slices: the linear way, and what the slices' own planes teach."""

import numpy as np
import pytest

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.metrics import resample_to
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.sampling import VoxelSampling, make_sampling
from bids_gsrecon.imaging.simulate import thick_slices
from bids_gsrecon.recon.superres.patches import mirrored_problems
from bids_gsrecon.recon.superres.similarity import self_similar
from bids_gsrecon.recon.superres.through_plane import (
    PATCH,
    AcrossSlices,
    averaged,
    intermediate_lattice,
    slices_to_planes,
)
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
    options = dict(learnable_axes=(1, 2), similar=False, seed=0, progress=silent)
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
        slices, region, ACROSS, learn=True, learnable_axes=(2,), similar=False, seed=0, progress=silent
    )
    assert rms(learned - truth, mask) < 0.95 * rms(ACROSS.linear(slices) - truth, mask)


def test_same_seed_same_bits():
    slices, region, *_ = stack()
    a, b, other = (
        slices_to_planes(
            slices,
            region,
            ACROSS,
            learn=True,
            learnable_axes=(1, 2),
            similar=False,
            seed=seed,
            progress=silent,
        )[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, other)


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 7, 6), (3, 8, 9)])
def test_too_few_pixels_to_learn_from_give_the_linear_planes(shape):
    slices = np.random.default_rng(0).random(shape).astype(np.float32)
    planes, figures = slices_to_planes(
        slices,
        np.ones(shape, bool),
        ACROSS,
        learn=True,
        learnable_axes=(1, 2),
        similar=False,
        seed=0,
        progress=silent,
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
        similar=False,
        seed=0,
        progress=silent,
    )
    linear = ACROSS.linear(slices)
    assert 0 <= figures['in_plane_gain'] <= 1
    assert (learned - linear).std() < 0.5 * slices.std()


@pytest.mark.parametrize('axis', [1, 2])
def test_averages_in_plane_start_at_every_pixel_and_know_their_truth(axis):
    rng = np.random.default_rng(0)
    image = rng.random((3, 14, 15)).astype(np.float32)
    region = rng.random(image.shape) > 0.9
    parts = list(averaged(image, region, ACROSS, axis, range(FACTOR)))
    assert [part.offset for part in parts] == list(range(FACTOR))
    for part in parts:
        n = (image.shape[axis] - part.offset) // FACTOR
        cut = slice(part.offset, part.offset + n * FACTOR)
        moved, inside = (np.moveaxis(a, axis, 1)[:, cut] for a in (image, region))
        np.testing.assert_array_equal(part.truth, moved)
        blocks = moved.reshape(3, n, FACTOR, -1)
        np.testing.assert_allclose(part.coarse, blocks.mean(2), atol=1e-6)
        np.testing.assert_array_equal(part.region, inside.reshape(blocks.shape).any(2))
        expected = np.moveaxis(ACROSS.linear(np.moveaxis(part.coarse, 1, 0)), 0, 1)
        np.testing.assert_allclose(part.estimate, expected, atol=1e-4)


def test_the_same_pixels_are_held_out_from_wherever_averages_start():
    """Else a network would be judged on what it was trained on, a pixel further."""
    image = np.zeros((16, 80, 64), np.float32)
    held = []
    for part in averaged(image, image == 0, ACROSS, 1, range(FACTOR)):
        centres = np.argwhere(part.region)
        pixels = np.zeros(image.shape, bool)
        chosen = centres[part.held_out(centres)]
        pixels[chosen[:, 0], chosen[:, 1] * FACTOR + part.offset, chosen[:, 2]] = True  # their first pixel
        held.append(pixels)
    blocks = [p.reshape(4, 4, -1, 8 * FACTOR, 4, 16) for p in (h[:, :64] for h in held)]
    first = blocks[0].any((1, 3, 5))
    assert 0 < first.mean() < 0.4
    for other in blocks[1:]:
        np.testing.assert_array_equal(other.any((1, 3, 5)), first)


def test_a_flat_patch_is_mirrored_along_its_two_axes_only():
    assert len(mirrored_problems(PATCH, (1, FACTOR, 1))) == 4


def operator_across(n_slices, pixels):
    lattice = Lattice((n_slices, *pixels), np.diag([4.0, 1.0, 1.0, 1.0]))
    profiles = [SliceProfile('box', float(s), a) for a, s in enumerate(lattice.voxel_sizes_mm)]
    return make_sampling(intermediate_lattice(lattice, 0, FACTOR), lattice, profiles)


def test_self_similarity_changes_as_much_as_it_is_worth_in_plane():
    slices, region, *_ = stack()
    options = dict(learn=False, seed=0, progress=silent)
    linear, figures = slices_to_planes(
        slices, region, ACROSS, learnable_axes=(1, 2), similar=False, **options
    )
    assert 'self_similarity_gain' not in figures
    found, figures = slices_to_planes(slices, region, ACROSS, learnable_axes=(1, 2), similar=True, **options)
    gain = figures['self_similarity_gain']
    sampling = operator_across(len(slices), slices.shape[1:])
    assert isinstance(sampling, VoxelSampling) and sampling.fine_shape == linear.shape
    all_of_it = self_similar(linear, sampling, slices, region)
    assert 0 < gain <= 1
    np.testing.assert_allclose(found, linear + gain * (all_of_it - linear), atol=1e-5)


def test_where_nothing_can_be_tried_in_plane_self_similarity_counts_in_full():
    slices, region, *_ = stack()
    found, figures = slices_to_planes(
        slices, region, ACROSS, learn=True, learnable_axes=(), similar=True, seed=0, progress=silent
    )
    assert figures == {'self_similarity_gain': 1.0}
    linear = ACROSS.linear(slices)
    expected = self_similar(linear, operator_across(len(slices), slices.shape[1:]), slices, region)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_image_that_is_mostly_noise_trusts_its_likes_less():
    slices, region, *_ = stack()
    options = dict(learn=True, learnable_axes=(1, 2), similar=True, seed=0, progress=silent)
    noise = 0.2 * np.random.default_rng(0).normal(size=slices.shape).astype(np.float32)
    clean = slices_to_planes(slices, region, ACROSS, **options)[1]['self_similarity_gain']
    noisy = slices_to_planes(slices + noise, region, ACROSS, **options)[1]['self_similarity_gain']
    assert noisy < 0.5 and noisy < clean, (clean, noisy)
