"""Sums to images of the normalized composition for torch, in one pass over memory each way."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from bids_gsrecon.gpu._volume import PaddedVolume


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


@njit(cache=True, parallel=True, error_model='numpy')
def _divide(sums, s_strides, eps, image, i_strides, n_c, n_x, n_y, n_z):
    """Image S[1:] / (S[0] + eps) in one pass: flat arrays and their (channel, y, z) strides in floats."""
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
