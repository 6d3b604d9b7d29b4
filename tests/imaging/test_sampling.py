import numpy as np
import pytest
from scipy import special
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.profile import FWHM_TO_SIGMA, SliceProfile
from bids_gsrecon.imaging.sampling import Band, VoxelSampling, apply_band, make_sampling
from tests.helpers import assert_adjoint

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler('xyz', [20, -35, 10], degrees=True).as_matrix() @ np.diag(
    [0.9, 1.3, 2.2]
)
OBLIQUE[:3, 0] *= -1  # left-handed
OBLIQUE[:3, 3] = [-12, 30, 5]
COARSE = Lattice((5, 4, 6), OBLIQUE)
SIZES = COARSE.voxel_sizes_mm


def profiles(kinds, thickness=(None, None, None)):
    return tuple(
        SliceProfile(kind, float(t or size), axis)
        for axis, (kind, t, size) in enumerate(zip(kinds, thickness, SIZES))
    )


def some(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def world_ramp(lattice):
    index = np.stack(np.meshgrid(*map(np.arange, lattice.shape), indexing='ij'), -1)
    return (lattice.to_world(index) @ [0.03, -0.02, 0.05] + 2).astype(np.float32)


def dense(sampling):
    matrix = np.ones((1, 1))
    for band in sampling.bands:
        matrix = np.kron(matrix, band.dense().astype(np.float64))
    return matrix


CASES = {
    'cells': (COARSE.refined((2, 3, 4)), profiles(['box'] * 3)),
    'point': (COARSE.refined((2, 3, 4)), profiles(['point'] * 3)),
    'gaussian slices': (COARSE.refined((1, 2, 5)), profiles(['box', 'box', 'gaussian'])),
    'gap': (COARSE.refined((1, 1, 4)), profiles(['box'] * 3, (None, None, 1.3))),
    'overlap': (COARSE.refined((2, 1, 4)), profiles(['box'] * 3, (None, None, 4.0))),
    'other spacings': (COARSE.resampled((0.41, 0.6, 0.53)), profiles(['box', 'point', 'gaussian'])),
    'only a part': (COARSE.refined((2, 2, 2)).cropped((1, -1, 3), (8, 6, 15)), profiles(['box'] * 3)),
}


@pytest.fixture(params=CASES)
def sampling(request):
    fine, kinds = CASES[request.param]
    return make_sampling(fine, COARSE, kinds)


def test_operator_is_its_dense_matrix(sampling):
    x, matrix = some(sampling.fine_shape), dense(sampling)
    assert matrix.shape == (COARSE.n_voxels, x.size)
    np.testing.assert_allclose(sampling.forward(x).ravel(), matrix @ x.ravel(), atol=1e-5)
    y = some(sampling.coarse_shape)
    np.testing.assert_allclose(sampling.adjoint(y).ravel(), matrix.T @ y.ravel(), atol=1e-5)


def test_adjoint(sampling):
    assert_adjoint(
        sampling.forward, sampling.adjoint, sampling.fine_shape, COARSE.shape, dtype=np.float32, rtol=1e-5
    )


def test_diagonal_is_that_of_the_normal_matrix(sampling):
    weights = np.random.default_rng(1).uniform(0.2, 1, COARSE.shape).astype(np.float32)
    matrix = dense(sampling)
    expected = np.diag(matrix.T @ np.diag(weights.ravel().astype(np.float64)) @ matrix)
    np.testing.assert_allclose(sampling.diagonal(weights).ravel(), expected, rtol=1e-4, atol=1e-7)


def test_constants_are_kept(sampling):
    np.testing.assert_allclose(sampling.forward(np.ones(sampling.fine_shape)), 1, atol=1e-5)


def test_reversed_is_the_operator_for_reversed_storage(sampling):
    x, y, back = some(sampling.fine_shape), some(COARSE.shape), sampling.reversed()
    assert back.fine_shape == sampling.fine_shape[::-1] and back.coarse_shape == COARSE.shape[::-1]
    np.testing.assert_allclose(back.forward(x.transpose(2, 1, 0)).T, sampling.forward(x), atol=1e-6)
    np.testing.assert_allclose(back.adjoint(y.transpose(2, 1, 0)).T, sampling.adjoint(y), atol=1e-6)


def test_whole_cells_are_block_means():
    fine, kinds = CASES['cells']
    x = some(fine.shape)
    expected = x.reshape(5, 2, 4, 3, 6, 4).mean((1, 3, 5))
    np.testing.assert_allclose(make_sampling(fine, COARSE, kinds).forward(x), expected, atol=1e-6)


def test_points_are_trilinear():
    fine = CASES['other spacings'][0]
    x = some(fine.shape)
    found = make_sampling(fine, COARSE, profiles(['point'] * 3)).forward(x)
    for index in np.ndindex(*COARSE.shape):
        where = fine.to_index(COARSE.to_world(index))
        low = np.floor(where).astype(int)
        expected = 0.0
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, where - low, 1 - (where - low)))
            expected += weight * x[tuple(low + corner)]
        assert found[index] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(('factor', 'thickness'), [(4, 1.3), (4, 0.55), (5, 2.2), (3, 4.0)])
