"""Slice-to-volume reconstruction on a small phantom with known poses."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.stacks import SliceStack
from bids_gsrecon.recon.svr.method import SvrOptions, grid_over, robust_weights, sampled, svr
from bids_gsrecon.recon.svr.pixels import View, collect_pixels, motion, motion_parameters
from bids_gsrecon.recon.svr.poses import neighbour_means, slice_gains
from bids_gsrecon.recon.svr.volume import EdgePrior

CENTRE = np.array([1.0, -2.0, 3.0])
RADIUS = 15.0


def anatomy(spacing=1.0):
    """Smooth structure inside an ellipsoid, zero outside: amplitudes on a grid, and the grid."""
    lattice = grid_over(np.array([CENTRE - RADIUS, CENTRE + RADIUS]), spacing)
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=lattice.shape), 1.8)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in lattice.shape], indexing='ij'), -1)
    world = lattice.to_world(grid) - CENTRE
    inside = (world**2 / np.array([1.0, 0.8, 0.9]) ** 2).sum(-1) < RADIUS**2
    return np.where(inside, 0.6 + 2.0 * noise / noise.std() * 0.12, 0).astype(np.float32), lattice, inside


def moving_stacks(poses_deg=3.0, poses_mm=1.0, seed=0):
    """Three orthogonal stacks of 2.5 mm slices seen through the model itself, and the true poses."""
    image, lattice, inside = anatomy()
    rng = np.random.default_rng(seed)
    n, n_slices = 34, 13
    stacks = []
    for axes in (np.eye(3), np.eye(3)[:, [0, 2, 1]], np.eye(3)[:, [1, 2, 0]]):
        affine = np.eye(4)
        affine[:3, :3] = axes * [1.0, 1.0, 2.5]
        affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array([n, n, n_slices]) - 1) / 2)
        grid = Lattice((n, n, n_slices), affine)
        ones = np.ones(grid.shape, np.float32)
        stacks.append(SliceStack(ones, grid, np.ones(grid.shape, bool), 2.5))
    pixels = collect_pixels(stacks, ring_mm=0.0)
    steps = rng.normal(size=(pixels.n_slices, 6))
    for stack in range(3):  # smooth in acquisition order
        mine = np.flatnonzero(pixels.stack_of == stack)
        mine = mine[np.argsort(pixels.rank[mine])]
        steps[mine] = ndimage.gaussian_filter1d(steps[mine], 2.0, axis=0, mode='nearest')
    steps /= steps.std(0)
    arm = 10.0
    steps = steps * ([np.radians(poses_deg) * arm] * 3 + [poses_mm] * 3)
    poses = motion(steps, CENTRE, arm)
    view = View.make(pixels, lattice, poses)
    values = view.weights.forward(image)
    seen = View.make(pixels, lattice, poses).weights.forward(inside.astype(np.float32)) > 0.5
    filled = []
    for number, stack in enumerate(stacks):
        mine = pixels.stack_of[pixels.slice_of] == number
        # Pixels were listed slice by slice.
        data = values[mine].reshape(n_slices, n, n).transpose(1, 2, 0)
        mask = seen[mine].reshape(n_slices, n, n).transpose(1, 2, 0)
        filled.append(replace(stack, data=np.ascontiguousarray(data), mask=mask))
    return filled, poses, image, lattice, inside


def pose_error_mm(pixels, estimated, true_by_slice):
    """Mean distance of mask points from their true place after one rigid motion of all."""
    p = pixels.points_mm[pixels.in_mask]
    s = pixels.slice_of[pixels.in_mask]
    a = np.einsum('nij,nj->ni', estimated[s][:, :3, :3], p) + estimated[s][:, :3, 3]
    b = np.einsum('nij,nj->ni', true_by_slice[s][:, :3, :3], p) + true_by_slice[s][:, :3, 3]
    u, _, v = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
    r = v.T @ np.diag([1, 1, np.sign(np.linalg.det(v.T @ u.T))]) @ u.T
    return float(np.linalg.norm((a - a.mean(0)) @ r.T + b.mean(0) - b, axis=1).mean())


def slices_with_mask(stacks):
    """Index of every slice that has a mask, in the order of all slices of all stacks."""
    return np.concatenate([stack.mask.any((0, 1)) for stack in stacks])


def test_jacobian_is_the_derivative():
    image, lattice, _ = anatomy()
    stacks, poses, *_ = moving_stacks()
    pixels = collect_pixels(stacks)
    poses = poses[slices_with_mask(stacks)]
    smooth = ndimage.gaussian_filter(image, 2.0)
    jacobian = View.make(pixels, lattice, poses).jacobian(smooth, CENTRE, 10.0)
    for k in range(6):
        step = np.zeros(6)
        step[k] = 0.1
        plus, minus = (
            View.make(pixels, lattice, motion(sign * step, CENTRE, 10.0) @ poses).weights.forward(smooth)
            for sign in (1, -1)
        )
        numeric = (plus - minus) / 0.2
        error = np.sqrt(np.mean((numeric - jacobian[:, k]) ** 2)) / np.sqrt(np.mean(numeric**2))
        assert error < 0.03, k  # the step itself makes most of it


def test_motion_and_its_parameters_are_inverse():
    parameters = np.random.default_rng(0).normal(size=(7, 6))
    motions = motion(parameters, CENTRE, 12.0)
    np.testing.assert_allclose(motion_parameters(motions, CENTRE, 12.0), parameters, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(motions[:, :3, :3]), 1.0)


def test_edge_prior_is_symmetric_and_ignores_constants():
    rng = np.random.default_rng(1)
    prior = EdgePrior(rng.uniform(size=(7, 8, 9)).astype(np.float32), 0.3)
    a, b = rng.normal(size=(2, 7, 8, 9)).astype(np.float32)
    assert np.vdot(a, prior.product(b)) == pytest.approx(np.vdot(prior.product(a), b), rel=1e-4)
    assert np.abs(prior.product(np.full((7, 8, 9), 3.0))).max() < 1e-6
    unit = np.zeros((7, 8, 9), np.float32)
    unit[3, 0, 8] = 1
    assert prior.product(unit)[3, 0, 8] == pytest.approx(prior.diagonal()[3, 0, 8], rel=1e-5)


def test_poses_and_volume_are_recovered():
    stacks, true_poses, *_ = moving_stacks()
    true_poses = true_poses[slices_with_mask(stacks)]
    result = svr(stacks, options=SvrOptions(resolution_mm=1.0))
    still = np.tile(np.eye(4), (result.pixels.n_slices, 1, 1))
    before = pose_error_mm(result.pixels, still, true_poses)
    after = pose_error_mm(result.pixels, result.poses, true_poses)
    assert before > 1.0 and after < 0.25 * before and after < 0.4
    fixed = svr(stacks, options=SvrOptions(resolution_mm=1.0, stack_motion=False, slice_motion=False))
    # The data are explained: the same slices through the result, and far better than without motion.
    errors = [residual_rms(r) for r in (result, fixed)]
    assert errors[0] < 0.4 * errors[1]


def residual_rms(result):
    """Of the slices predicted through the result's own image and poses."""
    pixels = result.pixels.selected(result.pixels.in_mask)
    view = View.make(pixels, result.lattice, result.poses)
    predicted = view.weights.forward(result.image) * result.gains[pixels.slice_of]
    gain = (predicted @ pixels.values) / (predicted @ predicted)
    return float(np.sqrt(np.mean((gain * predicted - pixels.values) ** 2)))


