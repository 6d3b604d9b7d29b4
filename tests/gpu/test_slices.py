"""Pixels of slices over a grid of Gaussians: against dense sums, adjointness, derivatives."""

import numba
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_gsrecon.gpu.slices import PixelWeights, unit_mass, variance_ratio
from bids_gsrecon.gpu.threads import thread_limit

SHAPE = (13, 11, 12)
DIAGONAL = np.diag([0.9, 1.1, 3.0])


def covariances(rotations):
    full = np.stack([np.eye(3) * 0.5 + r @ DIAGONAL @ r.T for r in rotations])
    return full.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    rotations = Rotation.random(3, random_state=1).as_matrix()
    points = rng.uniform(-2, np.array(SHAPE) + 1, (60, 3))
    owner = rng.integers(0, 3, 60)
    return rng, points, owner, rotations


def dense(points, owner, cov, cutoff=3.0):
    """The matrix (pixels, nodes) by the formula."""
    cov = cov / variance_ratio(cutoff)
    nodes = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing='ij'), -1).reshape(-1, 3)
    full = cov[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)[owner]
    d = points[:, None] - nodes
    q = np.einsum('ijk,ikl,ijl->ij', d, np.linalg.inv(full), d)
    norm = unit_mass(cutoff) * np.sqrt(np.linalg.det(full))
    return np.maximum(np.exp(-q / 2) - np.exp(-(cutoff**2) / 2), 0) / norm[:, None]


def test_equals_the_dense_matrix(case):
    rng, points, owner, rotations = case
    cov = covariances(rotations)
    weights = PixelWeights(points, owner, cov, SHAPE)
    matrix = dense(points, owner, cov)
    image = rng.normal(size=SHAPE)
    values = rng.normal(size=len(points))
    np.testing.assert_allclose(weights.forward(image), matrix @ image.ravel(), atol=2e-6)
    np.testing.assert_allclose(weights.adjoint(values).ravel(), matrix.T @ values, atol=2e-6)
    np.testing.assert_allclose(weights.squares(values).ravel(), (matrix**2).T @ values, atol=2e-6)


def test_a_constant_stays_constant_inside(case):
    _, _, _, rotations = case
    shape = (24, 24, 24)
    points = np.random.default_rng(0).uniform(9, 14, (50, 3))
    weights = PixelWeights(points, np.zeros(50, int), covariances(rotations), shape)
    np.testing.assert_allclose(weights.forward(np.full(shape, 7.0)), 7.0, rtol=0.02)


def test_moments_are_the_derivatives(case):
    rng, points, owner, rotations = case
    image = rng.normal(size=SHAPE)
    omega = rng.normal(size=3)
    skew = np.array([[0, -omega[2], omega[1]], [omega[2], 0, -omega[0]], [-omega[1], omega[0], 0]])

    def values(step_p, step_r):
        turned = [Rotation.from_rotvec(step_r * omega).as_matrix() @ r for r in rotations]
        moved = points + step_p * omega
        return dense(moved, owner, covariances(turned)) @ image.ravel()

    weights = PixelWeights(points, owner, covariances(rotations), SHAPE)
    first, second = weights.moments(image)
    h = 1e-3
    numeric = (values(h, 0) - values(-h, 0)) / (2 * h)
    # At the cut the weights have a kink: a few nodes there disturb the differences.
    assert np.median(np.abs(-first @ omega - numeric)) < 1e-6
    np.testing.assert_allclose(-first @ omega, numeric, atol=1e-3)
    psf = np.stack([r @ DIAGONAL @ r.T for r in rotations])[owner]
    change = np.einsum('ij,njk->nik', skew, psf)
    change = (change + change.transpose(0, 2, 1)) / variance_ratio(3.0)
    full = second[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    analytic = 0.5 * np.einsum('nij,nij->n', full, change)
    numeric = (values(0, h) - values(0, -h)) / (2 * h)
    assert np.median(np.abs(analytic - numeric)) < 1e-6
    np.testing.assert_allclose(analytic, numeric, atol=1e-3)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason='one thread only')
def test_threads_do_not_change_a_bit(case):
    rng, points, owner, rotations = case
    results = []
    values = rng.normal(size=len(points))
    for n in (1, 2):
        with thread_limit(n):
            weights = PixelWeights(points, owner, covariances(rotations), SHAPE)
            results.append((weights.adjoint(values), weights.forward(weights.adjoint(values))))
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'points': np.zeros((4, 2))}, 'points must be'),
        ({'owner': np.full(60, 5)}, 'no covariance'),
        ({'covariances': np.zeros((3, 6))}, 'positive definite'),
        ({'points': np.full((60, 3), np.nan)}, 'finite'),
    ],
)
def test_bad_input_is_refused(case, change, words):
    _, points, owner, rotations = case
    inputs = {'points': points, 'owner': owner, 'covariances': covariances(rotations), **change}
    with pytest.raises(ValueError, match=words):
        PixelWeights(inputs['points'], inputs['owner'], inputs['covariances'], SHAPE)


def test_pixels_beyond_the_grid_see_nothing(case):
    _, _, _, rotations = case
    weights = PixelWeights(np.full((3, 3), 99.0), [0, 1, 2], covariances(rotations), SHAPE)
    assert not weights.forward(np.ones(SHAPE)).any() and not weights.adjoint(np.ones(3)).any()


def test_mass_of_the_cut_gaussian():
    x = np.linspace(-3, 3, 61)
    q = x[:, None, None] ** 2 + x[:, None] ** 2 + x**2
    integral = np.maximum(np.exp(-q / 2) - np.exp(-4.5), 0).sum() * 0.1**3
    assert unit_mass(3.0) == pytest.approx(integral, rel=1e-3)
