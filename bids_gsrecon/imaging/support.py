"""Where an image holds anything at all: the default mask of a reconstruction."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.foreground import background_value, foreground_threshold, largest_component
from bids_gsrecon.imaging.lattice import Volume

MIN_EMPTY = 0.003  # share of the image that a drawn background fills at least
FULL = 0.85  # a foreground of more than this is an image without background: a cut-out of the object
MUCH_SMALLER = 0.7  # a foreground below this share of what is not empty: most of that is air


def find_support(volume: Volume) -> tuple[np.ndarray, str]:
    """A mask of the object, and how it was found: ``nonzero``, ``foreground`` or ``everything``.

    ``nonzero``: an image with a compact background of one exact value (skull-stripped, defaced, masked) is
    used where it differs from it, unless most of that is air (a scan turned or warped into a larger box has
    empty corners only). ``foreground``: otherwise, what exceeds a tenth of the bright tissue after
    smoothing, its largest part, holes filled, grown by one voxel. ``everything``: the foreground fills the
    image, which is then a cut-out (or nothing is positive). Generous throughout: what is left out is not reconstructed.
    """
    data = volume.data
    if not (data > 0).any():  # no foreground to tell from air
        return np.ones(data.shape, bool), 'everything'
    smooth = ndimage.gaussian_filter(data, 1.0 / volume.lattice.voxel_sizes_mm)
    mask = _filled(largest_component(smooth > foreground_threshold(smooth)))
    mask = ndimage.binary_dilation(mask)
    empty = data == background_value(data)
    # Rounded noise holds scattered zeros too, but few of them among zeros only.
    if empty.mean() > MIN_EMPTY and _interior(empty).sum() > 0.3 * empty.sum():
        nonzero = _filled(~empty)
        if mask.sum() >= MUCH_SMALLER * nonzero.sum():
            return nonzero, 'nonzero'
    if mask.mean() > FULL:
        return np.ones(data.shape, bool), 'everything'
    return mask, 'foreground'


def _interior(mask: np.ndarray) -> np.ndarray:
    """Voxels of ``mask`` whose six neighbours (those inside the image) belong to it too."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        head, tail = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
        head[axis], tail[axis] = slice(None, -1), slice(1, None)
        inside[tuple(head)] &= mask[tuple(tail)]
        inside[tuple(tail)] &= mask[tuple(head)]
    return inside


def _filled(mask: np.ndarray) -> np.ndarray:
    """Holes filled; only the box of the mask is searched, the rest of the image cannot hold one."""
    if not mask.any():
        return mask
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    filled = mask.copy()
    filled[box] = ndimage.binary_fill_holes(mask[box])
    return filled