def test_gains_are_found_and_average_to_one():
    rng = np.random.default_rng(2)
    slice_of = np.repeat(np.arange(5), 200)
    prediction = rng.uniform(0.5, 1, 1000)
    true = np.array([0.9, 1.1, 1.0, 0.95, 1.05])
    gains = slice_gains(
        prediction, true[slice_of] * prediction, np.ones(1000), slice_of, 5, np.ones(1000, bool)
    )
    np.testing.assert_allclose(gains / gains.mean(), true / true.mean(), rtol=1e-3)


def test_neighbours_are_those_of_the_acquisition():
    stacks, *_ = moving_stacks()
    pixels = collect_pixels(stacks)
    place = np.empty(pixels.n_slices)
    for stack in range(3):
        mine = np.flatnonzero(pixels.stack_of == stack)
        place[mine] = np.argsort(np.argsort(pixels.rank[mine]))
    parameters = np.repeat(place[:, None], 6, 1)
    means = neighbour_means(parameters, pixels, np.ones(pixels.n_slices))
    inner = np.abs(means[:, 0] - place) < 1e-9
    assert inner.sum() >= pixels.n_slices - 3 * 4  # a linear course is its own mean, but for both ends


def test_a_void_slice_weighs_little():
    stacks, true_poses, image, lattice, _ = moving_stacks()
    true_poses = true_poses[slices_with_mask(stacks)]
    pixels = collect_pixels(stacks, ring_mm=0.0)
    pixels.values[pixels.slice_of == 5] *= 0.2
    view = View.make(pixels, lattice, true_poses)
    scale = np.median(pixels.values) / np.median(view.weights.forward(image))
    weights = robust_weights(view, image * np.float32(scale), np.ones(pixels.n_slices))
    assert weights[pixels.slice_of == 5].mean() < 0.3 * weights[pixels.slice_of != 5].mean()


def test_one_stack_is_refused():
    with pytest.raises(ValueError, match='two stacks'):
        svr(moving_stacks()[0][:1])


def test_a_stack_without_signal_is_named():
    stacks = moving_stacks()[0]
    stacks[1] = replace(stacks[1], data=np.zeros_like(stacks[1].data))
    with pytest.raises(ValueError, match='stack 2'):
        svr(stacks)


def test_sampling_keeps_the_mean():
    image = np.pad(np.ones((5, 5, 5), np.float32), 4)
    assert sampled(image).sum() == pytest.approx(image.sum(), rel=1e-5)
