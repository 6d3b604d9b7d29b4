"""Amplitudes of the grid by least squares with an edge-preserving prior."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from bids_gsrecon.recon.svr.pixels import View
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
def _laplacian(p, w, strength, out):
    """out = strength * sum_edges w (difference)."""
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
                out[x, y, z] = strength * total


class EdgePrior:
    """``strength * sum over neighbours of phi(difference)``, its quadratic majoriser at an image."""

    def __init__(self, image: np.ndarray, strength: float):
        positive = image[image > 0.05 * image.max()] if image.max() > 0 else image.ravel()
        delta = EDGE * float(np.median(positive)) if positive.size else 1.0
        self.weights = np.zeros((3, *image.shape), np.float32)
        self.strength = np.float32(strength)
        _edge_weights(
            np.ascontiguousarray(image, np.float32), np.float32(1.0 / max(delta, 1e-6) ** 2), self.weights
        )

    def product(self, p: np.ndarray) -> np.ndarray:
        out = np.empty(p.shape, np.float32)
        _laplacian(np.ascontiguousarray(p, np.float32), self.weights, self.strength, out)
        return out

    def diagonal(self) -> np.ndarray:
        w = self.weights
        total = w.sum(0)
        for axis in range(3):
            shifted = np.zeros_like(w[axis])
            to, fro = [slice(None)] * 3, [slice(None)] * 3
            to[axis], fro[axis] = slice(1, None), slice(None, -1)
            shifted[tuple(to)] = w[axis][tuple(fro)]
            total = total + shifted
        return self.strength * total


def solve_volume(
    view: View,
    weights: np.ndarray,
    gains: np.ndarray,
    start: np.ndarray,
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
        Amplitudes to start from.
    n_rounds
        Times the edges are looked at again.
    """
    pixels = view.pixels
    gain = gains[pixels.slice_of].astype(np.float32)
    weight = weights.astype(np.float32)
    data_diagonal = view.weights.squares(weight * gain**2)
    # What a voxel is seen by in all, not the square of one weight: the scale of the prior.
    seen = view.weights.adjoint(weight * gain**2)
    typical = float(seen[seen > 0.1 * seen.max()].mean()) if seen.max() > 0 else 1.0
    scale = float(data_diagonal[seen > 0.1 * seen.max()].mean()) if seen.max() > 0 else typical
    right = view.weights.adjoint(weight * gain * pixels.values)
    image = start
    for _ in range(n_rounds):
        prior = EdgePrior(image, SMOOTHNESS * scale)
        tiny = np.float32(EMPTY * scale)

        def apply(p, prior=prior, tiny=tiny):
            return (
                view.weights.adjoint(weight * gain**2 * view.weights.forward(p)) + prior.product(p) + tiny * p
            )

        image = conjugate_gradient(
            apply,
            right,
            x0=image,
            inverse_diagonal=1.0 / (seen * 0.5 + prior.diagonal() + tiny + 1e-12),
            max_iterations=n_iterations,
            tolerance=1e-4,
        ).x
    return image
