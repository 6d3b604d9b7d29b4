"""Adam on where Gaussians sit and how they are shaped."""

import numpy as np
import pytest
import torch

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.render import render
from bids_gsrecon.recon.geometry import MAX_ANISOTROPY, optimise_geometry, squared_error_gradient
from tests.helpers import assert_gradient

OBLIQUE = np.array([[0.9, -0.3, 0.1, 5], [0.3, 0.9, 0.0, -8], [0.0, 0.2, 1.2, 3], [0, 0, 0, 1]])
GRID = Lattice((16, 15, 14), OBLIQUE)


def gaussian(index, scales=(1.5, 1.5, 1.5), amplitude=1.0, quaternion=(1, 0, 0, 0)):
    """A single Gaussian at a voxel index of the oblique grid, composition ``sum``."""
    where = GRID.to_world(np.atleast_2d(np.asarray(index, float)))
    return GaussianField(
        where, np.log([scales]), [quaternion], [0.0], [[amplitude]], 'sum', ('image',), {'kept': 'yes'}
    )


def several(n=30, seed=0):
    rng = np.random.default_rng(seed)
    where = GRID.to_world(rng.uniform(2, 12, (n, 3)))
    quaternions = rng.normal(size=(n, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    scales = rng.uniform(0.1, 0.6, (n, 3))
    return GaussianField(where, scales, quaternions, np.full(n, np.log(0.5)), rng.uniform(0, 1, (n, 1)))


def target_of(field):
    return render([field], GRID).astype(np.float32)


def towards(target, n_gaussians):
    return squared_error_gradient(target, np.ones_like(target), n_gaussians)


def loss(field, target):
    return float(np.mean((render([field], GRID) - target) ** 2))


def test_squared_error_gradient_is_that_of_the_weighted_mean():
    rng = np.random.default_rng(0)
    target, weights = rng.normal(size=(4, 5, 6)), rng.uniform(size=(4, 5, 6))
    gradient = squared_error_gradient(target, weights, 7)
    assert_gradient(
        lambda x: 7 * np.sum(weights * (x - target) ** 2) / weights.sum(),
        lambda x: gradient(torch.from_numpy(x)).numpy(),
        rng.normal(size=(4, 5, 6)),
    )


@pytest.mark.parametrize('shift', [(1.2, 0, 0), (0, -1.0, 0.8), (-0.7, 0.9, 0.9)])
def test_a_displaced_gaussian_is_found(shift):
    truth = gaussian((7.3, 6.8, 6.1), amplitude=0.8)
    start = gaussian(np.add((7.3, 6.8, 6.1), shift), (1.2, 1.9, 1.5), 1.0)
    found = optimise_geometry(start, GRID, towards(target_of(truth), 1), n_iterations=120)
    np.testing.assert_allclose(found.means_mm, truth.means_mm, atol=0.02)
    np.testing.assert_allclose(np.exp(found.log_scales), 1.5, rtol=0.02)
    np.testing.assert_allclose(found.amplitudes, 0.8, rtol=0.02)
    assert found.composition == 'sum' and found.channels == ('image',) and found.metadata == {'kept': 'yes'}


def test_a_turned_gaussian_is_found():
    half = np.deg2rad(35) / 2
    truth = gaussian((7, 7, 7), (2.4, 1.3, 1.3), quaternion=(np.cos(half), 0, 0, np.sin(half)))
    start = gaussian((7, 7, 7), (2.1, 1.5, 1.4))
    found = optimise_geometry(start, GRID, towards(target_of(truth), 1), n_iterations=200)
    expected = truth.covariances_mm2()
    np.testing.assert_allclose(found.covariances_mm2(), expected, atol=0.05 * np.abs(expected).max())
    assert np.linalg.norm(found.quaternions, axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize('learned', ['geometry', 'amplitudes', 'weights'])
def test_a_few_small_steps_lower_the_loss(learned):
    truth, start = several(seed=1), several(seed=2)
    target = target_of(truth)
    found = optimise_geometry(
        start,
        GRID,
        towards(target, len(start)),
        n_iterations=8,
        rate=0.2,
        learn_amplitudes=learned == 'amplitudes',
        learn_weights=learned == 'weights',
    )
    assert loss(found, target) < 0.97 * loss(start, target)


def test_the_loss_falls_far():
    truth, start = several(seed=1), several(seed=2)
    target = target_of(truth)
    found = optimise_geometry(start, GRID, towards(target, len(start)), n_iterations=60, learn_weights=True)
    assert loss(found, target) < 0.2 * loss(start, target)


def test_what_is_frozen_stays_and_the_start_is_not_touched():
    start = several()
    before = several()
    gradient = towards(target_of(several(seed=3)), len(start))
    found = optimise_geometry(start, GRID, gradient, n_iterations=3, learn_amplitudes=False)
    np.testing.assert_array_equal(found.amplitudes, before.amplitudes)
    np.testing.assert_array_equal(found.log_weights, before.log_weights)
    found = optimise_geometry(start, GRID, gradient, n_iterations=3, learn_weights=True)
    for name in ('means_mm', 'log_scales', 'quaternions', 'log_weights', 'amplitudes'):
        assert not np.array_equal(getattr(found, name), getattr(before, name)), name
        np.testing.assert_array_equal(getattr(start, name), getattr(before, name))


def test_no_iterations_change_nothing_but_rounding():
    start = several()
    found = optimise_geometry(start, GRID, lambda rendered: None, n_iterations=0)
    np.testing.assert_array_equal(found.means_mm, start.means_mm)
    np.testing.assert_allclose(found.quaternions, start.quaternions, atol=1e-6)
    np.testing.assert_array_equal(found.log_scales, start.log_scales)


def test_weights_stay_saturations():
    """One of two Gaussians is pulled up without end: its weight must stay exp(log_weight) < 1."""
    pair = GaussianField(
        GRID.to_world([[6.0, 7, 7], [8.0, 7, 7]]),
        np.log(np.full((2, 3), 1.5)),
        [[1, 0, 0, 0]] * 2,
        np.log([0.9, 0.9]),
        [[1.0], [0.0]],
    )
    target = np.ones(GRID.shape, np.float32)  # only the first one's amplitude
    found = optimise_geometry(
        pair, GRID, towards(target, 2), n_iterations=25, learn_weights=True, learn_amplitudes=False
    )
    assert found.log_weights.max() < 0
    assert found.log_weights[0] > np.log(0.98) and found.log_weights[1] < np.log(0.6)


def test_shapes_are_held_within_bounds():
    start = gaussian((7, 7, 7))
    needle = gaussian((7, 7, 7), (12.0, 0.4, 0.4))
    found = optimise_geometry(start, GRID, towards(target_of(needle), 1), n_iterations=150)
    scales = np.exp(found.log_scales[0])
    smallest = GRID.voxel_sizes_mm.min()
    assert 1.5 < scales.max() / scales.min() <= MAX_ANISOTROPY * (1 + 1e-5)
    assert scales.min() >= 0.3 * smallest * (1 - 1e-5)
    wide = optimise_geometry(
        start, GRID, towards(np.ones(GRID.shape, np.float32), 1), n_iterations=60, max_scale_mm=2.0
    )
    np.testing.assert_allclose(np.exp(wide.log_scales), 2.0, rtol=1e-3)


def test_progress_counts_the_steps():
    seen = []
    optimise_geometry(
        gaussian((7, 7, 7)),
        GRID,
        towards(np.ones(GRID.shape, np.float32), 1),
        n_iterations=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
