"""How the CPU kernels keep volumes (flat float32, [z][y][channel][x], padded), and voxelwise operations."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from numpy.lib.stride_tricks import as_strided

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
        nx, ny, nz = shape
        plane = padded_layout(nx, ny, n_channels)[2]
        # Sixteen floats more at the end, to start on a cache line.
        memory = (np.zeros if zero else np.empty)(nz * plane + _PAD + 16, np.float32)
        start = -(memory.ctypes.data // 4) % 16
        self._wrap(memory[start : start + nz * plane + _PAD], (n_channels, *shape))

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
        self.rows = as_strided(
            flat, (nz, ny, n_c, nx), tuple(4 * n for n in (plane, row, pitch, 1)), writeable=True
        )

    def as_public(self) -> np.ndarray:
        """View (channels, nx, ny, nz)."""
        return self.rows.transpose(2, 3, 1, 0)


def flat_view(tensor: torch.Tensor) -> tuple[np.ndarray, tuple[int, int, int]] | None:
    """A (channels, nx, ny, nz) float32 tensor as a flat array, and its (channel, y, z) strides in floats.

    None where x is not the fastest axis in memory.
    """
    tensor = tensor.detach()
    if (
        tensor.dtype != torch.float32
        or tensor.device.type != 'cpu'
        or (tensor.shape[1] > 1 and tensor.stride(1) != 1)
    ):
        return None
    strides = tensor.stride(0), tensor.stride(2), tensor.stride(3)
    size = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
    return tensor.as_strided((size,), (1,)).numpy(), strides


def padded_view(tensor: torch.Tensor) -> PaddedVolume | None:
    """The volume that a (channels, nx, ny, nz) tensor is a view of, or None: saves a copy.

    Nothing but a `PaddedVolume` has these strides and that much memory behind its last voxel.
    """
    n_c, nx, ny, nz = tensor.shape
    pitch, row, plane = padded_layout(nx, ny, n_c)
    if (
        tensor.dtype != torch.float32
        or tensor.device.type != 'cpu'
        or tensor.stride() != (pitch, 1, row, plane)
    ):
        return None
    size = nz * plane + _PAD
    if tensor.untyped_storage().nbytes() // 4 - tensor.storage_offset() < size:
        return None
    return PaddedVolume.around(tensor.detach().as_strided((size,), (1,)).numpy(), tensor.shape)


@njit(cache=True, parallel=True, error_model='numpy')
def _divide(sums, s_strides, eps, image, i_strides, n_c, n_x, n_y, n_z):
    for z in prange(n_z):
        for y in range(n_y):
            p = y * s_strides[1] + z * s_strides[2]
            for c in range(n_c):
                q = p + (1 + c) * s_strides[0]
                o = c * i_strides[0] + y * i_strides[1] + z * i_strides[2]
                for x in range(n_x):
                    image[o + x] = sums[q + x] / (sums[p + x] + eps)


@njit(cache=True, parallel=True, error_model='numpy')
def _divide_backward(sums, s_strides, eps, grad, g_strides, out, o_strides, n_c, n_x, n_y, n_z):
    """d/dS_c = g_c / (S_0 + eps);  d/dS_0 = - sum_c g_c S_c / (S_0 + eps)^2."""
    for z in prange(n_z):
        for y in range(n_y):
            p = y * s_strides[1] + z * s_strides[2]
            o = y * o_strides[1] + z * o_strides[2]
            for c in range(n_c):
                q = p + (1 + c) * s_strides[0]
                g = c * g_strides[0] + y * g_strides[1] + z * g_strides[2]
                r = o + (1 + c) * o_strides[0]
                for x in range(n_x):
                    inverse = np.float32(1) / (sums[p + x] + eps)
                    scaled = grad[g + x] * inverse
                    out[r + x] = scaled
                    out[o + x] -= scaled * sums[q + x] * inverse


class Normalize(torch.autograd.Function):
    """Sums (1 + C, nx, ny, nz), x fastest, to images S[1:] / (S[0] + eps) in one pass over memory each way."""

    @staticmethod
    def forward(ctx, sums, eps):
        ctx.save_for_backward(sums)
        ctx.eps = eps
        n_c, nx, ny, nz = sums.shape[0] - 1, *sums.shape[1:]
        image = torch.empty((n_c, nz, ny, nx), dtype=torch.float32).permute(0, 3, 2, 1)
        flat, strides = flat_view(sums)
        out, out_strides = flat_view(image)
        _divide(flat, strides, np.float32(eps), out, out_strides, n_c, nx, ny, nz)
        return image

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (sums,) = ctx.saved_tensors
        n_c, nx, ny, nz = grad.shape
        view = flat_view(grad)
        if view is None:
            view = flat_view(grad.float().permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1))
        flat, strides = flat_view(sums)
        volume = PaddedVolume((nx, ny, nz), 1 + n_c, zero=True)
        pitch, row, plane = volume.layout
        _divide_backward(
            flat, strides, np.float32(ctx.eps), *view, volume.flat, (pitch, row, plane), n_c, nx, ny, nz
        )
        return torch.from_numpy(volume.as_public()), None
