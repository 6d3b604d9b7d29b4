"""Masks of the anatomy in moving stacks: put right where headers disagree, carried over, or found.

What a mask says about another stack is uncertain by the motion between them. Everything that combines
several stacks counts votes on one grid in world: the order of the stacks does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.foreground import bounding_box, dilated
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.resample import reached, resample
from bids_gsrecon.imaging.support import find_support

MOTION_MM = 2.0  # by which the anatomy is expected to lie elsewhere in another stack
SMOOTH_MM = 1.0  # standard deviation that takes the steps of thick slices away
WORLD_MM = 1.5  # voxel of the grid on which stacks vote
SAME_MM = 0.05  # rounding of headers
SAME_SIZE = 0.01  # relative difference of voxel sizes that is rounding


def repaired_mask(
    mask: np.ndarray, mask_lattices: Sequence[Lattice], lattices: Sequence[Lattice]
) -> tuple[np.ndarray, str]:
    """A given mask on the grid of its stack, and what had to be done to it.

    Parameters
    ----------
    mask
        (i, j, k) bool, as its file stores it.
    mask_lattices, lattices
        Where the headers of mask and stack say their voxels are: the form that counts first (sform), others
        (qform) after it.

    Returns
    -------
    mask, remark
        (i, j, k) bool on ``lattices[0]``; the remark is empty where nothing was done.

        * Same shape and voxel sizes (1 %), and displaced by less than half a voxel, or by nothing according
          to another form of the headers: taken voxel by voxel.
        * Anything else: resampled by world coordinates.

    Raises
    ------
    ValueError
        The mask is empty, or shows nothing of the stack.
    """
    if not mask.any():
        raise ValueError('it is an empty mask: draw it again, or leave it out')
    own, target = mask_lattices[0], lattices[0]
    if mask.shape == target.shape:
        if own.same_as(target, SAME_MM):
            return mask, ''
        ratio = own.voxel_sizes_mm / target.voxel_sizes_mm
        displaced_mm = _displacement_mm(own, target)
        if np.abs(ratio - 1).max() <= SAME_SIZE and displaced_mm < 0.5 * target.voxel_sizes_mm.min():
            return (
                mask,
                f'header differs from that of the stack by {displaced_mm:.2g} mm: taken voxel by voxel',
            )
        if any(a.same_as(b, SAME_MM) for a in mask_lattices for b in lattices):
            return (
                mask,
                'sform and qform disagree, and one of them is that of the stack: taken voxel by voxel',
            )
    moved = _on(mask, own, target)
    if not moved.any():
        remedy = (
            'copy the header of the stack if it was drawn on it'
            if mask.shape == target.shape
            else 'repair its header'
        )
        raise ValueError(f'it does not overlap its stack by the headers: {remedy}, or leave it out')
    if _is_rearranged(own, target):
        return moved, ''
    return moved, f'grid differs from that of the stack ({_describe(own, target)}): resampled in world'


def propagated_mask(
    masks: Sequence[np.ndarray],
    lattices: Sequence[Lattice],
    target: Lattice,
    *,
    motion_mm: float = MOTION_MM,
) -> np.ndarray:
    """What the masks of other stacks see of a stack: their union in world, smoothed, grown by the motion.

    Parameters
    ----------
    masks, lattices
        (i, j, k) bool each, on their own grids; at least one.
    target
        Grid of the stack that lacks a mask.
    motion_mm
        By which the anatomy may lie elsewhere; the mask grows by whole voxels of the common grid (1.5 mm).

    Returns
    -------
    (i, j, k) bool on ``target``; empty where the others see nothing of it.
    """
    world = _world_lattice(masks, lattices, motion_mm)
    union = np.zeros(world.shape, bool)
    for mask, lattice in zip(masks, lattices):
        union |= _on(mask, lattice, world)
    smooth = ndimage.gaussian_filter(union.astype(np.float32), SMOOTH_MM / WORLD_MM) > 0.5
    return _on(dilated(smooth, world, motion_mm), world, target)


def common_foreground(volumes: Sequence[Volume]) -> list[np.ndarray]:
    """Without any mask: the intersection of all fields of view, where half of the stacks or more see an object.

    Half, not all: a slice that lost its signal must not cut the anatomy in two.

    Returns
    -------
    One (i, j, k) bool mask per stack, on its own grid; all empty where nothing is common.
    """
    lattices = [volume.lattice for volume in volumes]
    supports = [find_support(volume)[0] for volume in volumes]
    world = _world_lattice(supports, lattices, 0.0, common=True)
    if world is None:
        return [np.zeros(lattice.shape, bool) for lattice in lattices]
    votes = np.zeros(world.shape, int)
    for support, lattice in zip(supports, lattices):
        votes += _on(support, lattice, world)
    region = 2 * votes >= len(volumes)
    for lattice in lattices:
        region &= reached(world, lattice)
    smooth = ndimage.gaussian_filter(region.astype(np.float32), SMOOTH_MM / WORLD_MM) > 0.5
    return [_on(smooth, world, lattice) for lattice in lattices]


def _world_lattice(masks, lattices, margin_mm: float, *, common: bool = False) -> Lattice | None:
    """An isotropic grid along the world's axes around all masks; ``common``: around what their boxes share."""
    boxes = []
    for mask, lattice in zip(masks, lattices):
        start, stop = bounding_box(mask)
        ends = np.array(np.meshgrid(*zip(start - 0.5, stop - 0.5))).reshape(3, -1).T
        corners = lattice.to_world(ends)
        boxes.append((corners.min(0), corners.max(0)))
    lows, highs = (np.array(ends) for ends in zip(*boxes))
    low, high = (lows.max(0), highs.min(0)) if common else (lows.min(0), highs.max(0))
    if not (high > low).all():
        return None
    margin = margin_mm + 2 * WORLD_MM
    affine = np.diag([WORLD_MM, WORLD_MM, WORLD_MM, 1.0])
    affine[:3, 3] = low - margin
    return Lattice(tuple(np.ceil((high - low + 2 * margin) / WORLD_MM).astype(int) + 1), affine)


def _on(mask: np.ndarray, source: Lattice, target: Lattice) -> np.ndarray:
    """``mask`` at the voxel centres of ``target``; a voxel at the border of the image reaches to its face."""
    matrix = source.world_to_voxel @ target.affine
    return resample(mask.astype(np.float32), matrix, target.shape, 1, mode='grid-constant') > 0.5


def _displacement_mm(a: Lattice, b: Lattice) -> float:
    """Largest distance of the same voxel in two lattices of one shape."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in a.shape])).reshape(3, -1).T
    return float(np.linalg.norm(a.to_world(corners) - b.to_world(corners), axis=1).max())


def _is_rearranged(a: Lattice, b: Lattice) -> bool:
    """Whether both grids have the same voxel centres, stored in another order."""
    if sorted(a.shape) != sorted(b.shape) or np.abs(a.centre_mm - b.centre_mm).max() > SAME_MM:
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in b.shape])).reshape(3, -1).T
    index = a.to_index(b.to_world(corners))
    wanted = np.array(np.meshgrid(*[(0, n - 1) for n in a.shape])).reshape(3, -1).T
    gaps = np.abs(index[:, None] - wanted[None]).max(2).min(1)
    return bool(gaps.max() * a.voxel_sizes_mm.max() <= SAME_MM)


def _describe(own: Lattice, target: Lattice) -> str:
    if own.shape != target.shape:
        return f'{"x".join(map(str, own.shape))} against {"x".join(map(str, target.shape))} voxels'
    return f'displaced by up to {_displacement_mm(own, target):.1f} mm'