def test_a_slice_is_the_mean_over_its_thickness(factor, thickness):
    """Gap, one whole cell, no gap, overlap: the overlap in mm of every cell with the slab, by a fine count."""
    fine = COARSE.refined((1, 1, factor))
    x = some(fine.shape)
    found = make_sampling(fine, COARSE, profiles(['box'] * 3, (None, None, thickness))).forward(x)
    cell, n = 2.2 / factor, 6 * factor
    for k in range(6):
        points = (np.arange(20000) + 0.5) / 20000 * thickness - thickness / 2 + k * 2.2  # mm along the axis
        which = np.floor((points + 1.1) / cell).astype(int)
        weights = np.bincount(which[(which >= 0) & (which < n)], minlength=n).astype(float)
        np.testing.assert_allclose(found[:, :, k], x @ (weights / weights.sum()), atol=2e-3)


def test_gaussian_slices_have_the_mass_of_the_gaussian():
    fine, kinds = CASES['gaussian slices']
    weights = make_sampling(fine, COARSE, kinds).bands[2].dense()
    sigma, cell = 2.2 * FWHM_TO_SIGMA, 2.2 / 5
    centres = (np.arange(30) - 2) * cell
    for k in range(6):
        offset = centres - k * 2.2
        mass = special.ndtr((offset + cell / 2) / sigma) - special.ndtr((offset - cell / 2) / sigma)
        np.testing.assert_allclose(weights[k], mass / mass.sum(), atol=2e-3)  # ours is cut at three sigma
    above = weights[2] > 0.5 * weights[2].max()
    assert above.sum() * cell == pytest.approx(2.2, abs=cell)


@pytest.mark.parametrize('kind', ['box', 'gaussian', 'point'])
@pytest.mark.parametrize('factors', [(2, 3, 4), (1, 2, 5)])
def test_a_ramp_in_the_world_stays_where_it_is(kind, factors):
    fine = COARSE.refined(factors)
    found = make_sampling(fine, COARSE, profiles([kind] * 3)).forward(world_ramp(fine))
    expected = world_ramp(COARSE)
    inner = (slice(1, -1),) * 3  # a gaussian reaches beyond the grid
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)
    if kind == 'box':
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_ramp_through_cells_that_do_not_fit():
    """Voxels of 1.7 cells: a box cuts cells, whose value stands for all of them."""
    fine = Lattice((20, 20, 24), COARSE.resampled(SIZES / 1.7).affine).cropped((-4, -4, -4), (14, 14, 18))
    expected = world_ramp(COARSE)
    for kind, atol in (('point', 1e-5), ('gaussian', 2e-3), ('box', 0.02)):
        found = make_sampling(fine, COARSE, profiles([kind] * 3)).forward(world_ramp(fine))
        np.testing.assert_allclose(found, expected, atol=atol)


def test_voxels_beyond_the_fine_grid_take_the_nearest_cells():
    fine = COARSE.cropped((0, 0, 0), (5, 4, 3))
    x = some(fine.shape)
    found = make_sampling(fine, COARSE, profiles(['box'] * 3)).forward(x)
    np.testing.assert_allclose(found[:, :, :3], x)
    np.testing.assert_allclose(found[:, :, 3:], np.repeat(x[:, :, 2:], 3, 2))


@pytest.mark.parametrize(
    'change',
    [
        np.diag([1.0, -1.0, 1.0, 1.0]),  # flipped
        np.eye(4)[[1, 0, 2, 3]],  # other order
        np.block([[Rotation.from_euler('z', 5, degrees=True).as_matrix(), np.zeros((3, 1))], [0, 0, 0, 1]]),
    ],
    ids=['flipped', 'reordered', 'turned'],
)
def test_other_axes_are_refused(change):
    fine = COARSE.refined((2, 2, 2))
    with pytest.raises(ValueError, match='same axes'):
        make_sampling(Lattice(fine.shape, fine.affine @ change), COARSE, profiles(['box'] * 3))


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_bands_along_every_axis(axis):
    matrix = np.zeros((4, 7))
    for row, first in enumerate((0, 2, 3, 5)):
        matrix[row, first : first + 2] = row + 1, -0.5
    matrix[3, 6] = 0  # a narrower row at the end
    band = Band.from_dense(matrix)
    np.testing.assert_array_equal(band.dense(), matrix.astype(np.float32))
    np.testing.assert_array_equal(band.transposed().dense(), matrix.T.astype(np.float32))
    np.testing.assert_array_equal(band.squared().dense(), (matrix**2).astype(np.float32))
    x = some([7 if a == axis else 3 + a for a in range(3)])
    expected = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    np.testing.assert_allclose(apply_band(band, x, axis), expected, atol=1e-5)


def test_an_identity_costs_and_changes_nothing():
    sampling = VoxelSampling(tuple(Band.from_dense(np.eye(n)) for n in (3, 4, 5)))
    x = some((3, 4, 5))
    assert sampling.forward(x) is x and sampling.adjoint(x) is x
