"""Whether stacks show the same contrast, told from what they have in common at a coarse resolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.foreground import bounding_box
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.resample import resample

COARSE_MM = 4.0
BLUR_MM = 3.0  # standard deviation: motion of some millimetres must not hide that two stacks are alike
DEEP = 0.9  # of the blurred mask: at the rim every contrast falls off to the same nothing
MIN_VOXELS = 30
OPPOSITE = -0.2
# Of the correlation among the others. T1w and T2w of infants correlate by half of what two T2w do; two
# fetal stacks that moved by 5 mm by two thirds.
UNLIKE = 0.55
ALIKE = 0.3  # below, the others agree too little to tell


def stack_correlations(volumes: Sequence[Volume], masks: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation (S, S) of all pairs of stacks inside both masks, as their headers place them.

    Parameters
    ----------
    volumes
        The stacks.
    masks
        (i, j, k) bool each, not empty.

    Returns
    -------
    NaN where the masks of a pair have next to nothing in common, or nothing in it varies.
    """
    corners = [_corners(volume.lattice, mask) for volume, mask in zip(volumes, masks)]
    low, high = np.concatenate(corners).min(0), np.concatenate(corners).max(0)
    affine = np.diag([COARSE_MM, COARSE_MM, COARSE_MM, 1.0])
    affine[:3, 3] = low
    lattice = Lattice(tuple(np.ceil((high - low) / COARSE_MM).astype(int) + 1), affine)
    images, seen = zip(*(_coarse(v, m, lattice) for v, m in zip(volumes, masks)))
    n = len(volumes)
    correlations = np.eye(n)
    for a in range(n):
        for b in range(a + 1, n):
            both = seen[a] & seen[b]
            x, y = images[a][both], images[b][both]
            known = both.sum() >= MIN_VOXELS and x.std() > 0 and y.std() > 0
            correlations[a, b] = correlations[b, a] = np.corrcoef(x, y)[0, 1] if known else np.nan
    return correlations


def unlike_stacks(correlations: np.ndarray) -> list[int]:
    """Stacks whose contrast is clearly another than that of the others.

    One is unlike the others where it runs against them, or follows none of them half as well as those follow
    each other. Of two stacks that run against each other, both are named.
    """
    n = len(correlations)
    off = np.where(np.eye(n, dtype=bool), np.nan, correlations)
    unlike = []
    for stack in range(n):
        mine = off[stack][np.isfinite(off[stack])]
        rest = np.delete(np.delete(off, stack, 0), stack, 1)
        rest = rest[np.isfinite(rest)]
        if mine.size == 0:
            continue
        among_others = float(np.median(rest)) if rest.size else 0.0
        opposed = np.median(mine) < OPPOSITE and among_others >= 0
        follows_none = among_others > ALIKE and mine.max() < UNLIKE * among_others
        if opposed or follows_none:
            unlike.append(stack)
    return unlike


def _coarse(volume: Volume, mask: np.ndarray, lattice: Lattice) -> tuple[np.ndarray, np.ndarray]:
    """The stack blurred inside its mask, on a coarse grid; and where it is known."""
    start, stop = bounding_box(mask)
    box = tuple(slice(a, b) for a, b in zip(start, stop))
    part = volume.lattice.cropped(start, stop)
    inside = mask[box].astype(np.float32)
    sigma = BLUR_MM / part.voxel_sizes_mm
    weight = ndimage.gaussian_filter(inside, sigma, mode='constant')
    values = ndimage.gaussian_filter(volume.data[box] * inside, sigma, mode='constant')
    matrix = part.world_to_voxel @ lattice.affine
    values = resample(values / np.maximum(weight, 1e-3), matrix, lattice.shape, 1, mode='nearest')
    return values, resample(weight, matrix, lattice.shape, 1) > DEEP


def _corners(lattice: Lattice, mask: np.ndarray) -> np.ndarray:
    start, stop = bounding_box(mask)
    return lattice.to_world(np.array(np.meshgrid(*zip(start, stop - 1))).reshape(3, -1).T)
