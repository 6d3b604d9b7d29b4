"""Amplitudes by least squares on frozen geometry."""

import numpy as np
import pytest
from scipy import ndimage

from bids_gsrecon.fields.densify import isotropic_gaussians
from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.fields.initialize import sample_by_detail
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.render import render
from bids_gsrecon.imaging.sampling import make_sampling
from bids_gsrecon.recon.amplitudes import (
    DETAIL_ROUNDS,
    FIELD_TO_GOAL_DB,
    FrozenLayers,
    fit_amplitudes,
    psnr_db,
    sampled_at,
)
from tests.helpers import assert_adjoint
from tests.phantoms import head

AFFINE = np.array([[1.0, -0.2, 0, 4], [0.2, 1.0, 0, -3], [0, 0, 1.1, 7], [0, 0, 0, 1]])
GRID = Lattice((12, 10, 8), AFFINE)


def field(n=9, seed=0):
    rng = np.random.default_rng(seed)
    index = np.stack(np.unravel_index(rng.permutation(6 * 5 * 4)[:n], (6, 5, 4)), 1) * 2.0 + 0.5
    quaternions = rng.normal(size=(n, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    scales = np.log(rng.uniform(0.9, 1.6, (n, 3)))
    weights = np.log(rng.uniform(0.3, 0.9, n))
    return GaussianField(GRID.to_world(index), scales, quaternions, weights, np.zeros((n, 1)))


def columns(layers, lattice):
    """The dense operator from amplitudes to voxels, one rendered image per Gaussian."""
    out = []
    for layer in layers:
        for unit in np.eye(len(layer)):
            out.append(render([layer.with_amplitudes(unit[:, None], ('a',))], lattice).ravel())
    return np.stack(out, 1).astype(np.float64)


def silent(stage, done, total):
    pass


@pytest.fixture
def layers():
    rng = np.random.default_rng(1)
    narrow = isotropic_gaussians(GRID.to_world(rng.uniform(1, 7, (4, 3))), 0.8, np.zeros((4, 1)), ('a',))
    return [field(), narrow]


def test_frozen_layers_are_the_rendered_field(layers):
    frozen, matrix = FrozenLayers(layers, GRID), columns(layers, GRID)
    rng = np.random.default_rng(0)
    amplitudes = rng.normal(size=matrix.shape[1]).astype(np.float32)
    np.testing.assert_allclose(frozen.forward(amplitudes).ravel(), matrix @ amplitudes, atol=5e-4)
    image, weights = rng.normal(size=GRID.shape).astype(np.float32), rng.random(GRID.shape, np.float32)
    np.testing.assert_allclose(frozen.adjoint(image), matrix.T @ image.ravel(), atol=2e-4)
    np.testing.assert_allclose(frozen.squares(weights), weights.ravel() @ matrix**2, rtol=1e-3)
    assert [len(part) for part in frozen.split(amplitudes)] == [9, 4]
    assert frozen.nbytes > 0
    assert_adjoint(
        frozen.forward, frozen.adjoint, (matrix.shape[1],), GRID.shape, dtype=np.float32, rtol=1e-5
    )


@pytest.mark.parametrize('mu', [0.02, 0.5])
def test_without_detail_it_is_dense_least_squares(mu):
    coarse = Lattice((6, 5, 4), GRID.affine @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1.0]]))  # fmt: skip
    profiles = [SliceProfile('box', float(s), a) for a, s in enumerate(coarse.voxel_sizes_mm)]
    sampling = make_sampling(GRID, coarse, profiles)
    rng = np.random.default_rng(3)
    data, goal = rng.random(coarse.shape, np.float32), rng.random(GRID.shape, np.float32)
    weights = (rng.random(coarse.shape) > 0.2).astype(np.float32)
    goal_weights = (mu * (rng.random(GRID.shape) > 0.1)).astype(np.float32)

    def normal(x):
        return sampling.adjoint(weights * sampling.forward(x)) + goal_weights * x

    start = field()
    fit = fit_amplitudes(
        start,
        GRID,
        normal,
        sampling.adjoint(weights * data) + goal_weights * goal,
        precondition_weights=sampling.diagonal(weights) + goal_weights,
        goal=goal,
        mask=np.ones(GRID.shape, bool),
        detail=False,
        progress=silent,
    )
    matrix = columns([start], GRID)
    acquired = np.stack(
        [sampling.forward(c.reshape(GRID.shape).astype(np.float32)).ravel() for c in matrix.T], 1
    )
    rows = np.concatenate([
        np.sqrt(weights.ravel())[:, None] * acquired,
        np.sqrt(goal_weights.ravel().astype(np.float64))[:, None] * matrix,
    ])  # fmt: skip
    right = np.concatenate([
        np.sqrt(weights.ravel()) * data.ravel(), np.sqrt(goal_weights.ravel()) * goal.ravel()
    ])  # fmt: skip
    expected = np.linalg.lstsq(rows, right, rcond=None)[0]
    assert len(fit.layers) == 1
    np.testing.assert_allclose(fit.layers[0].amplitudes[:, 0], expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(fit.image.ravel(), matrix @ expected, atol=2e-3)
    assert fit.goal_db == pytest.approx(psnr_db(fit.image, goal, np.ones(GRID.shape, bool)))
    np.testing.assert_array_equal(fit.layers[0].means_mm, start.means_mm)


@pytest.fixture(scope='module')
def phantom():
    """A goal of soft tissue edges and Gaussians placed for it, far fewer than voxels."""
    _, t2w, mask, _ = head((24, 26, 22))
    goal = (ndimage.gaussian_filter(t2w.data, 0.6) / 500).astype(np.float32)
    start = sample_by_detail(goal, t2w.affine, mask, 1200, seed=0, channel='image')
    return start, t2w.lattice, goal, mask


def fit_phantom(phantom, **options):
    start, lattice, goal, mask = phantom
    weights = mask.astype(np.float32)
    return fit_amplitudes(
        start,
        lattice,
        lambda x: weights * x,
        weights * goal,
        precondition_weights=weights,
        goal=goal,
        mask=mask,
        **options,
    )


def test_detail_reaches_its_goal(phantom):
    _, lattice, goal, mask = phantom
    plain = fit_phantom(phantom, detail=False, progress=silent)
    assert len(plain.layers) == 1 and plain.goal_db < FIELD_TO_GOAL_DB - 10, 'nothing would be left to do'
    seen = []
    fit = fit_phantom(phantom, progress=lambda stage, done, total: seen.append((done, total)))
    assert fit.goal_db >= FIELD_TO_GOAL_DB
    assert 2 <= len(fit.layers) <= 1 + DETAIL_ROUNDS
    assert [layer.composition for layer in fit.layers] == ['normalized'] + ['sum'] * (len(fit.layers) - 1)
    # What is said of the field holds for the field as anyone renders it.
    again = render(fit.layers, lattice)
    np.testing.assert_allclose(again, fit.image, atol=1e-4)
    assert psnr_db(again, goal, mask) == pytest.approx(fit.goal_db, abs=0.1)
    assert seen[-1] == (1 + DETAIL_ROUNDS, 1 + DETAIL_ROUNDS)
    assert fit.frozen_gb > plain.frozen_gb > 0


def test_no_detail_where_the_field_holds_the_goal(phantom):
    start, lattice, _, mask = phantom
    own = start.with_amplitudes(start.amplitudes, ('image',))
    goal = render([own], lattice)
    fit = fit_phantom((own, lattice, goal, mask), progress=silent)
    assert len(fit.layers) == 1 and fit.goal_db > FIELD_TO_GOAL_DB


def test_values_at_the_centres():
    image = np.random.default_rng(0).random(GRID.shape)
    index = np.array([[1.4, 2.6, 3.0], [-5, 4, 4], [3, 30, 30]])
    some = isotropic_gaussians(GRID.to_world(index), 1.0, np.zeros((3, 1)), ('a',))
    expected = [image[1, 3, 3], image[0, 4, 4], image[3, 9, 7]]
    np.testing.assert_allclose(sampled_at(some, GRID, image), expected, rtol=1e-6)


def test_psnr_counts_the_mask_only():
    truth = np.zeros((4, 4, 4))
    image = truth.copy()
    image[:2] = 0.1
    image[2:] = 5
    assert psnr_db(image, truth, image < 1) == pytest.approx(20)
    assert np.isfinite(psnr_db(truth, truth, truth == 0))
