"""The heads that turn tokens into Gaussians (AGGP), guided by the edges of the reference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from bids_gsrecon.recon.m2asr import interpolant
from bids_gsrecon.recon.m2asr.config import NetworkConfig
from bids_gsrecon.recon.m2asr.layers import from_windows, mlp, to_windows, zero_last

KEPT = (1 / 2, 2 / 3, 3 / 4, 4 / 5)
"""Shares of the strongest entries of a row of attention that its four levels keep (Top-T)."""
EDGE_HEADS = 4


class EdgeAttention(nn.Module):
    """Tokens (B, h, w, C) seen through the edges (B, h, w, k^2) of the reference.

    Queries come from the edges, keys and values from the tokens, both normalised. ``channel``, as released: attention
    among the C / 4 channels of a head, over all tokens, with a learnt temperature; ``spatial``, as the paper's words
    say: among the tokens of a window. At each of four levels only the largest scores of a row are kept; the results
    are added with learnt weights. ``none`` keeps everything.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        c = config.channels
        self.mode, self.window = config.top_t, config.window
        self.edge, self.query = nn.Linear(config.shuffle**2, c), nn.Linear(c, c)
        self.key, self.value, self.out = nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.temperature = nn.Parameter(torch.ones(EDGE_HEADS, 1, 1))
        self.levels = nn.Parameter(torch.full((len(KEPT),), 0.2))
        self.norm, self.mlp = nn.LayerNorm(c), mlp(c, 2 * c, c)

    def forward(self, tokens: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query(self.edge(edges)), self.key(tokens), self.value(tokens)
        if self.mode == 'spatial':
            q, k, v = (self._heads(to_windows(t, self.window)) for t in (q, k, v))
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2) * self.temperature
            seen = (self._sparse(scores) @ v).transpose(-2, -3).flatten(-2)
            seen = from_windows(seen, tuple(tokens.shape[1:3]), self.window)
        else:
            q, k, v = (self._heads(t.flatten(1, 2)) for t in (q, k, v))
            scores = F.normalize(q, dim=-2).transpose(-1, -2) @ F.normalize(k, dim=-2) * self.temperature
            seen = (v @ self._sparse(scores).transpose(-1, -2)).transpose(-2, -3).flatten(-2)
            seen = seen.reshape(tokens.shape)
        tokens = tokens + self.out(seen)
        return tokens + self.mlp(self.norm(tokens))

    def _heads(self, t: torch.Tensor) -> torch.Tensor:
        """(..., N, C) -> (..., heads, N, C / heads)."""
        return t.unflatten(-1, (EDGE_HEADS, -1)).transpose(-2, -3)

    def _sparse(self, scores: torch.Tensor) -> torch.Tensor:
        if self.mode == 'none':
            return torch.softmax(scores, -1)
        n = scores.shape[-1]
        order = scores.detach().argsort(-1, descending=True).argsort(-1)
        total = 0
        for weight, share in zip(self.levels, KEPT):
            kept = scores.masked_fill(order >= max(1, int(n * share)), float('-inf'))
            total = total + weight * torch.softmax(kept, -1)
        return total


