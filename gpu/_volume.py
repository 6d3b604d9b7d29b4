"""How the CPU kernels keep volumes (flat float32, [z][y][channel][x], padded)."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

# Vector loads and stores overrun a box by up to 15 voxels: rows are that much longer than nx.
_PAD = 16
_TILE = 32


@njit(cache=True, parallel=True)
def copy_rows(source, flat, layout):
    """Copy (z, y, c, x) rows into a flat volume; the padding is set to zero, for weights of zero meet it."""
    n_z, n_y, n_c, n_x = source.shape
    pitch, row, plane = layout
    for y in prange(n_y):
        for c in range(n_c):
            first = y * row + c * pitch
            for z in range(n_z):
                for x in range(n_x, pitch):
                    flat[first + z * plane + x] = 0
            # Tiles, for sources whose fastest axis is z.
            for z_tile in range(0, n_z, _TILE):
                for x_tile in range(0, n_x, _TILE):
                    for z in range(z_tile, min(z_tile + _TILE, n_z)):
                        p = first + z * plane
                        for x in range(x_tile, min(x_tile + _TILE, n_x)):
                            flat[p + x] = source[z, y, c, x]
    for z in prange(n_z):
        end = (z + 1) * plane if z + 1 < n_z else len(flat)
        for p in range(z * plane + n_y * row, end):
            flat[p] = 0


def padded_layout(nx: int, ny: int, n_channels: int) -> tuple[int, int, int]:
    """Floats from one channel row, voxel row, and plane to the next."""
    pitch = nx + _PAD
    row = n_channels * pitch
    # Planes that lie a multiple of 4096 bytes apart would share cache sets, and loads would wait for
    # stores to other planes: keep them 1600 bytes off.
    return pitch, row, ny * row + (400 - ny * row) % 1024


class PaddedVolume:
    """A flat padded float32 volume [z][y][channel][x] and its strides."""

    def __init__(self, shape, n_channels: int, *, zero: bool):
        size = self.size((n_channels, *shape))
        # Sixteen floats more at the end, to start on a cache line.
        memory = (np.zeros if zero else np.empty)(size + 16, np.float32)
        start = -(memory.ctypes.data // 4) % 16
        self._wrap(memory[start : start + size], (n_channels, *shape))

    @classmethod
    def around(cls, flat: np.ndarray, shape) -> PaddedVolume:
        """A volume of ``shape`` (channels, nx, ny, nz) in memory that exists."""
        volume = cls.__new__(cls)
        volume._wrap(flat, shape)
        return volume

    def _wrap(self, flat, shape):
        n_c, nx, ny, nz = shape
        self.flat = flat
        self.layout = pitch, row, plane = padded_layout(nx, ny, n_c)
        strides = tuple(4 * n for n in (plane, row, pitch, 1))
        self.rows = np.ndarray((nz, ny, n_c, nx), np.float32, flat, 0, strides)

    @staticmethod
    def size(shape) -> int:
        """Floats of a volume of ``shape`` (channels, nx, ny, nz), with all its padding."""
        n_c, nx, ny, nz = shape
        return nz * padded_layout(nx, ny, n_c)[2] + _PAD

    def as_public(self) -> np.ndarray:
        """View (channels, nx, ny, nz)."""
        return self.rows.transpose(2, 3, 1, 0)


def padded_view(array: np.ndarray) -> PaddedVolume | None:
    """The volume that a (channels, nx, ny, nz) array is a view of, or None: saves a copy.

    Nothing but a `PaddedVolume` has these strides and that much memory behind its last voxel.
    """
    n_c, nx, ny = array.shape[:3]
    pitch, row, plane = padded_layout(nx, ny, n_c)
    strides = 4 * pitch, 4, 4 * row, 4 * plane
    # The stride of a single channel means nothing.
    if array.dtype != np.float32 or array.strides[n_c == 1 :] != strides[n_c == 1 :]:
        return None
    whole, base = array, array.base
    while base is not None:
        if isinstance(base, np.ndarray):
            whole = base
        base = getattr(base, 'base', None)
    size = PaddedVolume.size(array.shape)
    first = array.ctypes.data - whole.ctypes.data
    if whole.ndim != 1 or not whole.flags.c_contiguous or whole.nbytes - first < 4 * size:
        return None
    return PaddedVolume.around(np.ndarray((size,), np.float32, whole, first), array.shape)
