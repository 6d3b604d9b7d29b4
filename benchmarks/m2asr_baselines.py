"""What the Gaussians are compared with: a plain residual network with the same data, optimiser and time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bids_gsrecon.recon.m2asr.config import NetworkConfig
from bids_gsrecon.recon.m2asr.fusion import ResidualBlock
from bids_gsrecon.recon.m2asr.layers import conv3, zero_last

FOLD = 2


@dataclass(eq=False)
class Sharpened:
    """An image in the place of Gaussians."""

    image: torch.Tensor
    reference: None = None

    def render(self) -> torch.Tensor:
        return self.image


class ResidualCnn(nn.Module):
    """Both images and 1/s at half resolution -> residual blocks -> what is added to the zero-filled image."""

    def __init__(self, config: NetworkConfig, channels: int = 40, blocks: int = 8):
        super().__init__()
        self.config = config
        self.first = conv3(2 * FOLD**2 + 1, channels)
        self.trunk = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.heads = zero_last(nn.Sequential(nn.ReLU(), conv3(channels, FOLD**2)))

    def forward(self, target, reference, scale, *, decode: bool = False) -> Sharpened:
        folded = F.pixel_unshuffle(torch.stack([target, reference], 1), FOLD)
        scales = (1 / scale)[:, None, None, None].expand(-1, 1, *folded.shape[2:])
        x = torch.cat([folded, scales], 1).contiguous(memory_format=torch.channels_last)
        added = F.pixel_shuffle(self.heads(self.trunk(self.first(x))), FOLD)[:, 0]
        return Sharpened(target + added.float())
