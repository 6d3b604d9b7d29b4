"""Attention inside windows of tokens, and attention to the scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bids_gsrecon.recon.m2asr.layers import mlp


class ScaleAttention(nn.Module):
    """Attention of every token to the scale embedding, which stands in a window as often as there are tokens.

    Identical keys get equal weights, whatever the query, and the mean of identical values is that value: the result
    is ``W_o (W_v E + b_v) + b_o`` for every token, without any attention. `full` is the attention itself.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """(B, C) -> (B, C), the same for all tokens."""
        return self.out(self.value(embedding))

    def full(self, tokens: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """(B, N, C) tokens to N copies of (B, C): (B, N, C)."""
        copies = embedding[:, None].expand(tokens.shape)
        q, k, v = self.query(tokens), self.key(copies), self.value(copies)
        return self.out(merge_heads(attend(*(split_heads(t, self.heads) for t in (q, k, v)))))


class RelativeBias(nn.Module):
    """Learnt bias of attention by how far apart two tokens of a window are: (heads, w^2, w^2)."""

    def __init__(self, window: int, heads: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij'))
        at = at.flatten(1)
        apart = at[:, :, None] - at[:, None] + window - 1
        self.register_buffer('index', apart[0] * (2 * window - 1) + apart[1], persistent=False)

    def forward(self) -> torch.Tensor:
        return self.table[self.index].permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Self-attention inside windows: tokens (B, n, w^2, C) -> the same shape."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = RelativeBias(window, heads)

    def forward(self, tokens: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(tokens).chunk(3, -1))
        return self.out(merge_heads(attend(q, k, v, joined(self.bias(), allowed))))


class DualAttention(nn.Module):
    """Cross attention of tokens to two pairs of maps, weighed by a gate per window.

    Keys come from the reference and values from the target: in space, and in their Fourier magnitudes.
    Queries and the relative bias are shared. Everything (B, n, w^2, C).
    """

    def __init__(self, channels: int, heads: int, window: int, frequency: bool):
        super().__init__()
        self.heads, self.frequency = heads, frequency
        self.query = nn.Linear(channels, channels)
        self.bias = RelativeBias(window, heads)
        names = ('space', 'frequency') if frequency else ('space',)
        self.key = nn.ModuleDict({name: nn.Linear(channels, channels) for name in names})
        self.value = nn.ModuleDict({name: nn.Linear(channels, channels) for name in names})
        self.out = nn.ModuleDict({name: nn.Linear(channels, channels) for name in names})
        self.gate = mlp(channels, channels // 2, 2) if frequency else None

    def forward(self, tokens, target, reference, allowed: torch.Tensor | None) -> torch.Tensor:
        """``target`` and ``reference`` map each domain's name to its windows."""
        q = split_heads(self.query(tokens), self.heads)
        bias = joined(self.bias(), allowed)
        seen = []
        for name in self.key:
            k = split_heads(self.key[name](reference[name]), self.heads)
            v = split_heads(self.value[name](target[name]), self.heads)
            seen.append(self.out[name](merge_heads(attend(q, k, v, bias))))
        if self.gate is None:
            return seen[0]
        weights = torch.softmax(self.gate(tokens.mean(-2, keepdim=True)), -1)
        return weights[..., :1] * seen[0] + weights[..., 1:] * seen[1]


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(..., N, C) -> (..., heads, N, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """Inverse of `split_heads`."""
    return x.transpose(-2, -3).flatten(-2)


def attend(q, k, v, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``softmax(q k^T / sqrt(d) + bias) v``."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))


def joined(bias: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """The bias (heads, N, N), minus infinity where shifted windows hold tokens that are no neighbours: (n, 1, N, N)."""
    return bias if allowed is None else bias.masked_fill(~allowed[:, None], float('-inf'))


def neighbours(size: tuple[int, int], window: int, shift: int, device=None) -> torch.Tensor | None:
    """(n, w^2, w^2) bool: tokens of a rolled map that were neighbours before it was rolled; None without a shift."""
    if not shift:
        return None
    region = torch.zeros(size, dtype=torch.long, device=device)
    for axis in (0, 1):
        ids = torch.zeros(size[axis], dtype=torch.long, device=device)
        ids[-window:-shift], ids[-shift:] = 1, 2
        region = 3 * region + (ids[:, None] if axis == 0 else ids[None])
    h, w = size
    region = region.reshape(h // window, window, w // window, window).transpose(1, 2)
    region = region.reshape(-1, window * window)
    return region[:, :, None] == region[:, None]
