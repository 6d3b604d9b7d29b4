"""Where Gaussians start: as many as the detail of an image asks for."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.fields.gaussians import GaussianField


def sample_by_detail(
    image: np.ndarray,
    affine: np.ndarray,
    region: np.ndarray,
    n_gaussians: int,
    *,
    seed: int = 0,
    flat_share: float = 0.35,
    channel: str = 'image',
) -> GaussianField:
    """Isotropic Gaussians inside ``region``, denser where the image has edges.

    Parameters
    ----------
    image
        (i, j, k) on ``affine`` (voxel to world RAS mm).
    region
        (i, j, k) bool: where Gaussians may start.
    flat_share
        Share of the density that is spread evenly; the rest follows the gradient magnitude.

    Notes
    -----
    Systematic sampling along a space-filling (Morton) order: one random offset, no clusters, no gaps. Each
    Gaussian is as wide as its share of space asks for.
    """
    where = np.argwhere(region)
    if len(where) == 0:
        raise ValueError('the region holds no voxel to put a Gaussian in')
    n_gaussians = int(np.clip(n_gaussians, 1, len(where)))
    gradient = ndimage.gaussian_gradient_magnitude(image, 0.8)[tuple(where.T)].astype(np.float64)
    gradient = np.minimum(gradient, 4.0 * gradient.mean() + 1e-30)
    density = flat_share + (1.0 - flat_share) * gradient / (gradient.mean() + 1e-30)
    density *= n_gaussians / density.sum()
    order = np.argsort(morton(where), kind='stable')
    cumulative = np.cumsum(density[order])
    rng = np.random.default_rng(seed)
    marks = (np.arange(n_gaussians) + rng.uniform()) * cumulative[-1] / n_gaussians
    chosen = np.unique(np.minimum(np.searchsorted(cumulative, marks), len(order) - 1))
    chosen = order[chosen]
    voxel_volume = abs(np.linalg.det(affine[:3, :3]))
    # .55 of the edge of the cube that is one Gaussian's own: neighbours overlap, none is lost.
    scale_mm = 0.55 * np.cbrt(voxel_volume / np.minimum(density[chosen], 1.0))
    jitter = rng.uniform(-0.25, 0.25, (len(chosen), 3))
    means = (where[chosen] + jitter) @ affine[:3, :3].T + affine[:3, 3]
    quaternions = np.zeros((len(chosen), 4), np.float32)
    quaternions[:, 0] = 1.0
    return GaussianField(
        means,
        np.log(np.repeat(scale_mm[:, None], 3, axis=1)),
        quaternions,
        np.zeros(len(chosen)),
        image[tuple(where[chosen].T)][:, None],
        'normalized',
        (channel,),
    )


def morton(indices: np.ndarray) -> np.ndarray:
    """Morton (z-order) code of non-negative pixel or voxel indices (n, 2 or 3) below 2^20."""
    code = np.zeros(len(indices), np.uint64)
    for axis in range(indices.shape[1]):
        x = indices[:, axis].astype(np.uint64)
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            x = (x | (x << np.uint64(shift))) & np.uint64(mask)
        code |= x << np.uint64(axis)
    return code
