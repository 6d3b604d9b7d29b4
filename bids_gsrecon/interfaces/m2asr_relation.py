"""How a reference relates to its target: edges that both show point the same way, or opposite ways.

A network that was trained where they point opposite ways (T1w, T2w) does harm where they do not (another sequence, an
inverted image), and its gain on a coarser copy of the image hardly tells.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.kspace_crop import crop_kspace, in_plane_axes
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.resample import resample
from bids_gsrecon.recon.m2asr.types import Pair

FACTOR = 3.0  # pairs are compared as coarse as images that networks are used for
N_SLICES = 16  # of a pair
TOLERANCE = 0.4  # beyond the range of the training: two heads of one sequence differed by 0.25


def edge_correlation(first: np.ndarray, second: np.ndarray, mask: np.ndarray, slice_axis: int) -> float:
    """-1..1: correlation of the in-plane gradients of two images (i, j, k) of one grid, inside ``mask``.

    The border of the mask, an edge of both, does not count. NaN where nothing is left.
    """
    structure = np.moveaxis(np.ones((3, 3, 1), bool), 2, slice_axis)
    inside = ndimage.binary_erosion(mask, structure, iterations=2)
    products = np.zeros(3)
    for axis in in_plane_axes(slice_axis):
        a, b = (np.gradient(image.astype(np.float64), axis=axis)[inside] for image in (first, second))
        products += [a @ b, a @ a, b @ b]
    return float(products[0] / np.sqrt(products[1] * products[2])) if products[1:].all() else float('nan')


def relation_of(pair: Pair) -> float:
    """`edge_correlation` of a pair, some of its slices made coarse."""
    axis = pair.slice_axis
    mask = pair.mask if pair.mask is not None else pair.target > pair.target.min()
    where = np.flatnonzero(mask.any(in_plane_axes(axis)))
    some = where[np.unique(np.linspace(0, len(where) - 1, N_SLICES).round().astype(int))]
    reference, target, inside = (np.take(image, some, axis) for image in (pair.reference, pair.target, mask))
    lattice = Lattice(target.shape, pair.lattice.affine)
    images = [crop_kspace(image, lattice, axis, FACTOR) for image in (reference, target)]
    coarse = images[0][1]
    matrix = lattice.world_to_voxel @ coarse.affine
    inside = resample(inside.astype(np.float32), matrix, coarse.shape, 0, 'nearest') > 0.5
    return edge_correlation(images[0][0], images[1][0], inside, axis)


def as_coarse(
    guide: Volume, target: Volume, mask: np.ndarray, slice_axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """The reference and a mask, both on the grid of the result, as coarse as the target and on its grid."""
    lattice = target.lattice
    ratios = [guide.lattice.shape[axis] / lattice.shape[axis] for axis in in_plane_axes(slice_axis)]
    data, own = crop_kspace(guide.data, guide.lattice, slice_axis, ratios)
    reference = resample(data, own.world_to_voxel @ lattice.affine, lattice.shape, 3, 'nearest')
    matrix = guide.lattice.world_to_voxel @ lattice.affine
    return reference, resample(mask.astype(np.float32), matrix, lattice.shape, 0, 'nearest') > 0.5


def unlike_relation(card: dict, correlation: float) -> list[str]:
    """A sentence where reference and target relate otherwise than those of the training."""
    known = card.get('edge_correlation')
    if not known or not np.isfinite(correlation):
        return []
    low, high = known
    if low - TOLERANCE <= correlation <= high + TOLERANCE:
        return []
    return [
        f'The reference relates to the image otherwise than in the training (correlation of edges {correlation:+.2f}, '
        f'there {low:+.2f} to {high:+.2f}): it may do more harm than good.'
    ]
