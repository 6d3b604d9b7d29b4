"""Weights with which equal Gaussians on every pixel reproduce an image: the start of training.

The samples of such a sum are the weights convolved with the sampled Gaussian. Dividing by it in Fourier space undoes
that on a torus; here the finite convolution along each axis, without Gaussians beyond the edges, is inverted as a
matrix, and what the cut takes from a separable Gaussian is put right by a correction step.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from bids_gsrecon.gpu.render2d import CUTOFF

WIDTH = 0.55
"""Pixels: narrow enough for a stable inverse (condition 5 along an axis), wide enough to be smooth between pixels."""
CORRECTIONS = 2


def weights(image: torch.Tensor, width: float = WIDTH, cutoff: float = CUTOFF) -> torch.Tensor:
    """Weights (B, H, W) float32 such that Gaussians of ``width`` render ``image`` (B, H, W); linear in it."""
    rows, columns = (_inverse(n, width, image.device) for n in image.shape[1:])
    kernel = sampled(width, cutoff).to(image.device)
    out = rows @ image @ columns
    for _ in range(CORRECTIONS):
        rendered = F.conv2d(out[:, None], kernel[None, None], padding=len(kernel) // 2)[:, 0]
        out = out + rows @ (image - rendered) @ columns
    return out


def sampled(width: float, cutoff: float) -> torch.Tensor:
    """The Gaussian as it is rendered, at whole pixels: (k, k) float32."""
    reach = math.ceil(width * cutoff)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    q = (at[:, None] ** 2 + at**2) / width**2
    return (torch.exp(-q / 2) - math.exp(-0.5 * cutoff**2)).clamp_min(0).float()


@lru_cache(maxsize=64)
def _inverse(n: int, width: float, device) -> torch.Tensor:
    """(n, n) inverse of the convolution with the sampled Gaussian along one axis; symmetric."""
    apart = torch.arange(n, dtype=torch.float64)
    matrix = torch.exp(-0.5 * ((apart[:, None] - apart) / width) ** 2)
    return torch.linalg.inv(matrix).float().to(device)
