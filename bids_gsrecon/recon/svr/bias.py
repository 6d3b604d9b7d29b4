"""A smooth multiplicative field of every slice: what coils and the pulse make of the same tissue in turned slices.

A quadratic in the plane of the slice, ``b = 1 + c . (u, v, u^2, uv, v^2)``, found by least squares with a prior for none,
beside the slice's gain. u and v are in units of the extent of the stack's anatomy.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numba import njit, prange

from bids_gsrecon.recon.svr.pixels import Pixels
from bids_gsrecon.recon.svr.volume import noise_variance

N_TERMS = 5
EXPECTED = 0.15  # standard deviation of a coefficient
LEAST, MOST = 0.5, 2.0  # of the field


@dataclass(frozen=True, eq=False)
class SliceBias:
    """Coefficients (M, 5) of all slices; ``centre_mm`` (S, 3) and ``extent_mm`` (S,) of the stacks."""

    coefficients: np.ndarray
    centre_mm: np.ndarray
    extent_mm: np.ndarray

    @classmethod
    def none(cls, pixels: Pixels) -> SliceBias:
        """No field; the frame of reference of the stacks."""
        centre, extent = np.zeros((pixels.n_stacks, 3)), np.ones(pixels.n_stacks)
        for stack in range(pixels.n_stacks):
            points = pixels.points_mm[pixels.of_stack(stack) & pixels.in_mask]
            centre[stack] = points.mean(0)
            extent[stack] = np.sqrt(2.0 * ((points - centre[stack]) ** 2).sum(1).mean())
        return cls(np.zeros((pixels.n_slices, N_TERMS)), centre, extent)

    def terms(self, pixels: Pixels) -> np.ndarray:
        """(N, 5) of the polynomial, at pixels."""
        out = np.empty((len(pixels.values), N_TERMS))
        frame = self.centre_mm[pixels.stack_of], self.extent_mm[pixels.stack_of]
        _terms(pixels.points_mm, pixels.slice_of, pixels.axes, *frame, out)
        return out

    def at(self, pixels: Pixels) -> np.ndarray:
        """(N,) float32 values of the field."""
        field = 1.0 + np.einsum('nk,nk->n', self.terms(pixels), self.coefficients[pixels.slice_of])
        return np.clip(field, LEAST, MOST).astype(np.float32)

    def removed(self, pixels: Pixels) -> Pixels:
        """Pixels as they would be without the field."""
        return replace(pixels, values=pixels.values / self.at(pixels))

    def fitted(self, pixels: Pixels, predicted, gains, weights) -> SliceBias:
        """The fields that explain what the gains do not; ``pixels`` have the values as acquired.

        Parameters
        ----------
        predicted, weights
            (N,) what the volume predicts, without gains, and the trust in each pixel.
        gains
            (M,) of the slices.
        """
        terms = self.terms(pixels)
        model = gains[pixels.slice_of] * predicted.astype(np.float64)
        residual = pixels.values - model
        rows = terms * model[:, None]
        starts = pixels.starts
        out = np.zeros_like(self.coefficients)
        prior = noise_variance(residual) / EXPECTED**2 * np.eye(N_TERMS)
        for m, (first, last) in enumerate(itertools.pairwise(starts)):
            a, w = rows[first:last], weights[first:last, None]
            out[m] = np.linalg.solve(a.T @ (w * a) + prior, (w * a).T @ residual[first:last])
        return SliceBias(out, self.centre_mm, self.extent_mm)


@njit(parallel=True, cache=True)
def _terms(points, slice_of, axes, centre, extent, out):
    for i in prange(len(points)):
        s = slice_of[i]
        u = v = 0.0
        for k in range(3):
            offset = (points[i, k] - centre[s, k]) / extent[s]
            u += axes[s, k, 0] * offset
            v += axes[s, k, 1] * offset
        out[i, 0], out[i, 1], out[i, 2], out[i, 3], out[i, 4] = u, v, u * u, u * v, v * v
