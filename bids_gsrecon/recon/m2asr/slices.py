"""A network on whole slices: padded by reflection, in pieces where it was trained on pieces, in batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bids_gsrecon.recon.m2asr.network import Network

HALO = 8  # pixels at the rim of a piece that are left to its neighbours


def predict(
    network: Network,
    coarse: np.ndarray,
    reference: np.ndarray,
    scale: float,
    *,
    batch: int = 4,
    precision: str = 'float32',
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Sharp slices (M, H, W) float32 of zero-filled and reference slices (M, H, W), intensities about 0..1.

    The Gaussians of a slice are rendered together, whatever pieces they come from.
    """
    device = next(network.parameters()).device
    out = np.empty(coarse.shape, np.float32)
    with torch.inference_mode():
        for first in range(0, len(coarse), batch):
            some = slice(first, first + batch)
            pair = torch.from_numpy(np.stack([coarse[some], reference[some]]).astype(np.float32)).to(device)
            out[some] = _predict(network, pair, scale, precision).cpu().numpy()
            progress(min(first + batch, len(coarse)), len(coarse))
    return out


def _predict(network: Network, pair: torch.Tensor, scale: float, precision: str) -> torch.Tensor:
    """(B, H, W) of a pair (2, B, H, W)."""
    patch, multiple = network.config.patch, network.config.multiple
    h, w = pair.shape[2:]
    device = pair.device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == 'bfloat16'):
        if not patch:
            padded = reflect(pair, [(0, -n % multiple) for n in (h, w)])
            ratio = padded.new_full((pair.shape[1],), scale)
            return network(*padded, ratio).render()[:, :h, :w]
        tiles, at, size = cut(pair, patch)
        ratio = tiles.new_full((tiles.shape[1],), scale)
        return join(network(*tiles, ratio).render(), at, size, patch)[:, :h, :w]


def reflect(images: torch.Tensor, margins) -> torch.Tensor:
    """(..., H, W) continued by reflection, again and again where a margin is wider than the image."""
    for axis, (before, after) in zip((-2, -1), margins):
        n = images.shape[axis]
        at = np.arange(-before, n + after) % max(2 * n - 2, 1)
        at = np.minimum(at, 2 * n - 2 - at) if n > 1 else at * 0
        images = images.index_select(axis, torch.as_tensor(at, device=images.device))
    return images


def cut(images: torch.Tensor, patch: int):
    """(C, B, H, W) into pieces (C, B K, patch, patch) that overlap by twice the halo; where they are; padded size."""
    inner = patch - 2 * HALO
    counts = [-(-n // inner) for n in images.shape[2:]]
    size = [k * inner for k in counts]
    padded = reflect(images, [(HALO, s - n + HALO) for s, n in zip(size, images.shape[2:])])
    at = [(i * inner, j * inner) for i in range(counts[0]) for j in range(counts[1])]
    pieces = torch.stack([padded[:, :, i : i + patch, j : j + patch] for i, j in at], 2)
    return pieces.flatten(1, 2).contiguous(), at, size


def join(pieces: torch.Tensor, at, size, patch: int) -> torch.Tensor:
    """The middles of the pieces (B K, patch, patch) side by side: (B, H, W)."""
    pieces = pieces.unflatten(0, (-1, len(at)))
    inner = patch - 2 * HALO
    out = pieces.new_empty(len(pieces), *size)
    for k, (i, j) in enumerate(at):
        out[:, i : i + inner, j : j + inner] = pieces[:, k, HALO:-HALO, HALO:-HALO]
    return out
