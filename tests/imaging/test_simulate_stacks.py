"""Moving stacks: what a pixel averages, where it lies, and that everything happens as asked."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.simulate_stacks import (
    interleaved,
    moving_stacks,
    sample_slices,
    slice_poses,
    stack_axes,
)

CLEAN = {'gain': 0.0, 'noise': 0.0}
STILL = {'rotation_deg': 0.0, 'translation_mm': 0.0}
SLICES = {'in_plane_mm': 1.5, 'thickness_mm': 3.0}


@cache
def truth(affine_kind='straight', shape=(20, 24, 22)):
    """A smooth lopsided blob in a mask, zero at the edges of the grid."""
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    if affine_kind == 'oblique':
        affine[:3, :3] = Rotation.from_euler('xyz', [12, -25, 8], degrees=True).as_matrix() * [1, 1.1, 0.9]
    affine[:3, 3] = [31, -17, 40]
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'))
    mask = (x**2).sum(0) < 0.5
    wave = 1 + 0.4 * np.sin(5 * x[0] + 2 * x[1]) + 0.3 * np.cos(6 * x[2]) + 0.2 * x[1]
    data = ndimage.gaussian_filter(100 * wave * mask, 0.7)
    return Volume.from_affine(data, affine), mask


def stacks_of(kind='straight', **options):
    volume, mask = truth(kind)
    return moving_stacks(volume, mask, **{**SLICES, **STILL, **CLEAN, **options})


def brute_force(volume, stack, pixel, pose):
    """The point spread times the truth, added up over a dense grid of points."""
    sizes = stack.lattice.voxel_sizes_mm
    sigma = np.array([1.2 * sizes[0], 1.2 * sizes[1], stack.thickness_mm]) / 2.354820
    offsets = [np.linspace(-3.2 * s, 3.2 * s, 33) for s in sigma]
    weights = [np.exp(-0.5 * (o / s) ** 2) for o, s in zip(offsets, sigma)]
    if stack.profile == 'box':
        offsets[2] = ((np.arange(60) + 0.5) / 60 - 0.5) * stack.thickness_mm
        weights[2] = np.ones(60)
    grid = np.stack(np.meshgrid(*offsets, indexing='ij'), -1).reshape(-1, 3)
    weight = np.einsum('i,j,k->ijk', *weights).ravel()
    world = stack.lattice.to_world(np.array(pixel) + grid / sizes)
    world = world @ pose[:3, :3].T + pose[:3, 3]
    values = ndimage.map_coordinates(volume.data, volume.lattice.to_index(world).T, order=3)
    return (weight @ values) / weight.sum()


@pytest.mark.parametrize('profile', ['gaussian', 'box'])
@pytest.mark.parametrize('kind', ['straight', 'oblique'])
@pytest.mark.parametrize('motion', [STILL, {'rotation_deg': 8.0, 'translation_mm': 3.0}])
def test_pixel_is_the_mean_over_the_point_spread(profile, kind, motion):
    volume, _ = truth(kind)
    simulated = stacks_of(kind, profile=profile, **motion)
    assert len(simulated) == 3
    for s in simulated:
        if motion is STILL:
            assert np.array_equal(s.poses, np.tile(np.eye(4), (len(s.poses), 1, 1)))
        inside = np.argwhere(s.stack.mask)
        for pixel in inside[:: len(inside) // 5]:
            expected = brute_force(volume, s.stack, pixel, s.poses[pixel[2]])
            assert s.stack.data[tuple(pixel)] == pytest.approx(expected, abs=0.2)  # of about 100


def test_moving_world_and_anatomy_together_changes_nothing():
    volume, _ = truth('oblique')
    rigid = np.eye(4)
    rigid[:3, :3] = Rotation.from_euler('xyz', [30, 50, -70], degrees=True).as_matrix()
    rigid[:3, 3] = [5, -80, 13]
    s = stacks_of('oblique', orientations=['coronal'], rotation_deg=6.0, translation_mm=2.0)[0]
    lattice, thickness = s.stack.lattice, s.stack.thickness_mm
    here = sample_slices(volume, lattice, s.poses, thickness)
    there = sample_slices(
        Volume(volume.data, volume.lattice.moved(rigid)),
        lattice.moved(rigid),
        rigid @ s.poses @ np.linalg.inv(rigid),
        thickness,
    )
    np.testing.assert_allclose(there, here, atol=1e-3)
    # A pose brings the slice to the anatomy, so that the anatomy moved back gives the same slice.
    back = Volume(volume.data, volume.lattice.moved(np.linalg.inv(s.poses[3])))
    unmoved = sample_slices(back, lattice, np.tile(np.eye(4), (len(s.poses), 1, 1)), thickness)
    np.testing.assert_allclose(unmoved[:, :, 3], here[:, :, 3], atol=1e-3)
    assert not np.allclose(unmoved[:, :, 4], here[:, :, 4], atol=1)


def test_pixels_outside_the_asked_ones_are_zero_and_the_others_the_same():
    volume, _ = truth()
    stack = stacks_of(orientations=['sagittal'])[0].stack
    poses = np.tile(np.eye(4), (stack.data.shape[2], 1, 1))
    everywhere = sample_slices(volume, stack.lattice, poses, 3.0)
    part = sample_slices(volume, stack.lattice, poses, 3.0, where=stack.mask)
    np.testing.assert_allclose(part, np.where(stack.mask, everywhere, 0), atol=1e-4)


@pytest.mark.parametrize('kind', ['straight', 'oblique'])
@pytest.mark.parametrize('gap', [0.0, 1.0, -1.0])
def test_headers_put_the_anatomy_in_its_place(kind, gap):
    volume, mask = truth(kind)

    def middle(data, lattice):
        at = np.argwhere(data > 0)
        return np.average(lattice.to_world(at), axis=0, weights=data[tuple(at.T)])

    where = middle(volume.data, volume.lattice)
    for s in stacks_of(kind, n_stacks=6, gap_mm=gap):
        sizes = s.stack.lattice.voxel_sizes_mm
        np.testing.assert_allclose(sizes, [1.5, 1.5, 3.0 + gap])
        assert s.stack.thickness_mm == 3.0
        np.testing.assert_allclose(middle(s.stack.data, s.stack.lattice), where, atol=0.4)
        # But for the tails in the slices that were left out, nothing is lost.
        total = volume.data.sum() * np.prod(volume.lattice.voxel_sizes_mm)
        assert 0.85 * total < s.stack.data.sum() * np.prod(sizes) < 1.03 * total
        # The mask as each slice sees it, and one pixel around it.
        seen = ndimage.map_coordinates(
            mask.astype(np.float32),
            np.moveaxis(volume.lattice.to_index(s.stack.lattice.to_world(np.argwhere(s.stack.mask))), -1, 0),
            order=1,
        )
        assert 0.6 < (seen > 0.5).mean() < 0.95
        assert s.stack.mask[:, :, [0, -1]].any((0, 1)).all()


def test_orientations_are_those_of_the_world_and_repeats_are_tilted():
    normals = [s.stack.lattice.affine[:3, 2] / 3 for s in stacks_of(n_stacks=6)]
    np.testing.assert_allclose(np.abs(normals[:3]), np.eye(3)[::-1], atol=1e-12)  # axial: z
    np.testing.assert_allclose(np.abs(normals[1]), [0, 1, 0], atol=1e-12)
    for first, repeat in zip(normals[:3], normals[3:]):
        assert np.degrees(np.arccos(first @ repeat)) == pytest.approx(20)
    assert all(np.linalg.det(stack_axes(o, 20)) == pytest.approx(1) for o in ('axial', 'coronal', 'sagittal'))
    assert len(stacks_of(n_stacks=4)) == 4 and len(stacks_of(orientations=['axial'])) == 1


def test_same_seed_same_stacks_and_more_stacks_change_none():
    options = {'rotation_deg': 5.0, 'translation_mm': 2.0, 'noise': 0.05, 'gain': 0.1, 'bias': 0.2}
    a, b, c = (stacks_of(seed=s, **options) for s in (1, 1, 2))
    longer = stacks_of(seed=1, n_stacks=4, **options)
    for x, y, z, w in zip(a, b, c, longer):
        for other in (y, w):
            assert np.array_equal(x.stack.data, other.stack.data) and np.array_equal(x.poses, other.poses)
            assert np.array_equal(x.gains, other.gains)
        assert not np.allclose(x.poses[:3], z.poses[:3])
    assert not np.allclose(a[0].poses[:3], a[1].poses[:3])
    quiet = stacks_of(seed=1, **{**options, 'noise': 0.0, 'bias': 0.0})
    assert all(np.array_equal(x.poses, q.poses) for x, q in zip(a, quiet))


def test_gains_and_voids_multiply_the_slices():
    clean = stacks_of(orientations=['axial'])[0]
    assert np.all(clean.gains == 1) and not clean.voids.any()
    for share in (0.0, 0.5, 1.0):
        s = stacks_of(orientations=['axial'], gain=0.2, void_share=share, seed=5)[0]
        np.testing.assert_allclose(s.stack.data, clean.stack.data * s.gains.astype(np.float32), rtol=1e-5)
        assert np.all(np.abs(s.gains[~s.voids] - 1) <= 0.2) and np.all(s.gains[s.voids] <= 0.5 * 1.2)
        assert abs(s.voids.mean() - share) <= 0.35 * (share == 0.5)
    assert np.ptp(stacks_of(orientations=['axial'], gain=0.2)[0].gains) > 0.1


def test_bias_is_smooth_and_bounded():
    clean, biased = (stacks_of(orientations=['axial'], bias=b)[0].stack for b in (0.0, 0.3))
    ratio = np.where(clean.mask, biased.data / np.maximum(clean.data, 1e-3), 1)[clean.data > 20]
    assert 0.69 < ratio.min() < 0.95 < 1.05 < ratio.max() < 1.31
    field = np.divide(biased.data, clean.data, out=np.ones_like(clean.data), where=clean.data > 20)
    assert np.abs(np.diff(field, axis=0))[(clean.data > 20)[1:] & (clean.data > 20)[:-1]].max() < 0.12


def test_noise_is_rician_and_as_strong_as_asked():
    volume, mask = truth()
    clean, noisy = (stacks_of(noise=n)[0].stack for n in (0.0, 0.02))
    sigma = 0.02 * np.percentile(volume.data[mask], 99.5)
    bright = clean.data > 10 * sigma
    assert (noisy.data - clean.data)[bright].std() == pytest.approx(sigma, rel=0.1)
    assert noisy.data.min() == 0  # nothing far from the anatomy
    dark = (noisy.data > 0) & (clean.data < 0.02 * sigma)
    assert noisy.data[dark].mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.15)


def poses_of(motion, n=400, share=1.0, seed=0, centre=(3.0, -40.0, 60.0)):
    rng = np.random.default_rng(seed)
    order = interleaved(n)
    poses = slice_poses(order, 6.0, 4.0, np.array(centre), motion=motion, share_moving=share, rng=rng)
    angles = Rotation.from_matrix(poses[:, :3, :3]).as_euler('xyz', degrees=True)
    shifts = poses[:, :3, :3] @ centre + poses[:, :3, 3] - centre
    return order, poses, angles, shifts


def test_smooth_motion_follows_the_order_of_acquisition():
    order, _, angles, shifts = poses_of('smooth')
    for values, amplitude in ((angles, 6.0), (shifts, 4.0)):
        in_time = np.sqrt((np.diff(values[order], axis=0) ** 2).mean())
        in_space = np.sqrt((np.diff(values, axis=0) ** 2).mean())
        assert in_time < 0.5 * in_space
        assert np.sqrt((values**2).mean()) == pytest.approx(amplitude / np.sqrt(3), rel=0.25)


def test_iid_motion_is_uniform_within_its_amplitude():
    _, _, angles, shifts = poses_of('iid')
    for values, amplitude in ((angles, 6.0), (shifts, 4.0)):
        assert 0.95 * amplitude < np.abs(values).max() <= amplitude * (1 + 1e-9)
        assert np.sqrt((values**2).mean()) == pytest.approx(amplitude / np.sqrt(3), rel=0.05)


def test_jerks_are_rare_and_large():
    order, _, _, shifts = poses_of('jerks')
    steps = np.linalg.norm(np.diff(shifts[order], axis=0), axis=1)
    assert np.median(steps) < 1.0 < 2.0 < np.percentile(steps, 97)


@pytest.mark.parametrize('motion', ['smooth', 'iid', 'jerks'])
@pytest.mark.parametrize('share', [0.0, 0.05, 0.5, 1.0])
def test_share_of_slices_that_move(motion, share):
    order, poses, _, _ = poses_of(motion, share=share)
    moving = (poses != np.eye(4)).any((1, 2))
    assert moving.sum() == round(share * 400)
    if motion != 'iid' and 0 < share < 1:  # one episode
        assert np.count_nonzero(np.diff(moving[order].astype(int), append=int(moving[order][0]))) == 2


def test_order_of_the_kept_slices_is_the_true_one():
    first = set()
    for seed in range(4):
        for s in stacks_of(rotation_deg=5.0, translation_mm=5.0, seed=seed):
            steps = np.diff(np.argsort(s.stack.acquisition_rank()))
            assert np.count_nonzero(steps != 2) == 1  # between the two passes
            first.add(s.stack.order[0])
            assert len(s.poses) == len(s.gains) == len(s.voids) == len(s.stack.order)
    assert first == {0, 1}  # the first slice kept may belong to the second pass


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'orientations': ['oblique']}, 'orientation'),
        ({'orientations': []}, 'orientation'),
        ({'n_stacks': 0}, 'number of stacks'),
        ({'n_stacks': 7}, 'number of stacks'),
        ({'motion': 'wild'}, 'motion'),
        ({'profile': 'sinc'}, 'profile'),
        ({'rotation_deg': -1}, 'rotation'),
        ({'translation_mm': float('nan')}, 'translation'),
        ({'noise': -0.1}, 'noise'),
        ({'gain': 1.0}, 'gain and bias'),
        ({'bias': 1.0}, 'gain and bias'),
        ({'share_moving': 1.1}, 'moving'),
        ({'void_share': -0.1}, 'voids'),
        ({'in_plane_mm': 0.1}, 'finer'),
        ({'thickness_mm': 0}, 'finer'),
        ({'thickness_mm': float('inf')}, 'finer'),
        ({'gap_mm': -3}, 'no step'),
        ({'thickness_mm': 200}, 'fewer than two'),
        ({'translation_mm': 1e4}, 'fewer than two'),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        stacks_of(**options)


@pytest.mark.parametrize(
    ('mask', 'words'), [(np.zeros((20, 24, 22)), 'empty'), (np.ones((3, 3, 3)), 'shape')]
)
def test_bad_masks(mask, words):
    with pytest.raises(ValueError, match=words):
        moving_stacks(truth()[0], mask, **SLICES, **STILL)


def test_slices_are_found_whatever_grid_the_truth_lies_on():
    volume, mask = truth('oblique')
    flipped = Volume(volume.data[::-1], Lattice(volume.data.shape, volume.affine @ _flip(20)))
    a = moving_stacks(volume, mask, **SLICES, **STILL, **CLEAN)
    b = moving_stacks(flipped, mask[::-1], **SLICES, **STILL, **CLEAN)
    for x, y in zip(a, b):
        assert x.stack.lattice.same_as(y.stack.lattice)
        np.testing.assert_allclose(x.stack.data, y.stack.data, atol=1e-2)


def _flip(n):
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = n - 1
    return flip
