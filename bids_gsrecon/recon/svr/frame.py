"""In whose frame the volume is: the stack that moved least, and a grid along its axes."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.svr.motion import Frame, mean_motion
from bids_gsrecon.recon.svr.pixels import Pixels

MARGIN_MM = 6.0


def grid_axes(pixels: Pixels, stack: int) -> np.ndarray:
    """(3, 3) unit columns along a stack's axes, ordered and turned to lie nearest to right, anterior, superior."""
    own = pixels.axes[np.flatnonzero(pixels.stack_of == stack)[0]]
    order = nib.orientations.io_orientation(np.block([[own, np.zeros((3, 1))], [np.zeros((1, 3)), 1]]))
    axes = np.empty((3, 3))
    for stored, (world, direction) in enumerate(order):
        axes[:, int(world)] = direction * own[:, stored]
    return axes


def grid_over(points_mm: np.ndarray, spacing_mm: float, axes: np.ndarray) -> Lattice:
    """An isotropic grid along ``axes`` (3, 3) over points (N, 3) and a margin."""
    along = points_mm @ axes
    # Axis by axis: a reduction over the rows of a narrow array is slow.
    low, high = (np.array([end(along[:, k]) for k in range(3)]) for end in (np.min, np.max))
    low, high = low - MARGIN_MM, high + MARGIN_MM
    # A millionth less: extents that are whole numbers of voxels must not depend on rounding.
    shape = np.ceil((high - low) / spacing_mm - 1e-6).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = axes @ ((low + high) / 2 - spacing_mm * (shape - 1) / 2)
    return Lattice(tuple(int(n) for n in shape), affine)


def stack_motion(pixels: Pixels, poses: np.ndarray, stack: int) -> np.ndarray:
    """The rigid motion (4, 4) in the middle of those of a stack's slices, by their pixels in the mask."""
    mine = pixels.stack_of == stack
    centre = pixels.points_mm[pixels.of_stack(stack) & pixels.in_mask].mean(0)
    return mean_motion(poses[mine], pixels.n_masked[mine] + 1e-9, centre)


def choose_reference(pixels: Pixels, poses, frame: Frame, given: int | None) -> int:
    """The stack whose slices moved least against each other, or the one asked for."""
    if given is not None:
        return given
    count = pixels.n_masked
    spread = []
    for stack in range(pixels.n_stacks):
        mine = pixels.stack_of == stack
        left = np.linalg.inv(stack_motion(pixels, poses, stack)) @ poses[mine]
        size = np.linalg.norm(frame.parameters(left), axis=1)
        spread.append(np.average(size, weights=count[mine] + 1e-9))
    return int(np.argmin(np.round(spread, 6)))


def to_reference(pixels: Pixels, poses: np.ndarray, reference: int) -> np.ndarray:
    """Poses after the one motion that leaves the reference stack, on average, where the scanner saw it."""
    return np.linalg.inv(stack_motion(pixels, poses, reference)) @ poses
