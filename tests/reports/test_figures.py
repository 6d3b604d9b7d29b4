import io

import numpy as np
import pytest
from PIL import Image

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.simulate import thick_slices
from bids_gsrecon.reports import figures
from tests.phantoms import head


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def reoriented(volume: Volume, flips, order) -> Volume:
    """The same image in another storage order."""
    shape = np.array(volume.data.shape)
    flip = np.diag([*np.where(flips, -1, 1), 1]).astype(float)
    flip[:3, 3] = np.where(flips, shape - 1, 0)
    permute = np.eye(4)
    permute[:3, :3] = np.eye(3)[:, order]
    data = volume.data[tuple(slice(None, None, -1 if f else 1) for f in flips)].transpose(order)
    return Volume.from_affine(data, volume.affine @ flip @ permute)


@pytest.fixture
def scene():
    t1w, t2w, mask, _ = head((40, 46, 38))
    return t1w, t2w, Volume(mask, t1w.lattice)


def test_pictures_do_not_depend_on_the_storage_order(scene):
    _, t2w, mask = scene
    window = (0.0, 500.0)
    straight = figures.gray_montage(t2w, figures.make_view(t2w.lattice, mask.data > 0), window=window)
    for flips, order in (((True, False, True), (0, 1, 2)), ((False, True, False), (2, 0, 1))):
        other, other_mask = reoriented(t2w, flips, order), reoriented(mask, flips, order)
        view = figures.make_view(other.lattice, other_mask.data > 0)
        assert np.array_equal(decode(straight), decode(figures.gray_montage(other, view, window=window)))


def test_right_is_right_and_up_is_up():
    data = np.zeros((20, 24, 28), np.float32)
    data[15:18, 11:14, 13:16] = 1  # towards R from the centre
    data[9:12, 11:14, 22:25] = 0.5  # towards S
    volume = Volume.from_affine(data, np.diag([2, 2, 2, 1.0]))
    view = figures.View(figures.make_view(volume.lattice).lattice, ((16, 12, 14), (10, 12, 23)))
    coronal = np.array([figures.sample_tile(volume, view.world_points('coronal', 0))])[0]
    axial = figures.sample_tile(volume, view.world_points('axial', 1))
    bright = np.argwhere(coronal == 1).mean(0)
    high = np.argwhere(coronal == 0.5).mean(0)
    assert bright[1] > coronal.shape[1] / 2 and high[0] < coronal.shape[0] / 2
    assert axial.shape == (24, 20)


def test_result_is_shown_voxel_by_voxel(scene):
    _, t2w, mask = scene
    view = figures.make_view(t2w.lattice, mask.data > 0)
    tile = figures.sample_tile(t2w, view.world_points('axial', 1))
    index = np.round(t2w.lattice.to_index(view.world_points('axial', 1))).astype(int)
    assert np.array_equal(tile, t2w.data[tuple(np.moveaxis(index, -1, 0))])


def test_pictures_of_one_view_have_one_size_and_agree_where_the_images_do(scene):
    t1w, t2w, mask = scene
    thick = thick_slices(t2w, axis=2, factor=4)
    view = figures.make_view(t2w.lattice, mask.data > 0)
    window = figures.intensity_window(t2w, mask.data > 0)
    pictures = [
        decode(figures.gray_montage(image, view, window=window, order=order))
        for image, order in ((thick, 0), (thick, 1), (t2w, 0), (t1w, 0))
    ]
    assert len({picture.shape for picture in pictures}) == 1
    # A slab is constant across its thickness, and equal to the mean of what is shown after.
    before = figures.sample_tile(thick, view.world_points('coronal', 0))
    assert np.abs(np.diff(before, axis=0)).astype(bool).any(1).mean() < 0.5


def test_anisotropic_voxels_keep_their_aspect():
    volume = Volume.from_affine(np.random.default_rng(0).random((10, 20, 5)), np.diag([2, 1, 4, 1.0]))
    view = figures.make_view(volume.lattice)
    assert view.lattice.shape == (20, 20, 20)
    np.testing.assert_allclose(view.lattice.voxel_sizes_mm, 1)


def test_outside_the_target_is_black(scene):
    _, t2w, mask = scene
    part = Volume(t2w.data[:, :, :15], t2w.lattice.cropped((0, 0, 0), (40, 46, 15)))
    view = figures.make_view(t2w.lattice, mask.data > 0)
    tile = figures.sample_tile(part, view.world_points('coronal', 0), order=1)
    assert tile[:5].max() == 0 and tile.max() > 0


def test_residual_is_scaled_by_the_noise():
    rng = np.random.default_rng(0)
    data = rng.normal(0, 7, (20, 20, 8))
    assert figures.robust_sigma(data) == pytest.approx(7, rel=0.05)
    volume = Volume.from_affine(data, np.diag([1, 1, 4, 1.0]))
    own = decode(figures.residual_montage(volume))
    given = decode(figures.residual_montage(volume, noise_sigma=70.0))
    # Ten times the noise level: the same residual is nearly white.
    assert own.shape == given.shape
    spread = [p[:, :200].astype(float).std() for p in (own[10:-10], given[10:-10])]
    assert spread[1] < spread[0]


@pytest.mark.parametrize('empty', [True, False])
def test_maps_of_nothing_are_drawn_all_the_same(scene, empty):
    t1w, _, mask = scene
    flat = Volume(np.zeros(t1w.data.shape), t1w.lattice)
    view = figures.make_view(t1w.lattice, None if empty else mask.data > 0)
    assert decode(figures.uncertainty_montage(flat, view, flat if empty else mask)).ndim == 3
    assert decode(figures.residual_montage(flat)).ndim == 3
    assert decode(figures.registration_montage(flat, flat, view, window=(0, 1))).ndim == 3
