import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.resample import reached, resample

DATA = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32) + 1


def shifted(*steps):
    matrix = np.eye(4)
    matrix[:3, 3] = steps
    return matrix


@pytest.mark.parametrize('steps', [(0, 0, 0), (2, -1, 3), (-4, 5, 0), (20, 0, 0), (-20, 1, 1)])
@pytest.mark.parametrize('shape', [(6, 7, 8), (3, 12, 5)])
def test_whole_steps_are_a_copy(steps, shape):
    found = resample(DATA, shifted(*steps), shape, order=3)
    for index in np.ndindex(*shape):
        source = np.add(index, steps)
        inside = ((source >= 0) & (source < DATA.shape)).all()
        assert found[index] == (DATA[tuple(source)] if inside else 0)
    assert found.dtype == np.float32


def test_a_copy_despite_rounding_of_the_affine():
    found = resample(DATA, shifted(2 + 2e-5, -1 - 3e-5, 0), DATA.shape, order=1)
    np.testing.assert_array_equal(found[:4, 1:], DATA[2:, :-1])


def test_mode_holds_for_whole_steps_too():
    found = resample(DATA, shifted(-2, 1, 0), (9, 7, 8), order=1, mode='nearest')
    expected = np.pad(DATA, ((2, 1), (0, 1), (0, 0)), mode='edge')[:, 1:]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    inner = resample(DATA, shifted(1, 1, 1), (3, 3, 3), order=3, mode='nearest')
    np.testing.assert_array_equal(inner, DATA[1:4, 1:4, 1:4])


@pytest.mark.parametrize('order', [1, 3])
def test_half_steps_are_interpolated(order):
    found = resample(DATA, shifted(0.5, 0, 0), DATA.shape, order=order)
    expected = ndimage.map_coordinates(
        DATA, np.indices(DATA.shape) + np.array([0.5, 0, 0])[:, None, None, None], order=order
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if order == 1:
        np.testing.assert_allclose(found[:-1], (DATA[:-1] + DATA[1:]) / 2, atol=1e-6)


def test_a_ramp_on_an_oblique_grid_and_what_lies_beyond():
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('xyz', [10, 20, -15], degrees=True).as_matrix() * 0.7
    matrix[:3, 3] = 1, 1.5, 2
    grid = np.indices((6, 7, 8)).astype(float)
    ramp = 1 + 0.3 * grid[0] - 0.2 * grid[1] + 0.1 * grid[2]
    where = (
        np.einsum('ab,bijk->aijk', matrix[:3, :3], np.indices((9, 9, 9))) + matrix[:3, 3, None, None, None]
    )
    edge = np.array(DATA.shape)[:, None, None, None] - 1
    inside = ((where >= 0) & (where <= edge)).all(0)
    assert 0.1 < inside.mean() < 0.9
    expected = 1 + 0.3 * where[0] - 0.2 * where[1] + 0.1 * where[2]
    found = resample(ramp, matrix, (9, 9, 9), order=1)
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)
    outside = ((where < -1) | (where > edge + 1)).any(0)
    assert outside.any() and (found[outside] == 0).all()
    nearest = resample(ramp, matrix, (9, 9, 9), order=1, mode='nearest')
    where = np.clip(where, 0, edge)
    np.testing.assert_allclose(nearest, 1 + 0.3 * where[0] - 0.2 * where[1] + 0.1 * where[2], atol=1e-5)


def test_reached_is_the_box_of_the_image():
    image = Lattice((4, 5, 3), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert reached(image, image).all()
    fine = image.refined((2, 3, 4))
    assert reached(fine, image).all(), 'cells at the very edge belong to the box'
    wide = fine.cropped((-2, -3, -4), np.array(fine.shape) + (2, 3, 4))
    expected = np.zeros(wide.shape, bool)
    expected[2:-2, 3:-3, 4:-4] = True
    np.testing.assert_array_equal(reached(wide, image), expected)


def test_reached_by_a_turned_grid():
    image = Lattice((8, 9, 10), np.diag([1.0, 1.0, 1.5, 1.0]))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler('xyz', [25, 10, 40], degrees=True).as_matrix()
    affine[:3, 3] = 1, -2, 3
    other = Lattice((9, 9, 9), affine)
    found = reached(other, image)
    assert 0.2 < found.mean() < 0.9
    for index in np.ndindex(*other.shape):
        where = image.to_index(other.to_world(index))
        assert found[index] == bool(((where > -0.5) & (where < np.array(image.shape) - 0.5)).all())
