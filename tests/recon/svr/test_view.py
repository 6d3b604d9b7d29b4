"""What pixels see of a grid of Gaussians: against dense sums, adjointness, derivatives in the pose."""

import numpy as np
import pytest
from scipy import ndimage

from bids_gsrecon.recon.svr.pixels import collect_pixels
from bids_gsrecon.recon.svr.view import (
    CUTOFF,
    GRID_SIGMA,
    View,
    mean_square,
    unit_mass,
    variance_ratio,
)
from tests.moving_stacks import BACKEND, FRAME, moving_stacks


@pytest.fixture(scope='module')
def case():
    stacks, poses, image, lattice = moving_stacks()
    return collect_pixels(stacks), poses, image, lattice


def test_equals_the_dense_sum(case):
    pixels, poses, _, lattice = case
    some = pixels.selected(np.arange(0, len(pixels.values), 997))
    view = View.make(some, lattice, poses, BACKEND)
    image = np.random.default_rng(0).normal(size=lattice.shape).astype(np.float32)
    nodes = lattice.to_world(np.stack(np.meshgrid(*map(np.arange, lattice.shape), indexing='ij'), -1))
    expected = []
    for point, psf in zip(some.placed(view.poses), view.psf_mm2[some.slice_of]):
        full = (psf + GRID_SIGMA**2 * np.eye(3)) / variance_ratio(CUTOFF)
        d = nodes - point
        q = np.einsum('xyzi,ij,xyzj->xyz', d, np.linalg.inv(full), d)
        weight = np.maximum(np.exp(-q / 2) - np.exp(-(CUTOFF**2) / 2), 0)
        expected.append((weight * image).sum() / unit_mass(CUTOFF) / np.sqrt(np.linalg.det(full)))
    np.testing.assert_allclose(view.forward(image), expected, atol=3e-6)


def test_adjoint(case):
    pixels, poses, _, lattice = case
    view = View.make(pixels, lattice, poses, BACKEND)
    rng = np.random.default_rng(1)
    image = rng.normal(size=lattice.shape).astype(np.float32)
    values = rng.normal(size=len(pixels.values)).astype(np.float32)
    assert np.vdot(view.forward(image), values) == pytest.approx(
        np.vdot(image, view.adjoint(values)), rel=1e-4
    )


def test_a_constant_stays_constant_inside(case):
    pixels, poses, _, lattice = case
    view = View.make(pixels, lattice, poses, BACKEND)
    near = (np.abs(lattice.to_index(pixels.placed(view.poses)) - np.array(lattice.shape) / 2) < 8).all(1)
    assert near.sum() > 100
    np.testing.assert_allclose(view.forward(np.full(lattice.shape, 7.0))[near], 7.0, rtol=0.02)


def test_diagonal_is_that_of_the_normal_matrix(case):
    pixels, poses, _, lattice = case
    view = View.make(pixels, lattice, poses, BACKEND)
    middle = tuple(n // 2 for n in lattice.shape)
    unit = np.zeros(lattice.shape, np.float32)
    unit[middle] = 1
    exact = float((view.forward(unit) ** 2).sum())
    # The diagonal spreads a pixel's square as its weight is spread: right on average, not voxel by voxel.
    assert view.diagonal(np.ones(len(pixels.values)))[middle] == pytest.approx(exact, rel=0.5)


@pytest.mark.parametrize('k', range(6))
def test_derivative_in_the_pose(case, k):
    pixels, poses, image, lattice = case
    smooth = ndimage.gaussian_filter(image, 2.0)
    _, jacobian = View.make(pixels, lattice, poses, BACKEND).derivative(smooth, FRAME)
    step = np.zeros(6)
    step[k] = 0.0125
    plus, minus = (
        View.make(pixels, lattice, FRAME.motions(sign * step) @ poses, BACKEND).forward(smooth)
        for sign in (1, -1)
    )
    numeric = (plus - minus) / 0.025
    error = np.sqrt(np.mean((numeric - jacobian[:, k]) ** 2)) / np.sqrt(np.mean(numeric**2))
    # Nodes that enter and leave at the cut make most of it: the error falls with the root of the step.
    assert error < 0.012


def test_masses_of_the_cut_gaussian():
    x = np.linspace(-3, 3, 61)
    q = x[:, None, None] ** 2 + x[:, None] ** 2 + x**2
    weight = np.maximum(np.exp(-q / 2) - np.exp(-4.5), 0)
    assert unit_mass(3.0) == pytest.approx(weight.sum() * 0.1**3, rel=1e-3)
    assert mean_square(3.0) == pytest.approx((weight**2).sum() * 0.1**3 / unit_mass(3.0) ** 2, rel=1e-3)
    second = (weight * x[:, None, None] ** 2).sum() / weight.sum()
    assert variance_ratio(3.0) == pytest.approx(second, rel=1e-3)
