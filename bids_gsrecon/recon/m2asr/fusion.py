"""Fusion of the target's and the reference's features (SPMF), and the residual blocks that may follow it."""

from __future__ import annotations

import torch
from torch import nn

from bids_gsrecon.recon.m2asr.layers import conv3, conv_pair, pointwise_pair


class Fusion(nn.Module):
    """``out = [c3 relu c3](m xf + (1 - m) g) + x``, all (B, C, H, W).

    ``xf = (1 + gamma) x + beta`` with (gamma, beta) from the mean of g over the image; the gate m (B, 1, H, W) sees xf
    and g.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.modulation = pointwise_pair(channels, channels // 2, 2 * channels)
        self.gate = nn.Sequential(
            conv3(2 * channels, channels // 2), nn.ReLU(), nn.Conv2d(channels // 2, 1, 1), nn.Sigmoid()
        )
        self.merge = conv_pair(channels, channels, channels)

    def forward(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        gamma, beta = self.modulation(g.mean((2, 3), keepdim=True)).chunk(2, 1)
        xf = (1 + gamma) * x + beta
        m = self.gate(torch.cat([xf, g], 1))
        return self.merge(m * xf + (1 - m) * g) + x


class PlainFusion(nn.Module):
    """The ablation: ``[c3 relu c3](x + g) + x``, no modulation and no gate."""

    def __init__(self, channels: int):
        super().__init__()
        self.merge = conv_pair(channels, channels, channels)

    def forward(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return self.merge(x + g) + x


class ResidualBlock(nn.Module):
    """``x + [c3 relu c3](x)``; the last convolution starts small, so that deep stacks train at high rates."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = conv_pair(channels, channels, channels)
        with torch.no_grad():
            self.layers[-1].weight.mul_(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)
