"""Averaging a fine (z, y, x) grid over slices: a weighted mean along z, a block mean in plane."""

from __future__ import annotations

import numpy as np
from numba import njit, prange


@njit(parallel=True, cache=True)
def _forward(x, first, weights, out):
    for s in prange(out.shape[0]):
        for m in range(weights.shape[1]):
            w = weights[s, m]
            if w != 0:
                z = first[s] + m
                for y in range(out.shape[1]):
                    for i in range(out.shape[2]):
                        out[s, y, i] += w * x[z, y, i]


@njit(parallel=True, cache=True)
def _adjoint(y, first, weights, out):
    n_slices, width = weights.shape
    for z in prange(out.shape[0]):
        for s in range(n_slices):
            m = z - first[s]
            if 0 <= m < width and weights[s, m] != 0:
                w = weights[s, m]
                for j in range(out.shape[1]):
                    for i in range(out.shape[2]):
                        out[z, j, i] += w * y[s, j, i]


class SlabMean:
    """Linear operator from a fine (nz, ny, nx) image to slices (ns, ny / fy, nx / fx).

    Parameters
    ----------
    cell_weights
        (ns, nz) weights of the fine planes in each slice (`SliceProfile.cell_weights`), banded.
    in_plane_factors
        (fy, fx) fine cells that one pixel averages.
    """

    def __init__(self, cell_weights: np.ndarray, in_plane_factors: tuple[int, int] = (1, 1)):
        cell_weights = np.asarray(cell_weights, dtype=np.float32)
        nonzero = cell_weights > 1e-7
        self.first = nonzero.argmax(1).astype(np.int64)
        last = cell_weights.shape[1] - nonzero[:, ::-1].argmax(1)
        width = int((last - self.first).max())
        self.first = np.minimum(self.first, cell_weights.shape[1] - width)
        columns = self.first[:, None] + np.arange(width)
        self.weights = np.ascontiguousarray(np.take_along_axis(cell_weights, columns, 1))
        self.cell_weights = cell_weights
        self.n_slices, self.nz = cell_weights.shape
        self.in_plane_factors = tuple(int(f) for f in in_plane_factors)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Slices (ns, ny / fy, nx / fx) float32 of a fine image (nz, ny, nx)."""
        fy, fx = self.in_plane_factors
        out = np.zeros((self.n_slices, *x.shape[1:]), np.float32)
        _forward(np.ascontiguousarray(x, dtype=np.float32), self.first, self.weights, out)
        if fy * fx > 1:
            ns, ny, nx = out.shape
            out = out.reshape(ns, ny // fy, fy, nx // fx, fx).mean((2, 4))
        return out

    def adjoint(self, y: np.ndarray) -> np.ndarray:
        """Fine image (nz, ny, nx) float32: the transpose of `forward`."""
        fy, fx = self.in_plane_factors
        if fy * fx > 1:
            y = np.repeat(np.repeat(y, fy, 1), fx, 2) / np.float32(fy * fx)
        out = np.zeros((self.nz, *y.shape[1:]), np.float32)
        _adjoint(np.ascontiguousarray(y, dtype=np.float32), self.first, self.weights, out)
        return out

    def diagonal(self, row_weights: np.ndarray) -> np.ndarray:
        """Diagonal of ``A^T diag(row_weights) A``, (nz, ny, nx)."""
        fy, fx = self.in_plane_factors
        weights = np.repeat(np.repeat(row_weights, fy, 1), fx, 2) / np.float32((fy * fx) ** 2)
        out = np.zeros((self.nz, *weights.shape[1:]), np.float32)
        _adjoint(np.ascontiguousarray(weights, dtype=np.float32), self.first, self.weights**2, out)
        return out

    def nearest(self, y: np.ndarray) -> np.ndarray:
        """A start: every fine cell takes the slice that weighs it most (slices repeated)."""
        fy, fx = self.in_plane_factors
        y = np.repeat(np.repeat(y, fy, 1), fx, 2)
        centre = (self.cell_weights * np.arange(self.nz)).sum(1)
        owner = np.abs(np.arange(self.nz)[:, None] - centre[None]).argmin(1)
        return np.ascontiguousarray(y[owner], dtype=np.float32)
