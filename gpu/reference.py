"""The sums and their gradients in a few lines of torch: what the fast backends are tested against.

Every voxel against every Gaussian, in the precision of the inputs; gradients by autograd. Slow, and
meant to be read.
"""

from __future__ import annotations

import math

import torch

from bids_gsrecon.gpu.backend import (
    DEFAULT_CUTOFF,
    Gradients,
    PlannedBackend,
    PlannedProducts,
    check_amplitudes,
    check_geometry,
    check_splat2d,
    check_usable2d,
)

# Pairs (Gaussian, voxel) evaluated at once: bounds the memory to some hundred MB in float64.
_CHUNK_PAIRS = 1 << 21


def symmetric_matrices(six: torch.Tensor) -> torch.Tensor:
    """Matrices (..., 3, 3) of xx, xy, xz, yy, yz, zz (..., 6)."""
    return six[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(*six.shape[:-1], 3, 3)


def voxel_centres(shape, dtype=torch.float64) -> torch.Tensor:
    """Index coordinates (nx * ny * nz, 3) of all voxels, the last axis fastest."""
    axes = [torch.arange(n, dtype=dtype) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3)


def weights_at(points, means, covariances, log_weights, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
    """Weights (N, M) of N Gaussians at M points, differentiable."""
    offset = points[None] - means[:, None]
    precision = torch.linalg.inv(symmetric_matrices(covariances))
    q = torch.einsum('nma,nab,nmb->nm', offset, precision, offset)
    level = torch.exp(-0.5 * q) - math.exp(-0.5 * cutoff**2)
    return log_weights.exp()[:, None] * level.clamp_min(0.0)


def reference_sums(means, covariances, log_weights, amplitudes, shape, cutoff=DEFAULT_CUTOFF):
    """Sums (1 + C, nx, ny, nz), differentiable in all four inputs, in their precision."""
    points = voxel_centres(shape, means.dtype)
    table = torch.cat([torch.ones_like(log_weights)[:, None], amplitudes.to(means.dtype)], 1)
    sums = points.new_zeros((table.shape[1], len(points)))
    step = max(1, _CHUNK_PAIRS // len(points))
    for first in range(0, len(means), step):
        part = slice(first, first + step)
        w = weights_at(points, means[part], covariances[part], log_weights[part], cutoff)
        sums = sums + table[part].T @ w
    return sums.reshape(-1, *shape)


def reference_splat2d(parameters, shape, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
    """Frames (T, 2, nx, ny) of complex 2D Gaussians (T, M, 7), differentiable, in the precision of the input."""
    x = torch.arange(shape[0], dtype=parameters.dtype)[:, None]
    y = torch.arange(shape[1], dtype=parameters.dtype)
    mu_x, mu_y, l11, l21, l22, re, im = parameters[..., None, None].unbind(2)
    z1 = (x - mu_x) / l11
    z2 = (y - mu_y - l21 * z1) / l22
    w = (torch.exp(-0.5 * (z1**2 + z2**2)) - math.exp(-0.5 * cutoff**2)).clamp_min(0.0)
    return torch.stack([(w * re).sum(1), (w * im).sum(1)], 1)


class ReferencePlan(PlannedProducts):
    """Keeps the inputs; see `bids_gsrecon.gpu.backend.Plan`."""

    def __init__(self, means, covariances, log_weights, shape, cutoff):
        self.shape = check_geometry(means, covariances, log_weights, shape, cutoff)
        self.n_gaussians = len(means)
        finite = all(bool(torch.isfinite(t).all()) for t in (means, covariances, log_weights))
        if not finite or not bool((torch.linalg.cholesky_ex(symmetric_matrices(covariances))[1] == 0).all()):
            raise ValueError('a Gaussian is not finite or its covariance is not positive definite')
        self._geometry = (means, covariances, log_weights)
        self._cutoff = cutoff

    def forward(self, amplitudes: torch.Tensor) -> torch.Tensor:
        """Sums (1 + C, nx, ny, nz)."""
        check_amplitudes(amplitudes, len(self._geometry[0]))
        with torch.no_grad():
            return reference_sums(*self._geometry, amplitudes, self.shape, self._cutoff)

    def backward(self, amplitudes: torch.Tensor, grad_sums: torch.Tensor) -> Gradients:
        """Gradients by autograd, a chunk of Gaussians at a time."""
        check_amplitudes(amplitudes, len(self._geometry[0]), grad_sums, self.shape)
        inputs = (*self._geometry, amplitudes)
        grads = [torch.zeros_like(t) for t in inputs]
        step = max(1, _CHUNK_PAIRS // math.prod(self.shape))
        for first in range(0, len(amplitudes), step):
            part = slice(first, first + step)
            with torch.enable_grad():
                leaves = [t[part].detach().clone().requires_grad_() for t in inputs]
                sums = reference_sums(*leaves, self.shape, self._cutoff)
            pieces = torch.autograd.grad(sums, leaves, grad_sums.to(sums.dtype), materialize_grads=True)
            for grad, piece in zip(grads, pieces):
                grad[part] = piece
        return Gradients(*grads)


class ReferenceBackend(PlannedBackend):
    """Plain torch in the precision of its inputs (float64 in, float64 out)."""

    name = 'reference'

    def plan(self, means, covariances, log_weights, shape, cutoff=DEFAULT_CUTOFF) -> ReferencePlan:
        """Check and keep the geometry."""
        return ReferencePlan(means, covariances, log_weights, shape, cutoff)

    def splat2d(self, parameters, shape, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
        """Every pixel against every Gaussian."""
        shape = check_splat2d(parameters, shape)
        check_usable2d(parameters)
        with torch.no_grad():
            return reference_splat2d(parameters, shape, cutoff)

    def splat2d_gradient(self, parameters, planes, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
        """By autograd."""
        shape = check_splat2d(parameters, planes.shape[2:], planes)
        check_usable2d(parameters)
        with torch.enable_grad():
            leaf = parameters.detach().clone().requires_grad_()
            frames = reference_splat2d(leaf, shape, cutoff)
        return torch.autograd.grad(frames, leaf, planes.to(frames.dtype))[0]
