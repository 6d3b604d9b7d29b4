"""Real 2D Gaussians on a CUDA device: the order of work around ``csrc/render2d.cu``."""

from __future__ import annotations

import math

import torch

from bids_gsrecon.gpu.cuda import Kernels, make_backend


class Render2d:
    """`splat2d.splat` and `splat2d.splat_gradient` for real Gaussians on the device of their tensors.

    ``operators`` are the kernels of `bids_gsrecon.gpu.cuda_build.load_operators`; the tests give others, which run the
    kernels' sources on the CPU.
    """

    def __init__(self, operators):
        self._operators = operators

    def splat(self, parameters: torch.Tensor, grid, shape, cutoff: float) -> torch.Tensor:
        """Images (B, nx, ny) of Gaussians (B, gx gy, 7) that lie about the cells of a (gx, gy) ``grid``.

        Any other place is right too, but the further the slower: every pixel looks at the homes within the longest
        reach of any Gaussian. Waits for the device once, to know it.
        """
        parameters = parameters.detach().float().contiguous()
        batch, n = parameters.shape[:2]
        image = parameters.new_zeros(batch, *shape)
        if n and image.numel():
            reach = _reach(parameters, grid, shape, cutoff)
            self._run(parameters, 'render2d', parameters, image, batch, *grid, *shape, reach, float(cutoff))
        return image

    def gradient(self, parameters: torch.Tensor, gradient: torch.Tensor, cutoff: float) -> torch.Tensor:
        """(B, N, 7) of ``(gradient * splat(parameters)).sum()``."""
        parameters = parameters.detach().float().contiguous()
        gradient = gradient.detach().float().contiguous()
        out = torch.zeros_like(parameters)
        if out.numel() and gradient.numel():
            batch, n = parameters.shape[:2]
            self._run(
                parameters, 'render2d_gradients', parameters, gradient, out, batch, n, *gradient.shape[1:],
                float(cutoff),
            )  # fmt: skip
        return out

    def _run(self, like: torch.Tensor, name: str, *arguments) -> None:
        Kernels(self._operators, like.device)(name, *arguments)


def device_renderer() -> Render2d:
    """The kernels of the CUDA backend; RuntimeError in one sentence where there is none."""
    return Render2d(make_backend().operators)


def _reach(parameters: torch.Tensor, grid, shape, cutoff: float) -> float:
    """Pixels from the home of a Gaussian to the furthest that it touches, over all of them."""
    furthest = 0.0
    widths = (parameters[..., 2], torch.hypot(parameters[..., 3], parameters[..., 4]))
    for axis, width in enumerate(widths):
        g, n = grid[axis], shape[axis]
        home = (torch.arange(g, device=parameters.device) + 0.5) * (n / g) - 0.5
        home = home[:, None].expand(*grid) if axis == 0 else home.expand(*grid)
        away = (parameters[..., axis] - home.reshape(-1)).abs() + cutoff * width
        longest = float(away.max())
        if not math.isfinite(longest):
            raise ValueError('a Gaussian is not finite')
        furthest = max(furthest, longest)
    return furthest
