"""Amplitudes of the grid by least squares with an edge-preserving prior."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from bids_gsrecon.imaging.nonlocal_means import local_deviation, nonlocal_means
from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.solvers.cg import conjugate_gradient
from bids_gsrecon.solvers.reductions import median

# Tuned on one simulated case (at the scale of a fetal brain).
SMOOTHNESS = 0.08  # of the mean diagonal of the data term, at coarse levels
NOISE_SMOOTHNESS = 6.0  # of the noise variance of a pixel (bright tissue is 1), at the last level
EDGE = 0.3  # contrast, of the median of the volume, from which differences are edges
EMPTY = 0.01  # of the smoothness: where no pixel looks, nothing is seen
SIMILARITY_TURNS = 3
SIMILARITY = 0.4  # of the local standard deviation: how far patches may differ
SIMILARITY_PULL = 40.0  # to what is alike, of the noise variance
WITH_SIMILARITY = 0.7  # smoothness beside it, of the noise variance
LEAST_DEVIATION = 0.02  # of the volume's


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
def _add_laplacian(p, w, strength, empty, data, out):
    """out = data + strength * sum_edges w (difference) + empty * p."""
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
                out[x, y, z] = data[x, y, z] + strength * total + empty * here


@njit(parallel=True, cache=True)
def _inverse_diagonal(seen, w, strength, empty, out):
    """out = 1 / (seen / 2 + strength * sum of the edges' w + empty)."""
    nx, ny, nz = out.shape
    for x in prange(nx):
        for y in range(ny):
            for z in range(nz):
                total = w[0, x, y, z] + w[1, x, y, z] + w[2, x, y, z]
                if x > 0:
                    total += w[0, x - 1, y, z]
                if y > 0:
                    total += w[1, x, y - 1, z]
                if z > 0:
                    total += w[2, x, y, z - 1]
                data = np.float32(0.5) * seen[x, y, z]
                out[x, y, z] = np.float32(1) / (data + (strength * total + empty) + np.float32(1e-12))


class EdgePrior:
    """Majoriser at an image of ``strength * sum phi(neighbours' difference) + (empty + pull) * sum of squares``."""

    def __init__(self, image: np.ndarray, strength: float, pull: float = 0.0):
        image = _contiguous(image)  # arrays here are [z, y, x], as images lie in memory
        most = image.max()
        delta = EDGE * median(image[image > 0.05 * most] if most > 0 else image)
        self._empty = np.float32(EMPTY * strength + pull)
        self._strength = np.float32(strength)
        self._weights = np.zeros((3, *image.shape), np.float32)
        _edge_weights(image, np.float32(1.0 / max(delta, 1e-6) ** 2), self._weights)

    def add_product(self, p: np.ndarray, data: np.ndarray, out: np.ndarray) -> None:
        """Fill a vector ``out`` (see `as_vector`) with ``data`` plus the product with ``p``, images (nx, ny, nz)."""
        out = out.reshape(p.shape[::-1])
        _add_laplacian(_contiguous(p), self._weights, self._strength, self._empty, data.T, out)

    def preconditioner(self, seen: np.ndarray, out: np.ndarray) -> None:
        """Fill a vector ``out`` with the inverse of this prior's diagonal plus half of ``seen`` (nx, ny, nz)."""
        out = out.reshape(seen.shape[::-1])
        _inverse_diagonal(seen.T, self._weights, self._strength, self._empty, out)


def _contiguous(image) -> np.ndarray:
    return np.ascontiguousarray(image.T, np.float32)


def solve_volume(
    view: View,
    weights: np.ndarray,
    gains: np.ndarray,
    start: np.ndarray | None = None,
    *,
    smoothness: float | None = None,
    guess: np.ndarray | None = None,
    pull: float = 0.0,
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
    smoothness
        Strength of the edge-preserving prior; absent: `SMOOTHNESS` of the data term's own diagonal.
    guess, pull
        Adds ``pull * |a - guess|^2``.
    n_rounds
        Times the edges are looked at again.
    """
    gain = gains[view.pixels.slice_of].astype(np.float32)
    weight = weights.astype(np.float32)
    squared = weight * gain**2
    seen = view.adjoint(squared)
    if smoothness is None:
        smoothness = SMOOTHNESS * mean_diagonal(view, squared, seen)
    pull = np.float32(pull)
    right = view.adjoint(weight * gain * view.pixels.values)
    if guess is not None:
        right = right + pull * guess
    image = np.zeros(right.shape, np.float32, order='F') if start is None else start
    for _ in range(n_rounds):
        prior = EdgePrior(image, smoothness, pull)

        def apply(flat, prior=prior):
            p = as_image(flat, right.shape)
            out = np.empty_like(flat)
            prior.add_product(p, view.adjoint(squared * view.forward(p)), out)
            return out

        inverse = np.empty(image.size, np.float32)
        prior.preconditioner(seen, inverse)
        solution = conjugate_gradient(
            apply,
            as_vector(right),
            x0=as_vector(image),
            inverse_diagonal=inverse,
            max_iterations=n_iterations,
            tolerance=1e-4,
        )
        image = as_image(solution.x, right.shape)
    return image


def mean_diagonal(view: View, squared_gains: np.ndarray, seen: np.ndarray) -> float:
    """Of the data term, where pixels look."""
    core = seen > 0.1 * seen.max()
    return float(view.diagonal(squared_gains)[core].mean()) if core.any() else 1.0


def noise_variance(residual: np.ndarray) -> float:
    """Of a pixel, from the median residual: noise, and what no volume could explain."""
    return (1.4826 * median(np.abs(residual))) ** 2


def self_similar(view: View, weights, gains, image: np.ndarray, progress=None) -> np.ndarray:
    """Amplitudes helped by places of the volume that look alike.

    Non-local means of the estimate and the least-squares problem, which pulls to it, in turns (plug-and-play
    priors; Manjon et al. 2010 for super-resolution). Strengths are in units of the noise.
    """
    noise = noise_variance(view.pixels.residual(view.forward(image), gains))
    for turn in range(SIMILARITY_TURNS):
        if progress is not None:
            progress('self-similarity', turn, SIMILARITY_TURNS)
        least = LEAST_DEVIATION * float(image[image > 0.1 * image.max()].std())
        deviation = np.maximum(local_deviation(image), max(least, 1e-6))
        guess = nonlocal_means(_contiguous(image), _contiguous((SIMILARITY * deviation) ** -2)).T
        image = solve_volume(
            view, weights, gains, image, smoothness=WITH_SIMILARITY * noise, guess=guess,
            pull=SIMILARITY_PULL * noise, n_iterations=6, n_rounds=1,
        )  # fmt: skip
    return image


def as_vector(image: np.ndarray) -> np.ndarray:
    """Flat float32, the first axis fastest."""
    return np.ascontiguousarray(image.T, np.float32).reshape(-1)


def as_image(vector: np.ndarray, shape) -> np.ndarray:
    """The inverse of `as_vector`: no copy."""
    return vector.reshape(shape[::-1]).T
