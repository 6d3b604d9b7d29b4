"""Amplitudes of the grid by least squares with an edge-preserving prior."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.solvers.cg import conjugate_gradient

SMOOTHNESS = 0.08  # of the mean diagonal of the data term
EDGE = 0.3  # contrast, of the median of the volume, from which differences are edges
EMPTY = 1e-3  # of the mean diagonal: where no pixel looks, nothing is seen


@njit(parallel=True, cache=True)
def _edge_weights(image, inverse_delta2, out):
    """Charbonnier weights (3, nx, ny, nz) of forward differences, by iteratively re-weighted least squares."""
    nx, ny, nz = image.shape
    for x in prange(nx):
        for y in range(ny):
            for z in range(nz):
                here = image[x, y, z]
                if x + 1 < nx:
                    d = image[x + 1, y, z] - here
                    out[0, x, y, z] = 1.0 / np.sqrt(1.0 + d * d * inverse_delta2)
                if y + 1 < ny:
                    d = image[x, y + 1, z] - here
                    out[1, x, y, z] = 1.0 / np.sqrt(1.0 + d * d * inverse_delta2)
                if z + 1 < nz:
                    d = image[x, y, z + 1] - here
                    out[2, x, y, z] = 1.0 / np.sqrt(1.0 + d * d * inverse_delta2)


@njit(parallel=True, cache=True)
def _laplacian(p, w, strength, empty, out):
    """out = strength * sum_edges w (difference) + empty * p."""
    nx, ny, nz = p.shape
    for x in prange(nx):
        for y in range(ny):
            for z in range(nz):
                here = p[x, y, z]
                total = np.float32(0)
                if x + 1 < nx:
                    total += w[0, x, y, z] * (here - p[x + 1, y, z])
                if x > 0:
                    total += w[0, x - 1, y, z] * (here - p[x - 1, y, z])
                if y + 1 < ny:
                    total += w[1, x, y, z] * (here - p[x, y + 1, z])
                if y > 0:
                    total += w[1, x, y - 1, z] * (here - p[x, y - 1, z])
                if z + 1 < nz:
                    total += w[2, x, y, z] * (here - p[x, y, z + 1])
                if z > 0:
                    total += w[2, x, y, z - 1] * (here - p[x, y, z - 1])
                out[x, y, z] = strength * total + empty * here


class EdgePrior:
    """``strength * sum over neighbours of phi(difference) + empty * sum of squares``: its majoriser at an image."""

    def __init__(self, image: np.ndarray, strength: float, empty: float):
        positive = image[image > 0.05 * image.max()] if image.max() > 0 else image.ravel()
        delta = EDGE * float(np.median(positive)) if positive.size else 1.0
        self._empty = np.float32(empty)
        self._strength = np.float32(strength)
        # Arrays here are [z, y, x], as images lie in memory.
        self._weights = np.zeros((3, *image.shape[::-1]), np.float32)
        _edge_weights(_contiguous(image), np.float32(1.0 / max(delta, 1e-6) ** 2), self._weights)

    def product(self, p: np.ndarray) -> np.ndarray:
        """(nx, ny, nz)."""
        p = _contiguous(p)
        out = np.empty(p.shape, np.float32)
        _laplacian(p, self._weights, self._strength, self._empty, out)
        return out.T

    def diagonal(self) -> np.ndarray:
        """Of the matrix behind `product`, (nx, ny, nz)."""
        total = self._weights.sum(0)
        for axis, w in enumerate(self._weights):
            later, earlier = [slice(None)] * 3, [slice(None)] * 3
            later[axis], earlier[axis] = slice(1, None), slice(None, -1)
            total[tuple(later)] += w[tuple(earlier)]
        return (self._strength * total + self._empty).T


def _contiguous(image) -> np.ndarray:
    return np.ascontiguousarray(image.T, np.float32)


def solve_volume(
    view: View,
    weights: np.ndarray,
    gains: np.ndarray,
    start: np.ndarray | None = None,
    *,
    n_iterations: int = 12,
    n_rounds: int = 2,
) -> np.ndarray:
    """Amplitudes (nx, ny, nz) that explain the pixels.

    Parameters
    ----------
    weights
        (N,) of the pixels.
    gains
        (M,) of the slices: a pixel is ``gain * (A a)``.
    start
        Amplitudes to start from; zeros if absent.
    n_rounds
        Times the edges are looked at again.
    """
    gain = gains[view.pixels.slice_of].astype(np.float32)
    weight = weights.astype(np.float32)
    squared = weight * gain**2
    seen = view.adjoint(squared)
    scale = prior_scale(view, squared, seen)
    right = view.adjoint(weight * gain * view.pixels.values)
    image = np.zeros(right.shape, np.float32, order='F') if start is None else start
    for _ in range(n_rounds):
        prior = EdgePrior(image, SMOOTHNESS * scale, EMPTY * scale)

        def apply(flat, prior=prior):
            p = as_image(flat, right.shape)
            return as_vector(view.adjoint(squared * view.forward(p)) + prior.product(p))

        solution = conjugate_gradient(
            apply,
            as_vector(right),
            x0=as_vector(image),
            inverse_diagonal=as_vector(1.0 / (0.5 * seen + prior.diagonal() + 1e-12)),
            max_iterations=n_iterations,
            tolerance=1e-4,
        )
        image = as_image(solution.x, right.shape)
    return image


def prior_scale(view: View, squared_gains: np.ndarray, seen: np.ndarray) -> float:
    """Mean diagonal of the data term where pixels look, which is what the priors' strengths are told of."""
    core = seen > 0.1 * seen.max()
    return float(view.diagonal(squared_gains)[core].mean()) if core.any() else 1.0


def as_vector(image: np.ndarray) -> np.ndarray:
    """Flat float32, the first axis fastest."""
    return np.ascontiguousarray(image.T, np.float32).reshape(-1)


def as_image(vector: np.ndarray, shape) -> np.ndarray:
    """The inverse of `as_vector`: no copy."""
    return vector.reshape(shape[::-1]).T
