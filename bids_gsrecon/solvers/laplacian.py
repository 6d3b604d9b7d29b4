"""The 26-neighbour graph Laplacian whose edges are as strong as two voxels are alike in a guide image."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

OFFSETS = np.array(
    [(a, b, c) for a in (0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) if (a, b, c) > (0, 0, 0)],
    dtype=np.int64,
)
"""Half of the 26 neighbours, (z, y, x); the other half is their mirror image."""


@njit(parallel=True, cache=True)
def _edge_weights(guide, offsets, inverse_distance2, inverse_2h2, floor, start, stop, out, diagonal):
    nz, ny, nx = guide.shape
    for o in range(offsets.shape[0]):
        dz, dy, dx = offsets[o]
        for z in prange(nz):
            z2 = z + dz
            if z2 < 0 or z2 >= nz:
                continue
            for y in range(ny):
                y2 = y + dy
                if y2 < 0 or y2 >= ny:
                    continue
                low = max(start[z, y], start[z2, y2] - dx)
                high = min(stop[z, y], stop[z2, y2] - dx)
                for x in range(low, high):
                    difference = guide[z, y, x] - guide[z2, y2, x + dx]
                    weight = (np.exp(-difference * difference * inverse_2h2) + floor) * inverse_distance2[o]
                    out[o, z, y, x] = weight
    for z in prange(nz):
        for o in range(offsets.shape[0]):
            dz, dy, dx = offsets[o]
            for y in range(ny):
                for x in range(start[z, y], stop[z, y]):
                    diagonal[z, y, x] += out[o, z, y, x]
                zb, yb = z - dz, y - dy
                if zb >= 0 and 0 <= yb < ny:
                    for x in range(max(start[z, y], dx), min(stop[z, y], nx + dx)):
                        diagonal[z, y, x] += out[o, zb, yb, x - dx]


@njit(parallel=True, cache=True)
def _apply(weights, offsets, diagonal, start, stop, p, strength, out):
    """out += strength * L p inside the spans."""
    nz, ny, nx = p.shape
    for z in prange(nz):
        row = np.empty(nx, np.float32)
        for y in range(ny):
            a, b = start[z, y], stop[z, y]
            if a >= b:
                continue
            for x in range(a, b):
                row[x] = diagonal[z, y, x] * p[z, y, x]
            for o in range(offsets.shape[0]):
                dz, dy, dx = offsets[o]
                z2, y2 = z + dz, y + dy
                if z2 < nz and 0 <= y2 < ny:
                    for x in range(max(a, -dx), min(b, nx - dx)):
                        row[x] -= weights[o, z, y, x] * p[z2, y2, x + dx]
                z2, y2 = z - dz, y - dy
                if z2 >= 0 and 0 <= y2 < ny:
                    for x in range(max(a, dx), min(b, nx + dx)):
                        row[x] -= weights[o, z2, y2, x - dx] * p[z2, y2, x - dx]
            for x in range(a, b):
                out[z, y, x] += strength * row[x]


class GuidedLaplacian:
    """``L = D - W`` on a (z, y, x) grid, W_ij = (exp(-(g_i - g_j)^2 / 2 h^2) + floor) / d_ij^2.

    Parameters
    ----------
    guide
        (z, y, x) image, scaled so that its bright tissue is near 1.
    bandwidth
        h, in units of the guide.
    spacing
        (3,) voxel spacing in units of the finest one; distances d_ij are measured with it.
    start, stop
        (z, y) x-range of the active voxels of each row; voxels outside have no edges.
    floor
        Strength of an edge between unlike voxels.

    Notes
    -----
    52 bytes a voxel: 13 edges of float32.
    """

    def __init__(self, guide, bandwidth: float, spacing=(1.0, 1.0, 1.0), start=None, stop=None, floor=1e-3):
        guide = np.ascontiguousarray(guide, dtype=np.float32)
        nz, ny, nx = guide.shape
        self.start = np.zeros((nz, ny), np.int64) if start is None else start
        self.stop = np.full((nz, ny), nx, np.int64) if stop is None else stop
        spacing = np.asarray(spacing, dtype=np.float64)
        offsets = OFFSETS[[all(abs(o) < n for o, n in zip(row, guide.shape)) for row in OFFSETS]]
        distance2 = ((offsets * spacing) ** 2).sum(1)
        # Edges across a coarse axis (in-plane problems) carry nothing: leave them out.
        keep = distance2 < 9.0
        self.offsets, distance2 = np.ascontiguousarray(offsets[keep]), distance2[keep]
        self.weights = np.zeros((len(self.offsets), nz, ny, nx), np.float32)
        self.diagonal = np.zeros(guide.shape, np.float32)
        _edge_weights(
            guide,
            self.offsets,
            (1.0 / distance2).astype(np.float32),
            np.float32(0.5 / bandwidth**2),
            np.float32(floor),
            self.start,
            self.stop,
            self.weights,
            self.diagonal,
        )

    def add_product(self, p: np.ndarray, strength: float, out: np.ndarray) -> np.ndarray:
        """In place ``out += strength * L p``."""
        _apply(self.weights, self.offsets, self.diagonal, self.start, self.stop, p, np.float32(strength), out)
        return out
