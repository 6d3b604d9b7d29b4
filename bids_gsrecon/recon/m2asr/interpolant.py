"""Weights with which equal Gaussians on every pixel reproduce an image: the start of training.

The samples of such a sum are the weights convolved with the sampled Gaussian. Dividing by it in Fourier space undoes
that on a torus; here the finite convolution along each axis, without Gaussians beyond the edges, is inverted as a
matrix, and what the cut takes from a separable Gaussian is put right by a correction step.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from bids_gsrecon.gpu.render2d import CUTOFF

WIDTH = 0.55
"""Pixels: narrow enough for a stable inverse (condition 5 along an axis), wide enough to be smooth between pixels."""
CORRECTIONS = 2


def weights(image: torch.Tensor, width: float = WIDTH, cutoff: float = CUTOFF) -> torch.Tensor:
    """Weights (B, H, W) float32 such that Gaussians of ``width`` render ``image`` (B, H, W); linear in it."""
    rows, columns = (_inverse(n, width, image.device) for n in image.shape[1:])
    along_rows = _factors(image.shape[1], width, cutoff, True, image.device)
    along_columns = _factors(image.shape[2], width, cutoff, False, image.device)
    out = rows @ image @ columns
    for _ in range(CORRECTIONS):
        rendered = (along_rows @ out[:, None] @ along_columns.mT).sum(1)
        out = out + rows @ (image - rendered) @ columns
    return out


def sampled(width: float, cutoff: float) -> torch.Tensor:
    """The Gaussian as it is rendered, at whole pixels: (k, k) float32."""
    reach = math.ceil(width * cutoff)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    q = (at[:, None] ** 2 + at**2) / width**2
    return (torch.exp(-q / 2) - math.exp(-0.5 * cutoff**2)).clamp_min(0).float()


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept here while a network is applied, a training may need
def _inverse(n: int, width: float, device) -> torch.Tensor:
    """(n, n) inverse of the convolution with the sampled Gaussian along one axis; symmetric."""
    apart = torch.arange(n, dtype=torch.float64)
    matrix = torch.exp(-0.5 * ((apart[:, None] - apart) / width) ** 2)
    return torch.linalg.inv(matrix).float().to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept here while a network is applied, a training may need
def _factors(n: int, width: float, cutoff: float, weighed: bool, device) -> torch.Tensor:
    """(r, n, n): the convolution with the cut Gaussian is the sum over r of these along one axis and the other.

    The kernel, symmetric, is a sum of r outer products of its eigenvectors; matrix products are ten times as fast as
    a convolution of one channel. The eigenvalues go to the ``weighed`` axis.
    """
    kernel = sampled(width, cutoff).double()
    values, vectors = torch.linalg.eigh(kernel)
    keep = values.abs() > 1e-7 * values.abs().max()
    reach = len(kernel) // 2
    apart = torch.arange(n)[:, None] - torch.arange(n)
    inside = apart.abs() <= reach
    at = (apart.clamp(-reach, reach) + reach).flatten()
    matrices = vectors[at][:, keep].T.reshape(-1, n, n) * inside
    if weighed:
        matrices = matrices * values[keep][:, None, None]
    return matrices.float().to(device)
