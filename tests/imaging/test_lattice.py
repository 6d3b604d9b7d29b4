import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.profile import SliceProfile


def oblique(shape=(10, 12, 14), sizes=(0.8, 1.0, 3.0), seed=0):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * sizes
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    return Lattice(shape, affine)


def test_world_and_index_are_inverse():
    lattice = oblique()
    points = np.random.default_rng(1).uniform(0, 10, (5, 3))
    np.testing.assert_allclose(lattice.to_index(lattice.to_world(points)), points)
    with pytest.raises(ValueError, match='read-only'):
        lattice.world_to_voxel[0, 0] = 2.0


def test_refining_keeps_the_box():
    lattice = oblique()
    fine = lattice.refined((2, 3, 5))
    assert fine.shape == (20, 36, 70)
    # The corners of the outermost cells coincide.
    for corner in ([-0.5] * 3, np.array(lattice.shape) - 0.5):
        index = (np.asarray(corner) + 0.5) * (2, 3, 5) - 0.5
        np.testing.assert_allclose(fine.to_world(index), lattice.to_world(corner))
    np.testing.assert_allclose(fine.centre_mm, lattice.centre_mm)


def test_cropping_keeps_the_world():
    lattice = oblique()
    crop = lattice.cropped((2, -1, 3), (7, 5, 20))
    assert crop.shape == (5, 6, 17)
    np.testing.assert_allclose(crop.to_world([0, 0, 0]), lattice.to_world([2, -1, 3]))


def test_resampling_keeps_centre_and_extent():
    lattice = oblique()
    other = lattice.resampled(0.5)
    np.testing.assert_allclose(other.voxel_sizes_mm, 0.5)
    np.testing.assert_allclose(other.centre_mm, lattice.centre_mm)
    np.testing.assert_allclose(np.array(other.shape) * 0.5, np.array(lattice.shape) * (0.8, 1, 3), atol=0.26)


def test_same_grid():
    lattice = oblique()
    moved = lattice.affine.copy()
    moved[0, 3] += 0.01
    assert lattice.same_as(Lattice(lattice.shape, lattice.affine))
    assert not lattice.same_as(Lattice(lattice.shape, moved))
    assert lattice.same_as(Lattice(lattice.shape, moved), tolerance_mm=0.02)


@pytest.mark.parametrize(
    ('shape', 'affine'),
    [
        ((2, 2, 0), np.eye(4)),
        ((2, 2), np.eye(4)),
        ((2, 2, 2), np.zeros((4, 4))),
        ((2, 2, 2), np.full((4, 4), np.nan)),
    ],
)
def test_impossible_grids_are_refused(shape, affine):
    with pytest.raises(ValueError, match='must|singular'):
        Lattice(shape, affine)


def test_volume_checks_its_shape():
    with pytest.raises(ValueError, match='differ'):
        Volume(np.zeros((2, 2, 3)), Lattice((2, 2, 2), np.eye(4)))


def test_box_cells_are_a_block_mean():
    weights = SliceProfile('box', 4.0, 2).cell_weights(3, 4.0, 4)
    np.testing.assert_allclose(weights, np.kron(np.eye(3), np.full((1, 4), 0.25)), atol=1e-12)


@pytest.mark.parametrize('kind', ['box', 'gaussian'])
@pytest.mark.parametrize('thickness', [2.0, 4.0, 5.5])
def test_cell_weights_have_unit_mass_and_the_right_centre(kind, thickness):
    profile = SliceProfile(kind, thickness, 0)
    margin = 14
    weights = profile.cell_weights(5, 4.0, 5, margin)
    np.testing.assert_allclose(weights.sum(1), 1)
    centres = (np.arange(weights.shape[1]) - margin + 0.5) * 0.8 - 2.0
    np.testing.assert_allclose(weights @ centres, np.arange(5) * 4.0, atol=1e-9)
    spread = np.sqrt(weights @ centres**2 - (weights @ centres) ** 2)
    expected = thickness / np.sqrt(12) if kind == 'box' else thickness / 2.3548 * 0.9866  # cut at 3 sigma
    # Putting a cell's mass at its centre changes the variance by at most cell^2 / 6.
    np.testing.assert_allclose(spread**2, expected**2, rtol=0.02, atol=0.8**2 / 6)


@pytest.mark.parametrize('bad', [dict(kind='x'), dict(thickness_mm=0.0), dict(axis=3)])
def test_impossible_profiles_are_refused(bad):
    with pytest.raises(ValueError, match='profile|thickness|axis'):
        SliceProfile(**{**dict(kind='box', thickness_mm=4.0, axis=2), **bad})
