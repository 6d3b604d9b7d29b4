"""How the voxels of an image average the tissue: a separable operator from a fine grid to the image's own.

Along every stored axis a voxel weighs the tissue by a profile (`SliceProfile`: box, gaussian or point); the
weights of a voxel are the product of the three. ``A = A_0 (x) A_1 (x) A_2``, each factor a narrow band.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.profile import SliceProfile


@dataclass(frozen=True, eq=False)
class Band:
    """A narrow matrix (n_out, n_in): row r holds ``weights[r]`` from column ``first[r]`` on."""

    first: np.ndarray  # (n_out,) int64
    weights: np.ndarray  # (n_out, width) float32
    n_in: int

    @classmethod
    def from_dense(cls, matrix) -> Band:
        """The band of a dense matrix whose rows hold one run of entries each."""
        matrix = np.asarray(matrix, dtype=np.float64)
        used = np.abs(matrix) > 1e-9
        first = used.argmax(1)
        last = matrix.shape[1] - used[:, ::-1].argmax(1)
        width = int((last - first).max())
        first = np.minimum(first, matrix.shape[1] - width).astype(np.int64)
        columns = first[:, None] + np.arange(width)
        weights = np.take_along_axis(matrix, columns, 1).astype(np.float32)
        return cls(first, np.ascontiguousarray(weights), matrix.shape[1])

    @property
    def n_out(self) -> int:
        return len(self.first)

    def dense(self) -> np.ndarray:
        """(n_out, n_in) float32."""
        out = np.zeros((self.n_out, self.n_in), np.float32)
        columns = self.first[:, None] + np.arange(self.weights.shape[1])
        np.put_along_axis(out, columns, self.weights, 1)
        return out

    def transposed(self) -> Band:
        return Band.from_dense(self.dense().T)

    def squared(self) -> Band:
        """The band of the squared entries."""
        return Band(self.first, self.weights**2, self.n_in)

    @property
    def is_identity(self) -> bool:
        return self.n_in == self.n_out and np.array_equal(self.dense(), np.eye(self.n_in, dtype=np.float32))


@njit(parallel=True, cache=True)
def _multiply(x, first, weights, out):
    """out[a, r, b] = sum_m weights[r, m] x[a, first[r] + m, b]."""
    n_a, n_r, n_b = out.shape
    for task in prange(n_a * n_r):
        a, r = task // n_r, task % n_r
        for b in range(n_b):
            out[a, r, b] = 0
        for m in range(weights.shape[1]):
            w = weights[r, m]
            if w != 0:
                s = first[r] + m
                for b in range(n_b):
                    out[a, r, b] += w * x[a, s, b]


@njit(parallel=True, cache=True)
def _multiply_last(x, first, weights, out):
    """out[a, r] = sum_m weights[r, m] x[a, first[r] + m]."""
    n_a, n_r = out.shape
    for a in prange(n_a):
        for r in range(n_r):
            total = np.float32(0)
            for m in range(weights.shape[1]):
                total += weights[r, m] * x[a, first[r] + m]
            out[a, r] = total


def apply_band(band: Band, x: np.ndarray, axis: int) -> np.ndarray:
    """``band`` times ``x`` (three axes, float32) along ``axis``; the result is C-contiguous."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    if band.is_identity:
        return x
    shape = list(x.shape)
    shape[axis] = band.n_out
    before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    out = np.empty(shape, np.float32)
    if after == 1:
        _multiply_last(x.reshape(before, band.n_in), band.first, band.weights, out.reshape(before, -1))
    else:
        _multiply(
            x.reshape(before, band.n_in, after), band.first, band.weights, out.reshape(before, -1, after)
        )
    return out


