"""`bids_gsrecon.fields.index_space` for torch, differentiable in the world parameters.

One fused kernel each way: as a chain of torch operations the same costs more than the rendering.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from bids_gsrecon.fields.index_space import fill_covariances, fill_factor


@njit(parallel=True, cache=True)
def _backward(log_scales, quaternions, linear, grad, grad_scales, grad_quaternions):
    n = len(grad)
    for chunk in prange((n + 1023) // 1024):
        rotation, factor, dfactor, dr = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
        g, dq = np.empty((3, 3)), np.empty(4)
        for i in range(chunk * 1024, min(n, chunk * 1024 + 1024)):
            norm = fill_factor(quaternions[i], log_scales[i], linear, rotation, factor)
            j = 0
            for a in range(3):
                for b in range(a, 3):
                    # Each off-diagonal stands for two entries: the symmetric gradient has half of it in each.
                    g[a, b] = g[b, a] = grad[i, j] if a == b else 0.5 * grad[i, j]
                    j += 1
            for a in range(3):
                for k in range(3):
                    dfactor[a, k] = 2 * (
                        g[a, 0] * factor[0, k] + g[a, 1] * factor[1, k] + g[a, 2] * factor[2, k]
                    )
            for k in range(3):
                scale = np.exp(np.float64(log_scales[i, k]))
                total = 0.0
                for a in range(3):
                    total += dfactor[a, k] * factor[a, k]
                    dr[a, k] = scale * (
                        linear[0, a] * dfactor[0, k]
                        + linear[1, a] * dfactor[1, k]
                        + linear[2, a] * dfactor[2, k]
                    )
                grad_scales[i, k] = total
            w, x, y, z = (
                quaternions[i, 0] / norm,
                quaternions[i, 1] / norm,
                quaternions[i, 2] / norm,
                quaternions[i, 3] / norm,
            )
            dq[0] = 2 * (x * (dr[2, 1] - dr[1, 2]) + y * (dr[0, 2] - dr[2, 0]) + z * (dr[1, 0] - dr[0, 1]))
            dq[1] = 2 * (
                y * (dr[0, 1] + dr[1, 0]) + z * (dr[0, 2] + dr[2, 0]) + w * (dr[2, 1] - dr[1, 2])
                - 2 * x * (dr[1, 1] + dr[2, 2])
            )  # fmt: skip
            dq[2] = 2 * (
                x * (dr[0, 1] + dr[1, 0]) + z * (dr[1, 2] + dr[2, 1]) + w * (dr[0, 2] - dr[2, 0])
                - 2 * y * (dr[0, 0] + dr[2, 2])
            )  # fmt: skip
            dq[3] = 2 * (
                x * (dr[0, 2] + dr[2, 0]) + y * (dr[1, 2] + dr[2, 1]) + w * (dr[1, 0] - dr[0, 1])
                - 2 * z * (dr[0, 0] + dr[1, 1])
            )  # fmt: skip
            along = dq[0] * w + dq[1] * x + dq[2] * y + dq[3] * z  # a change of length changes nothing
            grad_quaternions[i, 0] = (dq[0] - along * w) / norm
            grad_quaternions[i, 1] = (dq[1] - along * x) / norm
            grad_quaternions[i, 2] = (dq[2] - along * y) / norm
            grad_quaternions[i, 3] = (dq[3] - along * z) / norm


class _IndexCovariances(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_scales, quaternions, linear):
        ctx.save_for_backward(log_scales, quaternions, linear)
        out = torch.empty(len(log_scales), 6, dtype=log_scales.dtype)
        fill_covariances(
            log_scales.detach().numpy(), quaternions.detach().numpy(), linear.numpy(), out.numpy()
        )
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        log_scales, quaternions, linear = (t.detach() for t in ctx.saved_tensors)
        grads = torch.empty_like(log_scales), torch.empty_like(quaternions)
        arrays = (t.numpy() for t in (log_scales, quaternions, linear, grad.contiguous(), *grads))
        _backward(*arrays)
        return (*grads, None)


def index_covariances(log_scales: torch.Tensor, quaternions: torch.Tensor, linear) -> torch.Tensor:
    """Covariances (N, 6: xx, xy, xz, yy, yz, zz) in voxels^2, differentiable in the first two arguments.

    Parameters
    ----------
    log_scales, quaternions
        (N, 3) log mm and (N, 4) (w, x, y, z), normalised here; contiguous, on the CPU, one dtype.
    linear
        (3, 3) linear part of the world-to-voxel matrix of the lattice.
    """
    linear = torch.as_tensor(np.ascontiguousarray(linear, dtype=np.float64))
    return _IndexCovariances.apply(log_scales, quaternions, linear)
