"""The climbed correlation: its slopes are those of its values, and it finds small motions."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.correlation import Correlation, nearest_rotation
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.mutual_information import rigid_from_parameters

N = 30


def lump():
    x, y, z = np.meshgrid(*[np.arange(N) - (N - 1) / 2] * 3, indexing='ij')
    mask = (x / 9) ** 2 + (y / 12) ** 2 + (z / 7) ** 2 < 1
    data = 1 + 0.5 * np.sin(0.5 * x + 0.3 * y) + 0.3 * np.cos(0.6 * z - 0.2 * x)
    affine = np.eye(4)
    affine[:3, 3] = [-(N - 1) / 2, 3 - (N - 1) / 2, -(N - 1) / 2]
    return Volume(ndimage.gaussian_filter(data * mask, 0.7), Lattice(data.shape, affine)), mask


@pytest.fixture(scope='module')
def pair():
    volume, mask = lump()
    return Correlation(volume, mask, volume, mask, voxel_mm=1.0, blur_mm=1.0)


def test_it_is_one_in_place_and_less_elsewhere(pair):
    assert pair(np.eye(4)) == pytest.approx(1, abs=1e-4)
    assert pair.inner(np.eye(4)) == pytest.approx(1, abs=1e-4)
    for axis in range(6):
        parameters = np.zeros(6)
        parameters[axis] = 0.1 if axis < 3 else 2.0
        motion = rigid_from_parameters(parameters, pair.centre_mm)
        assert pair(motion) < 0.995 and pair.inner(motion) < 0.995
    away = np.eye(4)
    away[0, 3] = 300
    assert pair(away) < 0.05 and pair.inner(away) == 0


@pytest.mark.parametrize('affine', [False, True])
def test_the_slopes_are_those_of_the_values(pair, affine):
    """The residual's sum of squares falls by twice the Jacobian times the residual along every parameter."""
    start = rigid_from_parameters([0.06, -0.04, 0.05, 0.7, -0.9, 0.5], pair.centre_mm)
    _, jacobian, residual = pair._at(start, affine)
    predicted = -2 * jacobian.T @ residual
    step = 0.05
    for k in range(jacobian.shape[1]):
        sums = []
        for sign in (1, -1):
            parameters = np.zeros(jacobian.shape[1])
            parameters[k] = sign * step
            r = pair._at(pair._moved(start, parameters), affine)[2]
            sums.append(r @ r)
        assert (sums[0] - sums[1]) / (2 * step) == pytest.approx(
            predicted[k], abs=0.06 * np.abs(predicted).max()
        )


@pytest.mark.parametrize('affine', [False, True])
def test_it_climbs_back(pair, affine):
    start = rigid_from_parameters([0.3, -0.2, 0.35, 3, -2, 2.5], pair.centre_mm)
    motion, score = pair.optimise(start, affine=affine, n_steps=40, tolerance_mm=0.001)
    assert score > 0.999
    np.testing.assert_allclose(motion, np.eye(4), atol=0.03)
    np.testing.assert_allclose(pair.rigid_part(motion)[:3, :3], np.eye(3), atol=0.01)


def test_the_nearest_rotation_is_no_reflection():
    rotation = Rotation.from_euler('xyz', [10, 50, -30], degrees=True).as_matrix()
    motion = np.eye(4)
    motion[:3, :3] = rotation @ np.diag([1.2, 0.9, 1.0])
    np.testing.assert_allclose(nearest_rotation(motion) @ nearest_rotation(motion).T, np.eye(3), atol=1e-12)
    motion[:3, :3] = 1.1 * rotation
    np.testing.assert_allclose(nearest_rotation(motion), rotation, atol=1e-12)
    motion[:3, :3] = rotation @ np.diag([-1, 1, 1])
    assert np.linalg.det(nearest_rotation(motion)) == pytest.approx(1)