class VoxelSampling:
    """The linear operator from a fine (n0, n1, n2) image to the acquired one (m0, m1, m2), and its transpose.

    Parameters
    ----------
    bands
        One `Band` (m_k, n_k) per stored axis; rows sum to one where a voxel lies inside the fine grid.
    """

    def __init__(self, bands: tuple[Band, Band, Band]):
        self.bands = tuple(bands)
        self._transposed = tuple(band.transposed() for band in bands)
        self._squared = tuple(band.squared().transposed() for band in bands)
        self.fine_shape = tuple(band.n_in for band in bands)
        self.coarse_shape = tuple(band.n_out for band in bands)

    def reversed(self) -> VoxelSampling:
        """The same operator for arrays whose axes are stored in the opposite order, (k, j, i)."""
        return VoxelSampling(self.bands[::-1])

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Acquired image (m0, m1, m2) of a fine one."""
        # The axis that shrinks most first, where it saves most; later passes are smaller.
        for axis in sorted(range(3), key=lambda a: self.coarse_shape[a] / self.fine_shape[a]):
            x = apply_band(self.bands[axis], x, axis)
        return x

    def adjoint(self, y: np.ndarray) -> np.ndarray:
        """Transpose of `forward`, (n0, n1, n2)."""
        return self._spread(self._transposed, y)

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        """Diagonal of ``A^T diag(weights) A``, (n0, n1, n2)."""
        return self._spread(self._squared, weights)

    def _spread(self, bands, y):
        for axis in sorted(range(3), key=lambda a: self.fine_shape[a] / self.coarse_shape[a]):
            y = apply_band(bands[axis], y, axis)
        return y


def axis_weights(profile: SliceProfile, n_coarse: int, spacing_mm: float, centres_mm, cell_mm: float):
    """Weights (n_coarse, n_fine) of fine cells, ``cell_mm`` wide around ``centres_mm``, in coarse voxels.

    Coarse voxel r has its centre at ``r * spacing_mm``. A box or gaussian weighs a cell by the profile's mass
    inside it; a point interpolates linearly between cells. Rows are scaled to a sum of one: what lies beyond
    the fine grid takes the value of the cells that are kept.
    """
    centres_mm = np.asarray(centres_mm, dtype=np.float64)
    coarse = np.arange(n_coarse) * spacing_mm
    offset = centres_mm[None, :] - coarse[:, None]
    if profile.kind == 'point':
        weights = np.maximum(0.0, 1.0 - np.abs(offset) / cell_mm)
    else:
        weights = profile.cumulative(offset + cell_mm / 2) - profile.cumulative(offset - cell_mm / 2)
    empty = weights.sum(1) < 1e-6
    if empty.any():  # a voxel outside the fine grid, or a box narrower than the rounding: its nearest cell
        weights[empty] = np.abs(offset[empty]) == np.abs(offset[empty]).min(1, keepdims=True)
    return weights / weights.sum(1, keepdims=True)


def make_sampling(fine: Lattice, coarse: Lattice, profiles) -> VoxelSampling:
    """The operator from ``fine`` to ``coarse``: grids with the same axes (any spacings and offsets).

    Parameters
    ----------
    profiles
        Three `SliceProfile`, one per stored axis in order.

    Raises
    ------
    ValueError
        The grids' axes differ in direction or order.
    """
    scale = coarse.world_to_voxel @ fine.affine
    off_axis = scale[:3, :3] - np.diag(np.diag(scale[:3, :3]))
    if np.abs(off_axis @ np.diag(fine.shape)).max() > 0.02 or (np.diag(scale)[:3] <= 0).any():
        raise ValueError('the fine and the coarse grid must have the same axes')
    bands = []
    for axis in range(3):
        spacing = float(coarse.voxel_sizes_mm[axis])
        centres = (np.arange(fine.shape[axis]) * scale[axis, axis] + scale[axis, 3]) * spacing
        cell = float(scale[axis, axis] * spacing)
        bands.append(
            Band.from_dense(axis_weights(profiles[axis], coarse.shape[axis], spacing, centres, cell))
        )
    return VoxelSampling(tuple(bands))
