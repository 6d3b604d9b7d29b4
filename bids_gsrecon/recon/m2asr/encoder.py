"""Cross-modal encoder (CSMF): target and reference side by side, the reference weighing the target's channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bids_gsrecon.recon.m2asr.config import NetworkConfig
from bids_gsrecon.recon.m2asr.layers import conv3, conv_pair, mlp, pointwise_pair


class ChannelAttention(nn.Module):
    """``sigmoid(1x1 relu 1x1)`` of the mean of (B, F, H, W) over the image: weights (B, F, 1, 1)."""

    def __init__(self, features: int):
        super().__init__()
        self.weigh = pointwise_pair(features, max(features // 16, 4), features)

    def forward(self, g: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.weigh(g.mean((2, 3), keepdim=True)))


class EncoderBlock(nn.Module):
    """``x += a CA(g) [c3 relu c3](x)``, ``g += b [c3 relu c3](g)``."""

    def __init__(self, features: int):
        super().__init__()
        self.target = conv_pair(features, features, features)
        self.reference = conv_pair(features, features, features)
        self.attention = ChannelAttention(features)
        self.a, self.b = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + self.a * self.attention(g) * self.target(x), g + self.b * self.reference(g)


class Encoder(nn.Module):
    """Zero-filled target and reference (B, 1, H, W) to features (B, C, H/k, W/k) each, k = ``shuffle``.

    The scale token ``e = MLP(1/s)`` (B, 2F) scales and shifts the target's first features.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        f, c, k = config.features, config.channels, config.shuffle
        self.shuffle = k
        self.first_target, self.first_reference = conv3(k * k, f), conv3(k * k, f)
        self.token = mlp(1, 4 * f, 2 * f)
        self.blocks = nn.ModuleList(EncoderBlock(f) for _ in range(config.encoder_blocks))
        self.last_target, self.last_reference = conv3(f, f), conv3(f, f)
        self.project_target, self.project_reference = conv_pair(f, c, c), conv_pair(f, c, c)

    def forward(
        self, target: torch.Tensor, reference: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features of both, and the scale token; ``scale`` (B,) is HR side over LR side."""
        e = self.token(1 / scale[:, None])
        gamma, beta = e[:, :, None, None].chunk(2, 1)
        x = self.first_target(self._fold(target)) * (1 + gamma) + beta
        g = self.first_reference(self._fold(reference))
        for block in self.blocks:
            x, g = block(x, g)
        x, g = x + self.last_target(x), g + self.last_reference(g)
        return self.project_target(x), self.project_reference(g), e

    def _fold(self, image: torch.Tensor) -> torch.Tensor:
        if self.shuffle > 1:
            image = F.pixel_unshuffle(image, self.shuffle)
        return image.contiguous(memory_format=torch.channels_last)


class ReferenceDecoder(nn.Module):
    """``c3 relu c3`` of the reference's features: the reference again, for its loss. (B, C, h, w) -> (B, 1, H, W)."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.layers = conv_pair(config.channels, config.channels // 2, config.shuffle**2)
        self.shuffle = config.shuffle

    def forward(self, g: torch.Tensor) -> torch.Tensor:
        image = self.layers(g)
        return F.pixel_shuffle(image, self.shuffle) if self.shuffle > 1 else image
