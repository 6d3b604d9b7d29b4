"""Real 2D Gaussians on images, differentiable: the kernels of `splat2d` behind autograd.

A Gaussian of centre (x, y), widths (sx, sy), correlation rho and weight w adds to its image::

    w (exp(-q / 2) - exp(-R^2 / 2))_+,   q = (dx^2 / sx^2 - 2 rho dx dy / (sx sy) + dy^2 / sy^2) / (1 - rho^2)

a plain sum, in any order. Centres and widths are in pixels of a grid with centres at whole numbers; any other grid
over the same box is rendered by scaling both, so that one set of Gaussians gives the image at any resolution.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from bids_gsrecon.gpu import splat2d

PARAMETERS = ('x', 'y', 'sx', 'sy', 'rho', 'w')
CUTOFF = 3.3
MIN_WIDTH = 1e-4  # pixels; thinner Gaussians are rendered with it: float32 holds no thinner ellipse


def render2d(parameters: torch.Tensor, shape, *, scale=1.0, cutoff: float = CUTOFF) -> torch.Tensor:
    """Images (B, nx, ny) of B sets of Gaussians (B, N, 6), see `PARAMETERS`; differentiable.

    Parameters
    ----------
    parameters
        float32, in pixels of the grid on which they were made; on the CPU the compiled kernels draw them, elsewhere
        torch.
    shape
        (nx, ny) of the images.
    scale
        Pixels of the images per pixel of the parameters' grid; a number or one for each axis.
    cutoff
        R: where a Gaussian ends, in standard deviations.
    """
    if parameters.ndim != 3 or parameters.shape[2] != len(PARAMETERS):
        raise ValueError(f'parameters must be (B, N, {len(PARAMETERS)}), not {tuple(parameters.shape)}')
    scaled = on_grid(parameters, scale)
    if parameters.device.type != 'cpu':
        return render_torch(scaled, shape, cutoff=cutoff)
    return _Render.apply(factors(scaled), tuple(shape), float(cutoff))


def on_grid(parameters: torch.Tensor, scale) -> torch.Tensor:
    """The same Gaussians in the pixels of a grid that is ``scale`` times as fine over the same box."""
    fx, fy = (scale, scale) if np.ndim(scale) == 0 else scale
    if fx == 1 and fy == 1:
        return parameters
    x, y, sx, sy, rho, w = parameters.unbind(-1)
    return torch.stack([(x + 0.5) * fx - 0.5, (y + 0.5) * fy - 0.5, sx * fx, sy * fy, rho, w], -1)


def factors(parameters: torch.Tensor) -> torch.Tensor:
    """(B, N, 7) as `splat2d.PARAMETERS` has them: the Cholesky factor of the covariance; no imaginary part."""
    x, y, sx, sy, rho, w = parameters.unbind(-1)
    sx, sy = sx.clamp_min(MIN_WIDTH), sy.clamp_min(MIN_WIDTH)
    l22 = (sy * ((1 - rho) * (1 + rho)).clamp_min(0).sqrt()).clamp_min(MIN_WIDTH)
    return torch.stack([x, y, sx, rho * sy, l22, w, torch.zeros_like(w)], -1)


class _Render(torch.autograd.Function):
    """`splat2d` of Gaussians without an imaginary part."""

    @staticmethod
    def forward(ctx, parameters, shape, cutoff):
        ctx.save_for_backward(parameters)
        ctx.cutoff = cutoff
        planes = splat2d.splat(parameters.detach().float().numpy(), shape, cutoff=cutoff)
        return torch.from_numpy(np.ascontiguousarray(planes[:, 0]))

    @staticmethod
    def backward(ctx, gradient):
        (parameters,) = ctx.saved_tensors
        planes = splat2d.frame_planes(len(gradient), gradient.shape[1:])
        planes[:, 0] = gradient.numpy()
        out = splat2d.splat_gradient(parameters.detach().float().numpy(), planes, cutoff=ctx.cutoff)
        out[..., 6] = 0
        return torch.from_numpy(out), None, None


def render_torch(parameters: torch.Tensor, shape, *, cutoff: float = CUTOFF) -> torch.Tensor:
    """`render2d` in plain torch, any device and precision: the reference, and what runs where no kernel does.

    Every Gaussian is evaluated on the square of pixels that holds the widest ellipse.
    """
    nx, ny = shape
    x, y, sx, sy, rho, w = parameters.unbind(-1)
    reach = math.ceil(cutoff * float(torch.maximum(sx, sy).detach().amax())) if parameters.numel() else 0
    level = math.exp(-0.5 * cutoff * cutoff)
    narrow = (1 - rho) * (1 + rho)
    out = parameters.new_zeros(len(parameters), nx * ny)
    first_x, first_y = x.detach().round().long(), y.detach().round().long()
    for i in range(-reach - 1, reach + 2):
        for j in range(-reach - 1, reach + 2):
            at_x, at_y = first_x + i, first_y + j
            dx, dy = (at_x - x) / sx, (at_y - y) / sy
            q = (dx * dx - 2 * rho * dx * dy + dy * dy) / narrow
            value = w * (torch.exp(-0.5 * q) - level).clamp_min(0)
            inside = (at_x >= 0) & (at_x < nx) & (at_y >= 0) & (at_y < ny)
            index = (at_x * ny + at_y).clamp(0, nx * ny - 1)
            out = out.scatter_add(1, index, torch.where(inside, value, torch.zeros_like(value)))
    return out.reshape(len(parameters), nx, ny)


def count_evaluations(parameters: torch.Tensor, shape, *, scale=1.0, cutoff: float = CUTOFF) -> int:
    """Pixels for which the kernels compute a weight: those of the rows of every ellipse, in whole lanes."""
    return splat2d.count_evaluations(factors(on_grid(parameters, scale)).numpy(), shape, cutoff=cutoff)
