"""Layers of tokens: dual-domain cross attention (AG-DDCA) and the Gaussian Transformer."""

from __future__ import annotations

import torch
from torch import nn

from bids_gsrecon.recon.m2asr.attention import DualAttention, ScaleAttention, WindowAttention, neighbours
from bids_gsrecon.recon.m2asr.config import NetworkConfig
from bids_gsrecon.recon.m2asr.layers import from_windows, mlp, pointwise_pair, shifted, to_windows


class Layer(nn.Module):
    """Attention to the scale, MLP, window attention, MLP; each on normalised tokens, each added.

    Tokens (B, h, w, C); the window attention is given by the caller.
    """

    def __init__(self, config: NetworkConfig, attention: nn.Module, shift: int):
        super().__init__()
        c = config.channels
        self.window, self.shift = config.window, shift
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(4))
        self.scale, self.attention = ScaleAttention(c, config.heads), attention
        self.mlps = nn.ModuleList(mlp(c, c, c) for _ in range(2))

    def forward(self, tokens: torch.Tensor, embedding: torch.Tensor, *maps) -> torch.Tensor:
        """``maps``: dictionaries of (B, h, w, C) that cross attention looks at."""
        size = tuple(tokens.shape[1:3])
        # One window over the whole map has no neighbours to reach by shifting.
        shift = self.shift if min(size) > self.window else 0
        tokens = tokens + self.scale(embedding)[:, None, None]
        tokens = tokens + self.mlps[0](self.norms[1](tokens))
        windows = to_windows(shifted(self.norms[2](tokens), shift), self.window)
        maps = [{k: to_windows(shifted(m, shift), self.window) for k, m in d.items()} for d in maps]
        seen = self.attention(windows, *maps, neighbours(size, self.window, shift, tokens.device))
        tokens = tokens + shifted(from_windows(seen, size, self.window), -shift)
        return tokens + self.mlps[1](self.norms[3](tokens))


class Block(nn.Module):
    """``tokens + MLP(layers(LayerNorm(tokens)))``."""

    def __init__(self, channels: int, layers: list[Layer]):
        super().__init__()
        self.norm, self.layers, self.mlp = (
            nn.LayerNorm(channels),
            nn.ModuleList(layers),
            mlp(channels, channels, channels),
        )

    def forward(self, tokens: torch.Tensor, embedding: torch.Tensor, *maps) -> torch.Tensor:
        inner = self.norm(tokens)
        for layer in self.layers:
            inner = layer(inner, embedding, *maps)
        return tokens + self.mlp(inner)


class CrossAttention(nn.Module):
    """AG-DDCA: learnt prompts, the same in every window, look at both images in space and frequency.

    Features (B, C, h, w) of the target and the reference to tokens (B, h, w, C), one or more Gaussians each.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        c, w = config.channels, config.window
        self.window, self.carry = w, config.carry
        self.prompts = nn.Parameter(torch.randn(w * w, c) * 0.02)
        self.positions = nn.Parameter(torch.randn(w * w, c) * 0.02)
        self.spectrum = pointwise_pair(c, c, c) if config.frequency else None
        self.block = Block(
            c,
            [
                Layer(config, DualAttention(c, config.heads, w, config.frequency), (n % 2) * (w // 2))
                for n in range(config.cross_layers)
            ],
        )

    def forward(self, x: torch.Tensor, g: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        window = (self.prompts + self.positions).unflatten(0, (self.window, self.window))
        tokens = window.repeat(h // self.window, w // self.window, 1).expand(b, -1, -1, -1)
        if self.carry:
            tokens = tokens + x.permute(0, 2, 3, 1)
        return self.block(tokens, embedding, self._domains(x), self._domains(g))

    def _domains(self, t: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {'space': t.permute(0, 2, 3, 1)}
        if self.spectrum is not None:
            maps['frequency'] = self.spectrum(log_spectrum(t)).permute(0, 2, 3, 1)
        return maps


class GaussianTransformer(nn.Module):
    """Blocks of self-attention in shifted windows, added to what goes in: (B, h, w, C) -> (B, h, w, C)."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        c, w = config.channels, config.window
        self.blocks = nn.ModuleList(
            Block(
                c,
                [
                    Layer(config, WindowAttention(c, config.heads, w), (n % 2) * (w // 2))
                    for n in range(config.stage_layers)
                ],
            )
            for _ in range(config.stages)
        )

    def forward(self, tokens: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        inner = tokens
        for block in self.blocks:
            inner = block(inner, embedding)
        return tokens + inner if len(self.blocks) else tokens


def log_spectrum(t: torch.Tensor) -> torch.Tensor:
    """``log(1 + |FFT2(t)|)`` of (B, C, h, w), orthonormal, not shifted."""
    with torch.autocast(t.device.type, enabled=False):
        return torch.log1p(torch.fft.fft2(t.float(), norm='ortho').abs())
