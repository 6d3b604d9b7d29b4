"""The whole network: a zero-filled target and its reference to Gaussians, and Gaussians to an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bids_gsrecon.gpu.render2d import render2d
from bids_gsrecon.recon.m2asr.config import NetworkConfig
from bids_gsrecon.recon.m2asr.encoder import Encoder, ReferenceDecoder
from bids_gsrecon.recon.m2asr.fusion import Fusion, PlainFusion, ResidualBlock
from bids_gsrecon.recon.m2asr.gaussians import GaussianHeads
from bids_gsrecon.recon.m2asr.layers import mlp
from bids_gsrecon.recon.m2asr.transformer import CrossAttention, GaussianTransformer


@dataclass(eq=False)
class Prediction:
    """Of one forward pass.

    Attributes
    ----------
    gaussians
        (B, H W, 6), in pixels of the zero-filled image; see `gpu.render2d.PARAMETERS`.
    size
        (H, W).
    reference
        (B, H, W), the reference decoded from its features; None unless asked for.
    """

    gaussians: torch.Tensor
    size: tuple[int, int]
    reference: torch.Tensor | None = None

    def render(self, scale=1.0, shape: tuple[int, int] | None = None) -> torch.Tensor:
        """The image (B, H', W') on a grid ``scale`` times as fine over the same box."""
        if shape is None:
            factors = (scale, scale) if isinstance(scale, (int, float)) else scale
            shape = tuple(round(n * f) for n, f in zip(self.size, factors))
        return render2d(self.gaussians, shape, scale=scale, grid=self.size)


class Network(nn.Module):
    """GaussM2ASR.

    Sides of the images must be multiples of `NetworkConfig.multiple`; intensities about 0..1.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        c = config.channels
        self.encoder = Encoder(config)
        self.fusion = (Fusion if config.spmf else PlainFusion)(c)
        self.decoder = ReferenceDecoder(config)
        self.trunk = nn.Sequential(*(ResidualBlock(c) for _ in range(config.conv_blocks)))
        with_layers = config.cross_layers or config.stages
        self.embedding = mlp(2 * config.features, 4 * c, c) if with_layers else None
        self.cross = CrossAttention(config) if config.cross_layers else None
        self.transformer = GaussianTransformer(config)
        self.heads = GaussianHeads(config)

    def forward(
        self, target: torch.Tensor, reference: torch.Tensor, scale: torch.Tensor, *, decode: bool = False
    ) -> Prediction:
        """Gaussians of the sharp target.

        Parameters
        ----------
        target, reference
            (B, H, W): zero-filled target, and reference.
        scale
            (B,) HR side over LR side.
        decode
            Also decode the reference, for its loss.
        """
        if not self.config.reference:
            reference = torch.zeros_like(reference)
        x, g, token = self.encoder(target[:, None], reference[:, None], scale)
        decoded = self.decoder(g)[:, 0] if decode else None
        x = self.trunk(self.fusion(x, g))
        embedding = None if self.embedding is None else self.embedding(token)
        tokens = x.permute(0, 2, 3, 1) if self.cross is None else self.cross(x, g, embedding)
        tokens = self.transformer(tokens, embedding)
        gaussians = self.heads(tokens, target, reference, scale)
        return Prediction(gaussians, tuple(target.shape[1:]), decoded)


def n_parameters(module: nn.Module) -> int:
    """How many numbers it learns."""
    return sum(p.numel() for p in module.parameters())
