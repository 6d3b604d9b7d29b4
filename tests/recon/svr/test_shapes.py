"""Anisotropic Gaussians of the grid: mass, shape, transpose, invariances, and what they are worth."""

import numpy as np
import pytest
from scipy import ndimage

from bids_gsrecon.recon.svr.pixels import collect_pixels
from bids_gsrecon.recon.svr.shapes import LONG_SIGMA, NARROW_SIGMA, ShapedView, Shapes
from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.recon.svr.volume import solve_volume
from tests.moving_stacks import BACKEND, anatomy, moving_stacks


def moments(shapes: Shapes, shape, at):
    """Mass, mean and covariance (in grid points) of one bundle."""
    one = np.zeros(shape, np.float32)
    one[at] = 1
    spread = shapes.spread(one)
    points = np.argwhere(spread > 0) - np.array(at)
    weights = spread[spread > 0].astype(np.float64)
    mean = weights @ points / weights.sum()
    return weights.sum(), mean, (points - mean).T @ ((points - mean) * weights[:, None]) / weights.sum()


def step_edge(axis: int, shape=(31, 14, 13)) -> np.ndarray:
    """Bright behind the middle of the axis."""
    index = np.indices(shape)[axis]
    return np.where(index > shape[axis] // 2, 1.0, 0.2).astype(np.float32)


def test_bundles_are_round_where_the_image_is_flat_and_thin_across_edges():
    image = step_edge(0)
    shapes = Shapes.of(image)
    mass, mean, covariance = moments(shapes, image.shape, (26, 7, 6))
    assert mass == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(mean, 0, atol=1e-6)
    expected = LONG_SIGMA**2 - NARROW_SIGMA**2
    np.testing.assert_allclose(covariance, np.eye(3) * covariance[0, 0], atol=1e-3)
    assert covariance[0, 0] == pytest.approx(expected, rel=0.2)  # 27 points instead of a Gaussian
    across = moments(shapes, image.shape, (15, 7, 6))[2]
    assert across[0, 0] < 0.1 * across[1, 1]
    assert across[1, 1] == pytest.approx(covariance[1, 1], rel=0.05)


def test_oblique_edges_turn_the_bundles():
    x, y, _ = np.indices((17, 17, 17))
    image = (x + y > 16).astype(np.float32)
    covariance = moments(Shapes.of(image), image.shape, (8, 8, 8))[2]
    values, vectors = np.linalg.eigh(covariance)
    assert values[0] < 0.2 * values[1]
    assert abs(vectors[:, 0] @ np.array([1, 1, 0])) / np.sqrt(2) > 0.99


def test_brightness_does_not_matter_and_mass_is_kept():
    image, _, _ = anatomy()
    one, other = Shapes.of(image), Shapes.of(250 * image)
    np.testing.assert_allclose(one.spread(image), other.spread(image), atol=1e-5)
    assert one.spread(image).sum(dtype=float) == pytest.approx(image.sum(dtype=float), rel=1e-6)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_flipped_axes_flip_the_result(axis):
    image, _, _ = anatomy()
    there = np.flip(Shapes.of(np.flip(image, axis)).spread(np.flip(image, axis)), axis)
    np.testing.assert_allclose(there, Shapes.of(image).spread(image), atol=1e-5)


def test_collect_is_the_transpose_of_spread():
    rng = np.random.default_rng(0)
    image, _, _ = anatomy()
    shapes = Shapes.of(image)
    a, b = rng.normal(size=(2, *image.shape)).astype(np.float32)
    left = float((shapes.spread(a).astype(float) * b).sum())
    assert left == pytest.approx(float((a * shapes.collect(b).astype(float)).sum()), rel=1e-4)


def test_a_shaped_view_is_a_transpose_pair_and_sharpens_edges():
    """The volume of the same pixels is nearer to a piecewise constant truth than with round Gaussians."""
    stacks, poses, image, lattice = moving_stacks(poses_deg=0, poses_mm=0)
    truth = np.where(ndimage.gaussian_filter(image, 1.0) > np.median(image[image > 0]), 1.0, 0.4) * (
        image > 0
    )
    pixels = collect_pixels(stacks)
    fine = View.make(pixels, lattice, poses, BACKEND, grid_sigma=0.3)
    values = fine.forward(truth.astype(np.float32))
    values += 0.03 * np.random.default_rng(1).normal(size=values.shape).astype(np.float32)
    pixels.values[:] = values
    ones, gains = np.ones(len(values)), np.ones(pixels.n_slices)
    round_view = View.make(pixels, lattice, poses, BACKEND)
    first = solve_volume(round_view, ones, gains, smoothness=0.006, n_iterations=20)
    narrow = View.make(pixels, lattice, poses, BACKEND, grid_sigma=NARROW_SIGMA)
    shaped = ShapedView(narrow, Shapes.of(first))
    rng = np.random.default_rng(2)
    a, y = rng.normal(size=image.shape).astype(np.float32), rng.normal(size=len(values)).astype(np.float32)
    assert float(shaped.forward(a) @ y) == pytest.approx(
        float((a * shaped.adjoint(y)).sum(dtype=float)), rel=1e-3
    )
    second = shaped.shapes.spread(solve_volume(shaped, ones, gains, first, smoothness=0.006, n_iterations=20))
    inside = ndimage.binary_erosion(image > 0, iterations=2)

    def error(amplitudes, sigma):
        sampled = ndimage.gaussian_filter(amplitudes, sigma, truncate=6)
        exact = ndimage.gaussian_filter(truth, 0.3)
        return np.sqrt(np.mean((sampled - exact)[inside] ** 2))

    assert error(second, NARROW_SIGMA) < 0.93 * error(first, 0.7)
