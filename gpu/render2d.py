"""Real 2D Gaussians on images, differentiable: the kernels of `splat2d` behind autograd.

A Gaussian of centre (x, y), widths (sx, sy), correlation rho and weight w adds to its image::

    w (exp(-q / 2) - exp(-R^2 / 2))_+,   q = (dx^2 / sx^2 - 2 rho dx dy / (sx sy) + dy^2 / sy^2) / (1 - rho^2)

a plain sum, in any order. Centres and widths are in pixels of a grid with centres at whole numbers; any other grid
over the same box is rendered by scaling both, so that one set of Gaussians gives the image at any resolution.
"""

from __future__ import annotations

import functools
import logging
import math

import numpy as np
import torch

from bids_gsrecon.gpu import splat2d

_LOG = logging.getLogger(__name__)
PARAMETERS = ('x', 'y', 'sx', 'sy', 'rho', 'w')
CUTOFF = 3.3
MIN_WIDTH = 1e-4  # pixels; thinner Gaussians are rendered with it: float32 holds no thinner ellipse


def render2d(
    parameters: torch.Tensor, shape, *, scale=1.0, cutoff: float = CUTOFF, grid: tuple[int, int] | None = None
) -> torch.Tensor:
    """Images (B, nx, ny) of B sets of Gaussians (B, N, 6), see `PARAMETERS`; differentiable.

    Parameters
    ----------
    parameters
        float32, in pixels of the grid on which they were made. Compiled kernels draw them on the CPU, and on a CUDA
        device where they can be built; plain torch otherwise.
    shape
        (nx, ny) of the images.
    scale
        Pixels of the images per pixel of the parameters' grid; a number or one for each axis.
    cutoff
        R: where a Gaussian ends, in standard deviations.
    grid
        (gx, gy), if the Gaussians lie about the centres of gx x gy equal cells, y fastest: CUDA devices find them by it.
    """
    if parameters.ndim != 3 or parameters.shape[2] != len(PARAMETERS):
        raise ValueError(f'parameters must be (B, N, {len(PARAMETERS)}), not {tuple(parameters.shape)}')
    if grid is not None and math.prod(grid) != parameters.shape[1]:
        raise ValueError(f'{parameters.shape[1]} Gaussians do not fill a grid of {grid[0]} x {grid[1]}')
    scaled = on_grid(parameters, scale)
    renderer = _renderer(parameters.device.type)
    if renderer is None:
        return render_torch(scaled, shape, cutoff=cutoff)
    return _Render.apply(
        factors(scaled), tuple(shape), float(cutoff), grid or (1, parameters.shape[1]), renderer
    )


@functools.cache
def _renderer(kind: str):
    """What draws on devices of a kind; None: torch itself."""
    if kind == 'cpu':
        return _CpuKernels()
    if kind != 'cuda':
        return None
    from bids_gsrecon.gpu.cuda_render2d import device_renderer

    try:
        return device_renderer()
    except RuntimeError as error:
        _LOG.warning('%s Until then plain torch renders, slowly.', error)
        return None


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
    """Kernels of Gaussians without an imaginary part."""

    @staticmethod
    def forward(ctx, parameters, shape, cutoff, grid, renderer):
        ctx.save_for_backward(parameters)
        ctx.cutoff, ctx.renderer = cutoff, renderer
        return renderer.splat(parameters.detach().float(), grid, shape, cutoff)

    @staticmethod
    def backward(ctx, gradient):
        (parameters,) = ctx.saved_tensors
        out = ctx.renderer.gradient(parameters.detach().float(), gradient, ctx.cutoff)
        return out, None, None, None, None


class _CpuKernels:
    """`splat2d` with the imaginary part left empty."""

    def splat(self, parameters: torch.Tensor, grid, shape, cutoff: float) -> torch.Tensor:
        planes = splat2d.splat(parameters.numpy(), shape, cutoff=cutoff)
        return torch.from_numpy(np.ascontiguousarray(planes[:, 0]))

    def gradient(self, parameters: torch.Tensor, gradient: torch.Tensor, cutoff: float) -> torch.Tensor:
        planes = splat2d.frame_planes(len(gradient), gradient.shape[1:])
        planes[:, 0] = gradient.numpy()
        out = splat2d.splat_gradient(parameters.numpy(), planes, cutoff=cutoff)
        out[..., 6] = 0
        return torch.from_numpy(out)


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
