"""The published model against its formula."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.render import render
from bids_gsrecon.imaging.sampling import make_sampling
from bids_gsrecon.imaging.simulate import coarse_voxels
from bids_gsrecon.recon.superres.grids import voxel_profiles
from bids_gsrecon.recon.superres.physics import (
    START_RELAXATION,
    START_SCALE,
    fit_physics,
    gaussian_per_voxel,
    relaxation_of,
)
from tests.phantoms import folded_head

TURN = Rotation.from_euler('xyz', [25, -40, 15], degrees=True).as_matrix()
AFFINES = {
    'plain': np.diag([1.0, 1.0, 3.0]),
    'flipped twice': np.diag([-1.0, 2.0, -1.0]),
    'left-handed': np.diag([-1.0, 1.0, 2.5]),
    'oblique': TURN @ np.diag([0.8, 1.2, 4.0]),
    'oblique, left-handed': TURN @ np.diag([0.8, -1.2, 4.0]),
    'other order': np.diag([1.0, 2.0, 3.0])[:, [2, 0, 1]],
    'other order, left-handed': TURN @ np.diag([1.0, 2.0, 3.0])[:, [1, 0, 2]],
}


def lattice_of(linear, shape=(4, 5, 3)):
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = 7, -3, 11
    return Lattice(shape, affine)


def test_image_is_that_of_the_formula():
    """I = sum_i w_i A_i / sum_i w_i, w_i = (1 - exp(-rt_i)) g_i; g cut at three standard deviations."""
    rng = np.random.default_rng(0)
    lattice = lattice_of(AFFINES['oblique'], (6, 7, 5))
    centres = lattice.to_world(rng.uniform(1, 4, (5, 3)))
    turns = Rotation.random(5, random_state=1)
    scales = rng.uniform(1.5, 4.0, (5, 3))
    rt, amplitudes = rng.uniform(0.05, 3.0, 5), rng.uniform(0.2, 1.0, 5)
    field = GaussianField(
        centres,
        np.log(scales),
        turns.as_quat()[:, [3, 0, 1, 2]],
        np.log(1 - np.exp(-rt)),
        amplitudes[:, None],
    )
    image = render([field], lattice)
    judged = 0
    for index in np.ndindex(*lattice.shape):
        x = lattice.to_world(index)
        numerator = denominator = 0.0
        for i in range(5):
            along = turns[i].inv().apply(x - centres[i]) / scales[i]
            g = max(np.exp(-0.5 * along @ along) - np.exp(-4.5), 0.0)
            w = (1 - np.exp(-rt[i])) * g
            numerator += w * amplitudes[i]
            denominator += w
        if denominator > 1e-3:
            judged += 1
            assert image[index] == pytest.approx(numerator / denominator, rel=1e-3)
    assert judged > 0.3 * lattice.n_voxels


def test_relaxation_is_the_inverse_of_the_weight():
    rt = np.geomspace(1e-4, 12, 50)
    np.testing.assert_allclose(relaxation_of(np.log(1 - np.exp(-rt))), rt, rtol=1e-6)
    assert np.isfinite(relaxation_of(np.array([0.0, 1.0, -1e-9]))).all(), 'a weight of one'
    assert relaxation_of(np.log(0.5)) == pytest.approx(START_RELAXATION)


@pytest.mark.parametrize('name', AFFINES)
def test_a_gaussian_is_shaped_like_its_voxel(name):
    lattice = lattice_of(AFFINES[name])
    rng = np.random.default_rng(0)
    image, region = rng.random(lattice.shape), rng.random(lattice.shape) > 0.5
    field = gaussian_per_voxel(image, lattice, region, 'image')
    assert len(field) == region.sum() and field.composition == 'normalized' and field.channels == ('image',)
    voxels = np.argwhere(region)
    np.testing.assert_allclose(field.means_mm, lattice.to_world(voxels))
    np.testing.assert_allclose(field.amplitudes[:, 0], image[region], rtol=1e-6)
    np.testing.assert_allclose(np.exp(field.log_weights), 0.5, rtol=1e-6)
    # A unit ball of voxels, widened by the start scale: the covariance of an affine image of a round Gaussian.
    expected = START_SCALE**2 * AFFINES[name] @ AFFINES[name].T
    upper = expected[[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(field.covariances_mm2(), np.tile(upper, (len(field), 1)), rtol=1e-4, atol=1e-4)


def test_an_empty_region_is_refused():
    lattice = lattice_of(np.eye(3))
    with pytest.raises(ValueError, match='no voxel'):
        gaussian_per_voxel(np.ones(lattice.shape), lattice, np.zeros(lattice.shape, bool), 'image')


@pytest.mark.parametrize('factors', [(2, 2, 2), (1, 1, 3)])
def test_the_fit_explains_the_acquired_voxels(factors):
    truth, mask = folded_head((24, 26, 24))
    coarse = coarse_voxels(truth, factors)
    region = coarse_voxels(type(truth)(mask, truth.lattice), factors).data > 0.3
    data = coarse.data / 500
    fine = coarse.lattice.refined(factors)
    sampling = make_sampling(fine, coarse.lattice, voxel_profiles(coarse.lattice))
    start = gaussian_per_voxel(data, coarse.lattice, region, 'image')

    def misfit(field):
        left = sampling.forward(render([field], fine)) - data
        return np.sqrt(np.mean(left[region] ** 2))

    steps = []
    found = fit_physics(
        data,
        coarse.lattice,
        region,
        fine,
        sampling.reversed(),
        n_iterations=25,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert len(found) == region.sum() and steps[-1] == (25, 25)
    assert misfit(found) < 0.3 * misfit(start)
    assert found.log_weights.max() < 0 and (relaxation_of(found.log_weights) > 0).all()
    assert not np.array_equal(found.log_weights, start.log_weights), 'the relaxation is learned'
