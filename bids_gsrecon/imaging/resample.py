"""Sampling one grid's image at another grid's voxel centres."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice


def resample(data: np.ndarray, matrix: np.ndarray, shape, order: int, mode: str = 'constant') -> np.ndarray:
    """Sample ``data`` (i, j, k) at ``matrix @ index`` for every index of ``shape``; zero outside
    (or as scipy's ``mode`` says).

    A pure shift by whole voxels is a copy: nothing is interpolated where nothing has to be.
    """
    shift = np.round(matrix[:3, 3]).astype(int)
    corner = np.abs(matrix[:3, :3] - np.eye(3)) @ np.array(shape)
    low = np.maximum(0, -shift)
    high = np.minimum(shape, np.array(data.shape) - shift)
    is_covered = (low == 0).all() and (high == shape).all()
    is_shift = corner.max() < 1e-3 and np.abs(matrix[:3, 3] - shift).max() < 1e-3
    if is_shift and (mode == 'constant' or is_covered):
        out = np.zeros(shape, np.float32)
        if (high > low).all():
            inside = tuple(slice(a, b) for a, b in zip(low, high))
            out[inside] = data[tuple(slice(a, b) for a, b in zip(low + shift, high + shift))]
        return out
    return ndimage.affine_transform(
        np.asarray(data, np.float32),
        matrix[:3, :3],
        matrix[:3, 3],
        tuple(shape),
        order=order,
        mode=mode,
    )


def reached(lattice: Lattice, image: Lattice) -> np.ndarray:
    """Voxels (i, j, k) of ``lattice`` whose centre lies inside the box of ``image``."""
    matrix = image.world_to_voxel @ lattice.affine
    grids = np.ogrid[tuple(slice(0, n) for n in lattice.shape)]
    inside = np.ones(lattice.shape, bool)
    for row, n in zip(matrix[:3], image.shape):
        index = sum(c * g for c, g in zip(row[:3], grids)) + row[3]
        inside &= (index > -0.5 - 1e-6) & (index < n - 0.5 + 1e-6)
    return inside


def share_reached(mask: np.ndarray, lattice: Lattice, image: Lattice) -> float:
    """Share of ``mask`` (i, j, k) on ``lattice`` that lies inside the box of ``image``; of some voxels is enough."""
    voxels = np.argwhere(mask)
    index = image.to_index(lattice.to_world(voxels[:: max(len(voxels) // 20000, 1)]))
    return float(((index >= -0.5) & (index <= np.array(image.shape) - 0.5)).all(1).mean())
