import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.simulate import thick_slices
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
