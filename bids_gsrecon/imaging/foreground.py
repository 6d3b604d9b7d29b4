"""What is object and what is background in an image, and whether the skull was taken off."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice, Volume

EMPTY_PART = 0.25
BRAIN_LITRES = (0.25, 2.3)
# The largest axial cut through a brain is about 14 x 17 cm; a head's, with scalp and skull, is more.
MAX_BRAIN_CUT_CM2 = 205.0
# Skull and air make a dark layer a centimetre below a head's surface; a brain has none.
MAX_DARK_SHELL = 0.08


def foreground_threshold(data: np.ndarray) -> float:
    """A value between air and tissue: a tenth of the way from the background to the bright tissue."""
    low = background_value(data)
    above = data[data > low]
    if above.size == 0:
        return low
    return low + 0.1 * (float(np.percentile(above, 98)) - low)


def background_value(data: np.ndarray) -> float:
    """The value of an emptied background: the commonest one on the six faces, or the minimum.

    Resampled images ring below zero, so the minimum alone would not find their empty background.
    """
    faces = np.concatenate([np.take(data, (0, -1), axis=axis).ravel() for axis in range(3)])
    values, counts = np.unique(faces, return_counts=True)
    commonest = int(np.argmax(counts))
    return float(values[commonest]) if counts[commonest] > 0.1 * faces.size else float(data.min())


def dilated(mask: np.ndarray, lattice: Lattice, mm: float) -> np.ndarray:
    """``mask`` (i, j, k) grown by ``mm`` millimetres, whatever the voxels' shape."""
    if not mask.any():
        return mask
    return ndimage.distance_transform_edt(~mask, sampling=lattice.voxel_sizes_mm) <= mm


def eroded(mask: np.ndarray, lattice: Lattice, mm: float) -> np.ndarray:
    """``mask`` (i, j, k) shrunk by ``mm`` millimetres; the border of the image does not erode it."""
    if mask.all():
        return mask
    return ndimage.distance_transform_edt(mask, sampling=lattice.voxel_sizes_mm) > mm


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The biggest 6-connected part of ``mask``."""
    labels, n = ndimage.label(mask)
    if n <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == int(np.argmax(sizes))


def volume_litres(mask: np.ndarray, lattice: Lattice) -> float:
    return float(mask.sum()) * abs(np.linalg.det(lattice.affine[:3, :3])) / 1e6


def skull_stripped_support(volume: Volume) -> np.ndarray | None:
    """The brain of an image whose surroundings were emptied, or None where the image shows a head.

    A masked brain has a background of one exact value (a quarter of the image or more), one compact
    object of a brain's volume and cut, and no dark layer (skull) under its surface. A head with an
    emptied background fails the last two.

    Returns
    -------
    (i, j, k) bool, holes filled; or None.
    """
    value = background_value(volume.data)
    scale = float(np.percentile(np.abs(volume.data - value), 99.9))
    occupied = np.abs(volume.data - value) > 1e-4 * scale
    if 1.0 - occupied.mean() < EMPTY_PART or not occupied.any():
        return None
    start, stop = bounding_box(occupied)
    box = tuple(slice(a, b) for a, b in zip(start, stop))
    main = largest_component(occupied[box])
    if main.sum() < 0.9 * occupied.sum():
        return None
    main = ndimage.binary_fill_holes(main)
    part = volume.lattice.cropped(start, stop)
    if not BRAIN_LITRES[0] <= volume_litres(main, part) <= BRAIN_LITRES[1]:
        return None
    if axial_cut_cm2(main, part) > MAX_BRAIN_CUT_CM2:
        return None
    # Depth is a matter of millimetres: every second voxel of a fine image tells it.
    step = np.maximum(np.floor(2.0 / part.voxel_sizes_mm), 1).astype(int)
    thinned = tuple(slice(None, None, n) for n in step)
    padded = np.pad(main[thinned], 1)
    values = np.pad(volume.data[box][thinned], 1, constant_values=value) - value
    if _dark_shell(values, padded, part.voxel_sizes_mm * step) > MAX_DARK_SHELL:
        return None
    support = np.zeros(volume.data.shape, dtype=bool)
    support[box] = main
    return support


def bounding_box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index and one past the last of ``mask`` along each axis."""
    start, stop = np.zeros(3, int), np.zeros(3, int)
    for axis in range(3):
        filled = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        start[axis], stop[axis] = filled[0], filled[-1] + 1
    return start, stop


def axial_cut_cm2(mask: np.ndarray, lattice: Lattice) -> float:
    """Largest area of ``mask`` over the planes nearest to axial, cm2."""
    directions = np.abs(lattice.affine[2, :3]) / lattice.voxel_sizes_mm
    axis = int(np.argmax(directions))
    area = np.prod(np.delete(lattice.voxel_sizes_mm, axis)) / 100.0
    return float(mask.sum(tuple(a for a in range(3) if a != axis)).max() * area)


def _dark_shell(values: np.ndarray, mask: np.ndarray, voxel_sizes_mm) -> float:
    """Share of voxels 5 to 12 mm below the surface of ``mask`` with under a quarter of the core's median."""
    depth = ndimage.distance_transform_edt(mask, sampling=voxel_sizes_mm)
    shell, core = (depth > 5) & (depth < 12), depth > 20
    if not shell.any() or not core.any():
        return 0.0
    return float(np.mean(values[shell] < 0.25 * np.median(values[core])))
