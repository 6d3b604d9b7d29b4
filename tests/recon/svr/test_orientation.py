"""A reconstruction is turned to a template from any direction, and left stays left."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.resample import resample
from bids_gsrecon.recon.svr.orientation import aligned_lattice, find_orientation, nearest_to_ras, turned
from bids_gsrecon.recon.svr.types import SliceTable, SvrResult

SIZE = 48
LEFT_MM = np.array([-9.0, 4.0, 5.0])


@cache
def template():
    """A lopsided egg in RAS with a bright ball on its left, a dark one in front and a bar below."""
    affine = np.eye(4)
    affine[:3, 3] = -(SIZE - 1) / 2
    x, y, z = np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 3, indexing='ij')
    egg = (x / 15) ** 2 + (y / (19 + 0.1 * x)) ** 2 + (z / (13 + 0.15 * y)) ** 2 < 1
    data = 100.0 * egg
    data[(x + 9) ** 2 + (y - 4) ** 2 + (z - 5) ** 2 < 12] = 220
    data[x**2 + (y - 11) ** 2 + z**2 < 10] = 20
    data[(np.abs(x - 2) < 6) & (np.abs(y + 8) < 2) & (np.abs(z + 5) < 2)] = 170
    return Volume(ndimage.gaussian_filter(data, 0.8), Lattice(data.shape, affine)), egg


def rigid(seed, shift_mm=20.0):
    rng = np.random.default_rng(seed)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    motion[:3, 3] = rng.uniform(-shift_mm, shift_mm, 3)
    return motion


def moved(motion, *, invert=False, scale=1.0, noise=0.02):
    """The template's object after ``motion``, seen on a grid of its own; and its mask."""
    volume, egg = template()
    affine = np.diag([1.1, 1.1, 1.1, 1.0])
    affine[:3, 3] = motion[:3, 3] - 1.1 * 24
    grid = Lattice((49,) * 3, affine)
    stretch = np.diag([scale, scale, scale, 1.0])
    matrix = np.linalg.inv(motion @ stretch @ volume.affine) @ affine
    mask = resample(egg.astype(np.float32), matrix, grid.shape, 1) > 0.5
    data = resample(volume.data, matrix, grid.shape, 1)
    data = 300 - data if invert else data
    data = data + noise * 200 * np.random.default_rng(0).standard_normal(data.shape)
    return Volume(np.where(mask, data, 0), grid), mask


def error(found, truth):
    """Rotation in degrees, and shift of the middle in mm."""
    left = found @ truth
    return np.degrees(np.linalg.norm(Rotation.from_matrix(left[:3, :3]).as_rotvec())), np.linalg.norm(
        left[:3, 3]
    )


@pytest.mark.parametrize('seed', range(4))
def test_any_direction_is_found(seed):
    truth = rigid(seed)
    image, mask = moved(truth)
    found = find_orientation(image, mask, template()[0])
    degrees, mm = error(found.motion, truth)
    assert degrees < 1.0 and mm < 0.3
    assert found.is_sure and np.linalg.det(found.motion[:3, :3]) == pytest.approx(1)


def test_another_size_is_no_hindrance():
    truth = rigid(7)
    image, mask = moved(truth, scale=0.88)
    found = find_orientation(image, mask, template()[0])
    degrees, mm = error(found.motion, truth)
    assert degrees < 2.0 and mm < 0.7 and found.is_sure
    np.testing.assert_allclose(found.motion[:3, :3] @ found.motion[:3, :3].T, np.eye(3), atol=1e-9)


def test_another_contrast_is_doubtful():
    image, mask = moved(rigid(7), invert=True)
    assert not find_orientation(image, mask, template()[0]).is_sure


def test_how_the_template_is_stored_does_not_matter():
    volume, _ = template()
    image, mask = moved(rigid(1))
    straight = find_orientation(image, mask, volume).motion
    order, flip = [1, 2, 0], np.diag([-1.0, 1, 1, 1])
    affine = volume.affine.copy()
    affine[:, :3] = affine[:, order]
    flip[0, 3] = SIZE - 1
    stored = Volume(volume.data.transpose(order)[::-1], Lattice((SIZE,) * 3, affine @ flip))
    np.testing.assert_allclose(find_orientation(image, mask, stored).motion, straight, atol=1e-3)


