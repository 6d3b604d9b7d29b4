"""Differentiable sums of Gaussians and the images composed of them."""

from __future__ import annotations

import torch

from bids_gsrecon.gpu.backend import DEFAULT_CUTOFF, DEFAULT_EPS, Backend, get_backend

COMPOSITIONS = ('sum', 'normalized')


class _SplatSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, covariances, log_weights, amplitudes, shape, cutoff, backend):
        geometry = (means.detach(), covariances.detach(), log_weights.detach())
        ctx.plan = backend.plan(*geometry, shape, cutoff)
        ctx.save_for_backward(amplitudes)
        return ctx.plan.forward(amplitudes.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_sums):
        (amplitudes,) = ctx.saved_tensors
        grads = ctx.plan.backward(amplitudes.detach(), grad_sums)
        return (*grads, None, None, None)


def splat_sums(
    means: torch.Tensor,
    covariances: torch.Tensor,
    log_weights: torch.Tensor,
    amplitudes: torch.Tensor,
    shape: tuple[int, int, int],
    *,
    cutoff: float = DEFAULT_CUTOFF,
    backend: str | Backend = 'auto',
) -> torch.Tensor:
    """Sums ``S[0] = sum w_i`` and ``S[1 + c] = sum w_i a_ic``, differentiable (once) in all four inputs.

    Parameters
    ----------
    means
        (N, 3) centres in voxels of the lattice.
    covariances
        (N, 6) xx, xy, xz, yy, yz, zz in voxels^2.
    log_weights
        (N,) natural log of each Gaussian's weight.
    amplitudes
        (N, C), any C >= 0.
    shape
        (nx, ny, nz) of the lattice.
    cutoff
        Mahalanobis distance at which a Gaussian ends (3; 2.5 is the fast option).
    backend
        Name, or a backend.

    Returns
    -------
    torch.Tensor
        (1 + C, nx, ny, nz). The reference backend works in the precision of its inputs. The cpu backend
        takes float32 or float64 geometry (float64 centres keep their precision), sums in float32, returns
        float32 sums, and returns gradients in the dtype of each input. The result may be a strided view
        whose x axis is the fastest in memory.
    """
    if isinstance(backend, str):
        backend = get_backend(backend)
    return _SplatSums.apply(means, covariances, log_weights, amplitudes, tuple(shape), cutoff, backend)


def compose(sums: torch.Tensor, composition: str, eps: float = DEFAULT_EPS) -> torch.Tensor:
    """Image (C, nx, ny, nz) from sums (1 + C, nx, ny, nz).

    ``sum``: ``S[1:]``; ``normalized``: ``S[1:] / (S[0] + eps)``, which is zero where no Gaussian reaches.
    """
    if composition == 'sum':
        return sums[1:]
    if composition == 'normalized':
        on_cpu = sums.dtype == torch.float32 and sums.device.type == 'cpu'
        if on_cpu and len(sums) > 1 and sums.numel() and sums.stride(1) == 1:
            # What the cpu backend returns: one fused pass instead of torch's many over strided memory.
            from bids_gsrecon.gpu._normalize import Normalize

            return Normalize.apply(sums, eps)
        return sums[1:] / (sums[:1] + eps)
    raise ValueError(f'unknown composition {composition!r}: one of {COMPOSITIONS}')


def rasterize(
    means: torch.Tensor,
    covariances: torch.Tensor,
    log_weights: torch.Tensor,
    amplitudes: torch.Tensor,
    shape: tuple[int, int, int],
    *,
    composition: str = 'normalized',
    cutoff: float = DEFAULT_CUTOFF,
    eps: float = DEFAULT_EPS,
    backend: str | Backend = 'auto',
) -> torch.Tensor:
    """Image (C, nx, ny, nz) of a set of Gaussians: `splat_sums`, then `compose`."""
    sums = splat_sums(means, covariances, log_weights, amplitudes, shape, cutoff=cutoff, backend=backend)
    return compose(sums, composition, eps)
