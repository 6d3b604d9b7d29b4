"""Where the Gaussians start, and which of them move."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

from bids_gsrecon.fields.initialize import morton
from bids_gsrecon.gpu.splat2d import frame_planes, splat, splat_gradient

PIXELS_PER_GAUSSIAN = 4.0
# Standard deviation over the spacing of the neighbours.
RELATIVE_WIDTH = 0.6
SHARE_OF_INTENSITY, SHARE_OF_ACTIVITY, SHARE_OF_ALL = 0.8, 0.3, 0.1
NEIGHBOURS = 6


def activity_map(modes: np.ndarray, support: np.ndarray) -> np.ndarray:
    """(x, y) how much a pixel changes over time, 1 near the maximum, from images (K, x, y) of the time courses."""
    activity = ndimage.gaussian_filter(np.sqrt((np.abs(modes) ** 2).sum(0)), 1.0)
    top = np.percentile(activity[support], 99.5) if support.any() else 0.0
    return activity / top if top > 0 else np.zeros_like(activity)


def place(mean: np.ndarray, activity: np.ndarray, support: np.ndarray, n_gaussians: int, rng) -> np.ndarray:
    """Gaussians (M, 7), amplitudes zero: denser where the mean image is bright, has edges, or moves.

    Systematic sampling along a space-filling curve, as `bids_gsrecon.fields.initialize.sample_by_detail` does in
    3D, but with a density that knows of motion, and above one for every pixel where it must.
    """
    edges = np.sqrt(
        sum(
            np.abs(ndimage.gaussian_filter(part, 0.7, order=order)) ** 2
            for part in (mean.real, mean.imag)
            for order in ((1, 0), (0, 1))
        )
    )
    density = np.full(mean.shape, SHARE_OF_ALL)
    for image, share, limit in (
        (np.abs(mean), SHARE_OF_INTENSITY, np.inf),
        (edges, 1.0, 4.0),
        (activity, SHARE_OF_ACTIVITY, 4.0),
    ):
        density += share * np.minimum(image / max(image[support].mean(), 1e-30), limit)
    where = np.argwhere(support)
    density = density[support]
    density *= n_gaussians / density.sum()
    order = np.argsort(morton(where), kind='stable')
    marks = np.arange(n_gaussians) + rng.uniform()
    chosen = order[np.minimum(np.searchsorted(np.cumsum(density[order]), marks), len(order) - 1)]
    base = np.zeros((n_gaussians, 7), np.float32)
    base[:, :2] = where[chosen] + rng.uniform(-0.4, 0.4, (n_gaussians, 2))
    base[:, 2] = base[:, 4] = np.clip(RELATIVE_WIDTH / np.sqrt(density[chosen]), 0.45, 4.0)
    return base


def solve_amplitudes(
    base: np.ndarray, mean: np.ndarray, *, n_iterations: int = 12, ridge: float = 0.02
) -> None:
    """Set the amplitudes of ``base`` (M, 7) so that it shows ``mean`` (x, y): conjugate gradients."""
    target = frame_planes(1, mean.shape)
    target[0, 0], target[0, 1] = mean.real, mean.imag

    def adjoint(planes):
        return splat_gradient(base[None], planes)[0][:, 5:]

    def image_of(amplitudes):
        base[:, 5:] = amplitudes
        return splat(base[None], mean.shape)

    r = adjoint(target)
    x, p, rr = np.zeros_like(r), r.copy(), float((r * r).sum())
    for _ in range(n_iterations):
        if rr <= 0:
            break
        q = adjoint(image_of(p)) + np.float32(ridge) * p
        step = rr / float((p * q).sum())
        x += np.float32(step) * p
        r -= np.float32(step) * q
        rr, before = float((r * r).sum()), rr
        p = r + np.float32(rr / before) * p
    base[:, 5:] = x


def neighbour_laplacian(positions: np.ndarray) -> sparse.csr_matrix:
    """(D, D) graph Laplacian of the nearest neighbours, edges fading with distance."""
    n = len(positions)
    k = min(NEIGHBOURS, n - 1)
    if k < 1:
        return sparse.csr_matrix((n, n), dtype=np.float32)
    distances, neighbours = cKDTree(positions).query(positions, k + 1)
    weights = np.exp(-(distances[:, 1:] ** 2) / (2 * 1.5**2)).ravel()
    edges = sparse.csr_matrix((weights, (np.repeat(np.arange(n), k), neighbours[:, 1:].ravel())), (n, n))
    edges = 0.5 * (edges + edges.T)
    return (sparse.diags(np.asarray(edges.sum(1)).ravel()) - edges).tocsr().astype(np.float32)
