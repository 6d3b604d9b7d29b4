"""A small phantom in three stacks of thick slices that moved, seen through the model itself."""

from dataclasses import replace

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.gpu import get_backend
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.stacks import SliceStack
from bids_gsrecon.recon.svr.frame import grid_over
from bids_gsrecon.recon.svr.motion import Frame
from bids_gsrecon.recon.svr.pixels import collect_pixels
from bids_gsrecon.recon.svr.view import View

BACKEND = get_backend('cpu')
CENTRE = np.array([1.0, -2.0, 3.0])
RADIUS = 15.0
FRAME = Frame(CENTRE, 10.0)


def anatomy(spacing=1.0):
    """Smooth structure inside an ellipsoid, zero outside: amplitudes on a grid, and the grid."""
    lattice = grid_over(np.array([CENTRE - RADIUS, CENTRE + RADIUS]), spacing, np.eye(3))
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=lattice.shape), 1.8)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in lattice.shape], indexing='ij'), -1)
    world = lattice.to_world(grid) - CENTRE
    inside = (world**2 / np.array([1.0, 0.8, 0.9]) ** 2).sum(-1) < RADIUS**2
    return np.where(inside, 0.6 + 2.0 * noise / noise.std() * 0.12, 0).astype(np.float32), lattice, inside


def moving_stacks(poses_deg=3.0, poses_mm=1.0, seed=0):
    """Three orthogonal stacks of 2.5 mm slices, the poses of slices with a mask, and the anatomy."""
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
    pixels = collect_pixels(stacks)
    steps = rng.normal(size=(pixels.n_slices, 6))
    for stack in range(3):  # smooth in acquisition order
        mine = np.flatnonzero(pixels.stack_of == stack)
        mine = mine[np.argsort(pixels.rank[mine])]
        steps[mine] = ndimage.gaussian_filter1d(steps[mine], 2.0, axis=0, mode='nearest')
    steps /= steps.std(0)
    poses = FRAME.motions(steps * ([np.radians(poses_deg) * FRAME.arm_mm] * 3 + [poses_mm] * 3))
    view = View.make(pixels, lattice, poses, BACKEND)
    values = view.forward(image)
    seen = view.forward(inside.astype(np.float32)) > 0.5
    filled = []
    for number, stack in enumerate(stacks):
        mine = pixels.of_stack(number)
        # Pixels are listed slice by slice.
        data = values[mine].reshape(n_slices, n, n).transpose(1, 2, 0)
        mask = seen[mine].reshape(n_slices, n, n).transpose(1, 2, 0)
        filled.append(replace(stack, data=np.ascontiguousarray(data), mask=mask))
    return filled, poses[np.concatenate([stack.mask.any((0, 1)) for stack in filled])], image, lattice


def pose_error_mm(pixels, estimated, true_by_slice):
    """Mean distance of mask points from their true place after one rigid motion of all."""
    masked = pixels.selected(pixels.in_mask)
    a, b = masked.placed(estimated), masked.placed(true_by_slice)
    turn, _ = Rotation.align_vectors(b - b.mean(0), a - a.mean(0))
    return float(np.linalg.norm(turn.apply(a - a.mean(0)) + b.mean(0) - b, axis=1).mean())
