"""M-Gaussian's neural residual field: what a small network adds to the Gaussians.

``a(x) = a_gaussians(x) + bound * tanh(MLP(x, sin 2^k pi x, cos 2^k pi x))``, six Fourier bands, four layers of 64, SiLU,
switched on when poses and Gaussians are found. Here it adds to the grid's amplitudes, so that it goes through the
same point spread, and is fitted by Adam on the same weighted squares.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from bids_gsrecon.recon.svr.view import View

BANDS = 6
WIDTH, DEPTH = 64, 4
BOUND = 0.2  # of what is bright
LEARNING_RATE = 1e-3
STEPS = 60
CHUNK = 1 << 16  # nodes at a time: bounds the memory


def add_residual_field(
    view: View, weights, gains, image: np.ndarray, *, seed: int, progress=None
) -> np.ndarray:
    """Amplitudes (nx, ny, nz) with the network's part, where pixels look."""
    p = view.pixels
    gain = gains[p.slice_of].astype(np.float32)
    weight = weights.astype(np.float32)
    seen = view.adjoint(weight)
    where = np.argwhere(seen > 0.05 * seen.max())
    size = np.array(image.shape)
    coordinates = torch.from_numpy(((2.0 * where + 1.0) / size - 1.0).astype(np.float32))
    network = _network(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    residual = p.values - gain * view.forward(image)
    scale = 1.0 / float(weight.sum())
    for step in range(STEPS):
        if progress is not None:
            progress('neural residual field', step, STEPS)
        added = _values(network, coordinates, where, image.shape)
        misfit = gain * view.forward(added) - residual
        gradient = view.adjoint(2 * scale * weight * gain * misfit)[tuple(where.T)]
        optimiser.zero_grad()
        for start in range(0, len(where), CHUNK):
            part = slice(start, start + CHUNK)
            _field(network, coordinates[part]).backward(
                torch.from_numpy(np.ascontiguousarray(gradient[part]))
            )
        optimiser.step()
    return image + _values(network, coordinates, where, image.shape)


def _network(seed: int) -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[torch.nn.Module] = []
        width = 3 + 6 * BANDS
        for _ in range(DEPTH):
            layers += [torch.nn.Linear(width, WIDTH), torch.nn.SiLU()]
            width = WIDTH
        last = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        return torch.nn.Sequential(*layers, last)


def _field(network, x: torch.Tensor) -> torch.Tensor:
    waves = [f(math.pi * 2.0**k * x) for k in range(BANDS) for f in (torch.sin, torch.cos)]
    return BOUND * torch.tanh(network(torch.cat([x, *waves], 1)))[:, 0]


def _values(network, coordinates, where, shape) -> np.ndarray:
    out = np.zeros(shape, np.float32, order='F')
    with torch.no_grad():
        parts = [_field(network, part) for part in coordinates.split(CHUNK)]
    out[tuple(where.T)] = torch.cat(parts).numpy()
    return out