class GaussianHeads(nn.Module):
    """Tokens (B, h, w, C) and the images they are of to Gaussians (B, H W, 6), see `gpu.render2d.PARAMETERS`.

    Parameters of a Gaussian are in pixels of the zero-filled image (B, H, W). With the published start its weight is
    ``sigmoid(alpha) sigmoid(intensity)`` (the mean of three intensities) and its widths grow with the scale. With the
    exact start an added image, gated by alpha, is what the heads say; weights reproduce zero-filled + added if
    nothing else is changed, and widths, correlation and centre depart from those of equal Gaussians on every pixel.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        c, per_token = config.channels, config.shuffle**2
        self.shuffle, self.exact = config.shuffle, config.start == 'exact'
        self.absolute = config.centres == 'absolute'
        self.intensities = 1 if self.exact else 3
        self.kinds = {'sigma': 2, 'rho': 1, 'alpha': 1, 'intensity': self.intensities}
        outputs = {'joint': sum(self.kinds.values())} if config.joint_heads else self.kinds
        self.heads = nn.ModuleDict(
            {kind: mlp(c, *config.head_hidden, n * per_token) for kind, n in {**outputs, 'centre': 2}.items()}
        )
        self.edges = EdgeAttention(config) if config.edge_guided else None
        if self.exact:
            for kind, head in self.heads.items():
                if not (self.absolute and kind == 'centre'):
                    zero_last(head)

    def forward(
        self, tokens: torch.Tensor, zero_filled: torch.Tensor, reference: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        guided = tokens
        if self.edges is not None:
            guided = self.edges(tokens, self._fold(sobel(reference)).permute(0, 2, 3, 1))
        maps = {k: self._maps(head(guided if k == 'centre' else tokens)) for k, head in self.heads.items()}
        with torch.autocast(tokens.device.type, enabled=False):
            maps = {k: m.float() for k, m in maps.items()}
            if 'joint' in maps:
                maps.update(zip(self.kinds, maps.pop('joint').split(list(self.kinds.values()), 1)))
            gaussians = (self._exact if self.exact else self._published)(maps, zero_filled, scale)
            x, y = self._centres(maps['centre'])
            return torch.stack([x, y, *gaussians], -1).flatten(1, 2)

    def _centres(self, head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, W) each, from (B, 2, H, W)."""
        h, w = head.shape[2:]
        if self.absolute:
            side = head.new_tensor([h, w])[:, None, None]
            return (torch.sigmoid(head) * side - 0.5).unbind(1)
        offset = torch.tanh(head) if self.exact else head
        x = torch.arange(h, device=head.device, dtype=head.dtype)[:, None]
        y = torch.arange(w, device=head.device, dtype=head.dtype)
        return x + offset[:, 0], y + offset[:, 1]

    def _exact(self, maps, zero_filled, scale):
        sx, sy = (interpolant.WIDTH * torch.exp(0.7 * torch.tanh(maps['sigma']))).unbind(1)
        added = 2 * torch.sigmoid(maps['alpha']) * maps['intensity']
        weight = interpolant.weights(zero_filled + added[:, 0])
        return sx, sy, 0.9 * torch.tanh(maps['rho'][:, 0]), weight

    def _published(self, maps, zero_filled, scale):
        sigma = (0.99999 * torch.sigmoid(maps['sigma']) + 1e-6) * scale[:, None, None, None] / 1.2
        weight = torch.sigmoid(maps['alpha'][:, 0]) * torch.sigmoid(maps['intensity']).mean(1)
        return sigma[:, 0], sigma[:, 1], 0.999999 * torch.tanh(maps['rho'][:, 0]), weight

    def _fold(self, image: torch.Tensor) -> torch.Tensor:
        """(B, H, W) -> (B, k^2, h, w)."""
        return F.pixel_unshuffle(image[:, None], self.shuffle)

    def _maps(self, head: torch.Tensor) -> torch.Tensor:
        """(B, h, w, n k^2) -> (B, n, H, W)."""
        head = head.permute(0, 3, 1, 2)
        return F.pixel_shuffle(head, self.shuffle) if self.shuffle > 1 else head


def sobel(image: torch.Tensor) -> torch.Tensor:
    """Magnitude of the Sobel gradient of (B, H, W), over its largest value in the image: 0..1."""
    smooth, slope = image.new_tensor([1.0, 2.0, 1.0]), image.new_tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([slope[:, None] * smooth, smooth[:, None] * slope])[:, None]
    padded = F.pad(image[:, None], (1, 1, 1, 1), mode='replicate')
    magnitude = F.conv2d(padded, kernels).square().sum(1).sqrt()
    return magnitude / magnitude.amax((1, 2), keepdim=True).clamp_min(math.ulp(1.0))
