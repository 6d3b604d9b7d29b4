"""Small synthetic images with known truth."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.phantom import T2W, Head, smooth_field


def head(shape=(40, 44, 36), voxel_mm=1.0, *, seed=0, affine=None):
    """A skull-stripped toy head in two contrasts on one grid.

    Returns
    -------
    t1w, t2w : Volume
        Same shapes in both, contrasts reversed; t2w alone shows a bright lesion. Zero outside the mask.
    mask, lesion : np.ndarray
        Boolean (i, j, k).
    """
    rng = np.random.default_rng(seed)
    if affine is None:
        affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
        affine[:3, 3] = -voxel_mm * (np.array(shape) - 1) / 2
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'))
    wiggle = 0.08 * (
        np.sin(9 * grid[0] + 2 * grid[1]) + np.sin(8 * grid[1] - 3 * grid[2]) + np.cos(10 * grid[2])
    )
    radius = np.sqrt((grid**2).sum(0)) + wiggle
    mask = radius < 0.85
    white = radius < 0.55
    fluid = np.sqrt((grid[0] / 0.18) ** 2 + (grid[1] / 0.3) ** 2 + (grid[2] / 0.2) ** 2) < 1
    lesion = np.sqrt(((grid - np.array([0.3, 0.1, 0.1])[:, None, None, None]) ** 2).sum(0)) < 0.12
    t1w, t2w = np.zeros(shape), np.zeros(shape)
    for region, a, b in ((mask, 0.6, 0.55), (white, 0.9, 0.35), (fluid, 0.2, 1.0)):
        t1w[region], t2w[region] = a, b
    t2w[lesion & ~fluid] = 0.85
    texture = 0.02 * rng.standard_normal(shape) * mask
    t1w, t2w = 800 * (t1w + texture) * mask, 500 * (t2w + texture) * mask
    return Volume.from_affine(t1w, affine), Volume.from_affine(t2w, affine), mask, lesion & ~fluid


def folded_head(shape=(36, 40, 36), *, seed=0, affine=None):
    """A skull-stripped T2w head with folded layers, soft edges: fine structure of one kind everywhere.

    Returns
    -------
    t2w : Volume
        About 0 to 500, zero outside the mask.
    mask : np.ndarray
        Boolean (i, j, k).
    """
    rng = np.random.default_rng(seed)
    affine = np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine
    lattice = Lattice(shape, affine)
    radius = np.sqrt(sum(g**2 for g in np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij')))
    depth = 2.7 * radius + 0.35 * smooth_field(shape, rng, scale_voxels=6.0)
    mask = depth < 2.5
    fluid, white = (depth < 0.6) | (depth > 2.2), (depth > 0.6) & (depth < 1.6)
    soft = [ndimage.gaussian_filter((part & mask).astype(np.float32), 0.6) for part in (white, fluid)]
    nothing = np.zeros(shape, np.float32)
    tissue = Head(lattice, mask, soft[0], np.clip(1 - sum(soft), 0, 1), soft[1], nothing, nothing)
    return Volume(500 * tissue.contrast(T2W).data, lattice), mask