def test_a_mirror_image_is_never_turned_inside_out():
    """The object's mirror image fits best reflected: that is not on offer."""
    image, mask = moved(np.eye(4))
    mirrored = Volume(image.data[::-1].copy(), image.lattice)
    found = find_orientation(mirrored, mask[::-1].copy(), template()[0])
    assert np.linalg.det(found.motion[:3, :3]) == pytest.approx(1)
    np.testing.assert_allclose(found.motion[:3, :3] @ found.motion[:3, :3].T, np.eye(3), atol=1e-9)
    assert found.score < find_orientation(image, mask, template()[0]).score - 0.2


def test_a_ball_tells_no_direction():
    volume, _ = template()
    x = np.stack(np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 3, indexing='ij'))
    ball = (x**2).sum(0) < 15**2
    round_one = Volume(100.0 * ball, volume.lattice)
    assert not find_orientation(round_one, ball, Volume(100.0 * ball, volume.lattice)).is_sure
    with pytest.raises(ValueError, match='no anatomy'):
        find_orientation(round_one, np.zeros_like(ball), volume)


def test_axes_nearest_to_ras():
    for seed in range(5):
        directions = Rotation.from_rotvec(0.2 * np.random.default_rng(seed).standard_normal(3)).as_matrix()
        stored = directions[:, [2, 0, 1]] * [1, -1, -1]
        np.testing.assert_allclose(nearest_to_ras(stored), directions)


def result_of(image, mask):
    """A reconstruction of two slices whose Gaussians sit on the voxels."""
    h = float(image.lattice.voxel_sizes_mm[0])
    voxels = np.argwhere(ndimage.binary_dilation(mask, iterations=2))
    n = len(voxels)
    field = GaussianField(
        image.lattice.to_world(voxels),
        np.full((n, 3), np.log(0.7 * h)),
        np.tile([1.0, 0, 0, 0], (n, 1)),
        np.zeros(n),
        image.data[tuple(voxels.T)][:, None] / (0.7 * np.sqrt(2 * np.pi)) ** 3,
        'sum',
    )
    two = np.arange(2)
    table = SliceTable(two, two, two, two + 1.0, two + 1.0, two + 0.5, two + 0.1, two > 5)
    poses = np.stack([np.eye(4), rigid(3)])
    return SvrResult(
        image.lattice, image.data, mask, 0.1 * image.data, 2.0 * mask, field, poses, table, [], 0
    )


def test_everything_is_turned_together():
    truth = rigid(2)
    image, mask = moved(truth, noise=0.0)
    before = result_of(image, mask)
    motion = np.linalg.inv(truth)
    after = turned(before, motion, template()[0].lattice)
    np.testing.assert_allclose(after.lattice.affine[:3, :3], 1.1 * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(after.poses[0], motion, atol=1e-12)
    np.testing.assert_allclose(after.poses[1], motion @ before.poses[1], atol=1e-12)
    index = np.rint(after.lattice.to_index(LEFT_MM)).astype(int)
    assert after.mask[tuple(index)] and after.image[tuple(index)] > 150, 'the ball is on the left'
    mirrored = np.rint(after.lattice.to_index(LEFT_MM * [-1, 1, 1])).astype(int)
    assert after.image[tuple(mirrored)] < 130
    volume, egg = template()
    matrix = np.linalg.inv(volume.affine) @ after.lattice.affine
    expected = resample(volume.data, matrix, after.lattice.shape, 1)
    inner = ndimage.binary_erosion(after.mask, iterations=2)
    assert np.corrcoef(after.image[inner], expected[inner])[0, 1] > 0.95
    wanted = resample(egg.astype(np.float32), matrix, after.lattice.shape, 1) > 0.5
    assert 2 * (after.mask & wanted).sum() > 0.95 * (after.mask.sum() + wanted.sum())
    assert not after.image[~after.mask].any() and not after.uncertainty[~after.mask].any()
    assert after.slices is before.slices


def test_the_grid_follows_an_oblique_template():
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler('x', 20, degrees=True).as_matrix()
    image, mask = moved(np.eye(4))
    lattice = aligned_lattice(mask, image.lattice, np.eye(4), template()[0].lattice.moved(tilt))
    np.testing.assert_allclose(lattice.affine[:3, :3], 1.1 * tilt[:3, :3], atol=1e-9)
    index = lattice.to_index(image.lattice.to_world(np.argwhere(mask)))
    assert (index > 0).all() and (index < np.array(lattice.shape) - 1).all()
