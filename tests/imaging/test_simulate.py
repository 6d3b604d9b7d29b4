import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.simulate import coarse_voxels, thick_slices
from tests.phantoms import head


def linear_image(shape, affine):
    """An image linear in world position: a slab's mean is the value at its centre."""
    volume = Volume.from_affine(np.zeros(shape), affine)
    world = volume.lattice.to_world(np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1))
    return Volume((world @ [0.3, -0.2, 0.5] + 7).astype(np.float32), volume.lattice)


OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler('xyz', [20, -35, 10], degrees=True).as_matrix() @ np.diag(
    [0.8, 1.1, 0.9]
)
OBLIQUE[:3, 3] = [-12, 30, 5]


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize(
    'options', [{'factor': 3}, {'factor': 4}, {'thickness_mm': 2.3}, {'factor': 3, 'gap_mm': 1.3}]
)
@pytest.mark.parametrize('profile', ['box', 'gaussian'])
def test_header_origin_is_the_centre_of_the_slab(axis, options, profile):
    thick = thick_slices(linear_image((24, 24, 24), OBLIQUE), axis=axis, profile=profile, **options)
    index = np.stack(np.meshgrid(*map(np.arange, thick.data.shape), indexing='ij'), -1)
    expected = thick.lattice.to_world(index) @ [0.3, -0.2, 0.5] + 7
    inner = [slice(None)] * 3
    # A slab's edge may cut a voxel of the truth, which is constant inside: half a voxel's slope at most.
    if profile == 'gaussian':
        inner[axis] = slice(2, -2)  # the profile reaches beyond the edges
    exact = (
        float(options.get('factor', 0)).is_integer()
        and 'gap_mm' not in options
        and 'thickness_mm' not in options
    )
    np.testing.assert_allclose(thick.data[tuple(inner)], expected[tuple(inner)], atol=2e-3 if exact else 0.05)


def test_box_slab_is_the_block_mean_and_conserves_the_mean():
    _, truth, _, _ = head((20, 22, 24))
    thick = thick_slices(truth, axis=1, factor=5)
    expected = truth.data[:, :20].reshape(20, 4, 5, 24).mean(2)
    np.testing.assert_allclose(thick.data, expected, rtol=1e-5, atol=1e-3)
    assert thick.data.shape == (20, 4, 24)
    np.testing.assert_allclose(thick.lattice.voxel_sizes_mm, [1, 5, 1])


def test_gaussian_profile_has_the_stated_width():
    data = np.zeros((3, 3, 121))
    data[:, :, 60] = 1
    spread = [
        thick_slices(
            Volume.from_affine(data[:, :, shift:], np.eye(4)), axis=2, factor=9, profile='gaussian'
        ).data[1, 1]
        for shift in range(9)
    ]
    # nine shifts interleave to a fine sampling of the profile
    curve = np.stack([s[:12] for s in spread[::-1]], 1).ravel()
    fwhm = np.count_nonzero(curve >= curve.max() / 2)
    assert abs(fwhm - 9) <= 1
    np.testing.assert_allclose(curve.sum(), 1, atol=0.02)


def test_gap_and_overlap_set_the_step():
    volume = linear_image((10, 10, 40), np.eye(4))
    assert thick_slices(volume, axis=2, factor=4, gap_mm=1).lattice.voxel_sizes_mm[2] == pytest.approx(5)
    assert thick_slices(volume, axis=2, factor=4, gap_mm=1).data.shape[2] == 8
    assert thick_slices(volume, axis=2, factor=4, gap_mm=-2).lattice.voxel_sizes_mm[2] == pytest.approx(2)


def test_noise_is_rician_scaled_and_repeatable():
    flat = Volume.from_affine(
        np.concatenate([np.full((40, 40, 20), 100.0), np.zeros((40, 40, 20))], 2), np.eye(4)
    )
    a = thick_slices(flat, axis=2, factor=4, noise=0.05, seed=3)
    b = thick_slices(flat, axis=2, factor=4, noise=0.05, seed=3)
    c = thick_slices(flat, axis=2, factor=4, noise=0.05, seed=4)
    assert np.array_equal(a.data, b.data) and not np.array_equal(a.data, c.data)
    signal, background = a.data[:, :, :5], a.data[:, :, 5:]
    assert signal.std() == pytest.approx(5, rel=0.05)
    assert background.min() >= 0
    assert background.mean() == pytest.approx(5 * np.sqrt(np.pi / 2), rel=0.03)  # Rayleigh


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'axis': 3, 'factor': 2}, 'axis'),
        ({'axis': 0}, 'either'),
        ({'axis': 0, 'factor': 2, 'thickness_mm': 2}, 'either'),
        ({'axis': 0, 'factor': 0.5}, 'thinner'),
        ({'axis': 0, 'factor': 50}, 'fits'),
        ({'axis': 0, 'factor': 2, 'gap_mm': -2}, 'no step'),
        ({'axis': 0, 'factor': 2, 'profile': 'sinc'}, 'profile'),
        ({'axis': 0, 'factor': 2, 'noise': -1}, 'noise'),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        thick_slices(head((10, 10, 10))[0], **options)


