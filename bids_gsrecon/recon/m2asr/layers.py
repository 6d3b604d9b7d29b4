"""Small parts that every module of the network is made of."""

from __future__ import annotations

import itertools

import torch
from torch import nn


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    """3 x 3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def conv_pair(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """``c3 relu c3``."""
    return nn.Sequential(conv3(inputs, hidden), nn.ReLU(), conv3(hidden, outputs))


def pointwise_pair(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """``1x1 relu 1x1``: an MLP of every pixel's channels."""
    return nn.Sequential(nn.Conv2d(inputs, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, outputs, 1))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def zero_last(layers: nn.Sequential) -> nn.Sequential:
    """The same layers, the last of which gives zero until it is trained."""
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return layers


def to_windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, H/w W/w, w^2, C): tokens by window."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(b, (h // window) * (w // window), window * window, c)


def from_windows(x: torch.Tensor, size: tuple[int, int], window: int) -> torch.Tensor:
    """Inverse of `to_windows` to a map of (H, W) = ``size``."""
    h, w = size
    x = x.reshape(len(x), h // window, w // window, window, window, x.shape[-1]).transpose(2, 3)
    return x.reshape(len(x), h, w, x.shape[-1])


def shifted(x: torch.Tensor, shift: int) -> torch.Tensor:
    """(B, H, W, C) rolled up and left by ``shift`` tokens (down and right if negative)."""
    return torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