@pytest.mark.parametrize('factors', [2, 3, (1, 2, 4), 2.5, (1, 1, 3)])
@pytest.mark.parametrize('how', ['cell', 'trilinear'])
def test_coarse_header_keeps_a_ramp_in_world(factors, how):
    coarse = coarse_voxels(linear_image((13, 18, 24), OBLIQUE), factors, how)
    index = np.stack(np.meshgrid(*map(np.arange, coarse.data.shape), indexing='ij'), -1)
    expected = coarse.lattice.to_world(index) @ [0.3, -0.2, 0.5] + 7
    # Half voxels (x2.5) cut voxels of the truth, which are constant inside.
    atol = 0.15 if how == 'cell' and factors == 2.5 else 1e-4
    np.testing.assert_allclose(coarse.data, expected, atol=atol)
    np.testing.assert_allclose(coarse.lattice.voxel_sizes_mm, np.array([0.8, 1.1, 0.9]) * factors)
    assert coarse.data.shape == tuple((np.array([13, 18, 24]) / factors).astype(int))


@pytest.mark.parametrize('how', ['cell', 'trilinear', 'kspace'])
@pytest.mark.parametrize('factors', [1, 2, 3, 4, 1.7, (1, 3, 2)])
def test_coarse_voxels_keep_constants(how, factors):
    flat = Volume.from_affine(np.full((11, 12, 13), 7.0), OBLIQUE)
    np.testing.assert_allclose(coarse_voxels(flat, factors, how).data, 7, rtol=1e-5)


def test_cells_are_block_means():
    truth = np.random.default_rng(0).random((7, 9, 8)).astype(np.float32)
    coarse = coarse_voxels(Volume.from_affine(truth, OBLIQUE), (2, 3, 4))
    expected = np.zeros((3, 3, 2))
    for i, j, k in np.ndindex(3, 3, 2):
        expected[i, j, k] = truth[2 * i : 2 * i + 2, 3 * j : 3 * j + 3, 4 * k : 4 * k + 4].mean()
    np.testing.assert_allclose(coarse.data, expected, rtol=1e-5)
    np.testing.assert_allclose(
        coarse.affine[:3, 3], OBLIQUE[:3] @ [0.5, 1.0, 1.5, 1.0]
    )  # centre of the first block


@pytest.mark.parametrize('factor', [2, 3, 4, 2.5, 3.3])
def test_trilinear_is_that_of_torch(factor):
    torch = pytest.importorskip('torch')
    truth = np.random.default_rng(1).random((16, 18, 21)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(truth)[None, None], scale_factor=1 / factor, mode='trilinear', align_corners=False
    )[0, 0].numpy()
    found = coarse_voxels(Volume.from_affine(truth, np.eye(4)), factor, 'trilinear').data
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_kspace_header_keeps_a_wave_in_world():
    """A wave below the new band limit is sampled exactly, where the header says."""
    volume = linear_image((12, 15, 16), OBLIQUE)
    lattice = volume.lattice

    def wave(points_mm):
        i, j, k = np.moveaxis(lattice.to_index(points_mm), -1, 0)
        return 5 + np.cos(2 * np.pi * i / 12) + np.sin(2 * np.pi * (j / 15 - 2 * k / 16))

    def centres(grid):
        return grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing='ij'), -1))

    coarse = coarse_voxels(Volume(wave(centres(lattice)).astype(np.float32), lattice), (2, 2, 2.5), 'kspace')
    assert coarse.data.shape == (6, 8, 6)
    np.testing.assert_allclose(coarse.data, wave(centres(coarse.lattice)), atol=1e-4)


def test_coarse_noise_is_repeatable():
    _, truth, _, _ = head((20, 22, 24))
    a, b, c = (coarse_voxels(truth, 2, noise=0.05, seed=seed).data for seed in (3, 3, 4))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert 0.02 < np.std(a - coarse_voxels(truth, 2).data) / np.percentile(a, 99) < 0.06


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'factors': (2, 2)}, 'one per stored axis'),
        ({'factors': 0.5}, 'at least 1'),
        ({'factors': np.nan}, 'at least 1'),
        ({'factors': 50}, 'no voxel'),
        ({'factors': 50, 'how': 'kspace'}, 'no voxel'),
        ({'factors': 2, 'how': 'sinc'}, 'unknown sampling'),
        ({'factors': 2, 'noise': -1}, 'noise'),
    ],
)
def test_bad_coarse_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        coarse_voxels(head((10, 10, 10))[0], **options)
