"""Self-supervision in plane: learn what the guided solve misses where the truth is known.

A thick slice is sharp in its own plane. Averaging it by the slice factor along an in-plane axis makes a
problem just like the real one, with a known answer; a small network learns the answer's difference from the
guided solve, from patches of the guide and of the solve, and is then applied across the slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange

from bids_gsrecon.recon.harmonize.guidance import guided_solve
from bids_gsrecon.recon.harmonize.slabs import SlabMean
from bids_gsrecon.solvers.laplacian import GuidedLaplacian


@dataclass(frozen=True)
class InPlaneOptions:
    """Size and schedule of the network; half widths are in fine voxels."""

    n_samples: int = 300_000
    n_held_out: int = 60_000
    n_epochs: int = 6
    batch_size: int = 1024
    learning_rate: float = 3e-3
    hidden: tuple[int, int] = (96, 64)
    half_width_across: int = 2
    max_half_width_along: int = 5


@dataclass(frozen=True, eq=False)
class DegradedProblem:
    """An in-plane problem with a known answer; every array is (stack, along, across), scaled to about 1.

    ``along`` is the degraded axis, cut to whole slabs; ``mask`` says where to learn.
    """

    truth: np.ndarray
    estimate: np.ndarray
    guide: np.ndarray
    mask: np.ndarray


def degrade_in_plane(slices, guide, mask, axis: int, factor: int, strength: float, bandwidth: float):
    """Average slices (ns, ny, nx) along in-plane ``axis`` (1 or 2) by ``factor`` and solve back with the guide.

    ``guide`` (ns, ny, nx) is the reference seen through the same slab as the slices.
    """
    n = slices.shape[axis] // factor
    truth, guide, mask = (
        np.ascontiguousarray(np.moveaxis(a, axis, 1)[:, : n * factor]) for a in (slices, guide, mask)
    )
    slabs = SlabMean(np.kron(np.eye(n), np.full((1, factor), 1.0 / factor)))
    along_first = [np.ascontiguousarray(a.transpose(1, 0, 2)) for a in (truth, guide)]
    # Slices of a stack are far apart: no edges between them.
    laplacian = GuidedLaplacian(along_first[1], bandwidth, spacing=(1.0, 99.0, 1.0))
    estimate = guided_solve(slabs, slabs.forward(along_first[0]), laplacian, strength).x
    return DegradedProblem(truth, np.ascontiguousarray(estimate.transpose(1, 0, 2)), guide, mask)


@njit(parallel=True, cache=True)
def _gather(guide, estimate, centres, half_along, half_across, out):
    """Raw patches of both images around centres (n, 3), edges repeated; axis 1 is along, axis 2 across."""
    _, na, nc = guide.shape
    width = 2 * half_across + 1
    size = (2 * half_along + 1) * width
    for i in prange(len(centres)):
        stack, a, c = centres[i]
        for da in range(-half_along, half_along + 1):
            a2 = min(max(a + da, 0), na - 1)
            for dc in range(-half_across, half_across + 1):
                c2 = min(max(c + dc, 0), nc - 1)
                j = (da + half_along) * width + dc + half_across
                out[i, j] = guide[stack, a2, c2]
                out[i, size + j] = estimate[stack, a2, c2]


@dataclass(eq=False)
class PatchNetwork:
    """Patches of guide and estimate, and the phase within a slab, to missing detail and its expected error.

    The first layer acts on raw patches: the standardisation it was trained with is folded into its weights.
    """

    half: tuple[int, int]
    n_phases: int
    first: torch.Tensor  # (2 * patch, h1)
    phase_bias: torch.Tensor  # (n_phases, h1)
    second: torch.Tensor  # (h1, h2)
    second_bias: torch.Tensor  # (h2,)
    last: torch.Tensor  # (h2, 2): detail, log of the squared error that is left
    last_bias: torch.Tensor  # (2,)
    error_range: tuple[float, float]  # of the logs seen on held-out pixels: the head is not extrapolated

    def __call__(self, guide, estimate, centres, phases) -> np.ndarray:
        """Detail and expected rms error (n, 2) at centres (n, 3) of (stack, along, across) images."""
        result = np.empty((len(centres), 2), np.float32)
        patches = np.empty((min(len(centres), 16384), self.first.shape[0]), np.float32)
        with torch.inference_mode():
            for low in range(0, len(centres), len(patches)):
                part = slice(low, low + len(patches))
                rows = patches[: len(centres[part])]
                _gather(guide, estimate, centres[part], *self.half, rows)
                hidden = torch.from_numpy(rows) @ self.first
                hidden += self.phase_bias[torch.from_numpy(phases[part])]
                hidden = torch.addmm(self.second_bias, hidden.relu_(), self.second).relu_()
                result[part] = torch.addmm(self.last_bias, hidden, self.last).numpy()
        result[:, 1] = np.exp(0.5 * np.clip(result[:, 1], *self.error_range))
        return result


def _centred(patches: np.ndarray) -> np.ndarray:
    """Each patch relative to its centre, the centre's own value in the centre's place."""
    size = patches.shape[1] // 2
    out = patches.copy()
    for low in (0, size):
        centre = patches[:, low + size // 2, None]
        out[:, low : low + size] -= centre
        out[:, low + size // 2] = centre[:, 0]
    return out


def train_in_plane(problems, factor: int, options: InPlaneOptions, seed: int, progress=None) -> PatchNetwork:
    """Fit a `PatchNetwork` to `DegradedProblem` s; deterministic (one thread, fixed order)."""
    rng = np.random.default_rng(seed)
    half = (min(options.max_half_width_along, factor), options.half_width_across)
    where = [np.argwhere(p.mask) for p in problems]
    total = sum(len(w) for w in where)
    if total < 2000:
        raise ValueError('too few voxels inside the mask to learn from the slices in plane')
    wanted = options.n_samples + options.n_held_out
    patches, phases, targets = [], [], []
    for problem, candidates in zip(problems, where):
        take = min(len(candidates), round(wanted * len(candidates) / total))
        centres = candidates[rng.choice(len(candidates), take, replace=False)]
        rows = np.empty((take, 2 * (2 * half[0] + 1) * (2 * half[1] + 1)), np.float32)
        _gather(problem.guide, problem.estimate, centres, *half, rows)
        patches.append(_centred(rows))
        phases.append(centres[:, 1] % factor)
        targets.append((problem.truth - problem.estimate)[tuple(centres.T)])
    patches, phases, targets = (np.concatenate(a) for a in (patches, phases, targets))
    order = rng.permutation(len(targets))
    n_train = len(order) - max(500, round(len(order) * options.n_held_out / wanted))
    mean, spread = patches.mean(0, dtype=np.float64), patches.std(0, dtype=np.float64) + 1e-4
    inputs = torch.from_numpy(((patches - mean) / spread).astype(np.float32))
    scale = float(targets.std()) + 1e-12
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so the weights, must not depend on the machine's cores
    try:
        parameters = _fit(
            inputs,
            torch.from_numpy(phases),
            torch.from_numpy(targets / np.float32(scale)),
            torch.from_numpy(order),
            n_train,
            factor,
            options,
            seed,
            rng,
            progress,
        )
    finally:
        torch.set_num_threads(threads)
    first, phase_bias, second, second_bias, last, last_bias, error_range = parameters
    # Fold the standardisation and the centring into the first layer.
    weights = first.double().numpy() / spread[:, None]
    phase_bias = phase_bias.double().numpy() - mean @ weights
    size = len(weights) // 2
    for low in (0, size):
        middle = low + size // 2
        others = weights[low : low + size].sum(0) - weights[middle]
        weights[middle] -= others
    last = last * torch.tensor([scale, 1.0])
    last_bias = last_bias * torch.tensor([scale, 1.0]) + torch.tensor([0.0, 2.0 * np.log(scale)])
    error_range = tuple(e + 2.0 * np.log(scale) for e in error_range)
    as_float = [torch.from_numpy(a.astype(np.float32)) for a in (weights, phase_bias)]
    return PatchNetwork(
        half, factor, *as_float, second, second_bias, last.float(), last_bias.float(), error_range
    )


def _fit(inputs, phases, targets, order, n_train, factor, options, seed, rng, progress):
    """Adam on the squared error of the training part, then the error head on the held-out part."""
    h1, h2 = options.hidden
    generator = torch.Generator().manual_seed(seed)

    def layer(n_in, n_out):
        return ((torch.rand(n_in, n_out, generator=generator) * 2 - 1) / n_in**0.5).requires_grad_()

    first, second, last = layer(inputs.shape[1], h1), layer(h1, h2), layer(h2, 1)
    phase_bias = torch.zeros(factor, h1, requires_grad=True)
    second_bias = torch.zeros(h2, requires_grad=True)
    last_bias = torch.zeros(1, requires_grad=True)
    parameters = [first, phase_bias, second, second_bias, last, last_bias]

    def features(index):
        hidden = torch.relu(inputs[index] @ first + phase_bias[phases[index]])
        return torch.relu(torch.addmm(second_bias, hidden, second))

    train, held_out = order[:n_train], order[n_train:]
    n_batches = max(1, n_train // options.batch_size)
    n_steps = n_batches * options.n_epochs
    optimizer = torch.optim.Adam(parameters, lr=options.learning_rate, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=n_steps + 1)
    step = 0
    for _ in range(options.n_epochs):
        shuffled = train[torch.from_numpy(rng.permutation(n_train))]
        for batch in shuffled.split(options.batch_size)[:n_batches]:
            prediction = torch.addmm(last_bias, features(batch), last)[:, 0]
            loss = ((prediction - targets[batch]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if progress is not None and step % 50 == 0:
                progress('learning in plane', step, n_steps)
    with torch.no_grad():
        # Ridge regression of the log squared error on the last hidden layer, from pixels never trained on.
        hidden = torch.cat([features(part) for part in held_out.split(8192)]).double()
        error = targets[held_out].double() - (hidden @ last.double())[:, 0] - last_bias.double()
        design = torch.cat([hidden, torch.ones(len(hidden), 1, dtype=torch.float64)], 1)
        wanted = torch.log(error**2 + 1e-4)
        gram = design.T @ design + 1e-2 * len(design) * torch.eye(design.shape[1], dtype=torch.float64)
        head = torch.linalg.solve(gram, design.T @ wanted)
        # The mean of the squares, not of their logs, is what must come out right.
        logs = design @ head
        low, high = torch.quantile(logs, torch.tensor([0.01, 0.98], dtype=torch.float64))
        ratio = torch.log((error**2).mean() / torch.exp(logs.clamp(low, high)).mean())
        error_bias = head[-1:] + ratio
        error_range = (float(low + ratio), float(high + ratio))
        last = torch.cat([last.double(), head[:-1, None]], 1)
        last_bias = torch.cat([last_bias.double(), error_bias])
    return [p.detach() for p in (first, phase_bias, second, second_bias)] + [last, last_bias, error_range]


def predict_across(network: PatchNetwork, guide, estimate, mask, phases) -> tuple[np.ndarray, np.ndarray]:
    """Missing detail and expected rms error, both (nz, ny, nx): means over the (z, x) and (z, y) planes.

    Parameters
    ----------
    guide, estimate
        (nz, ny, nx), scaled as in training.
    mask
        (nz, ny, nx) where to predict; zero elsewhere.
    phases
        (nz,) integers: position of every fine plane within its slab.
    """
    detail = np.zeros(estimate.shape, np.float32)
    error = np.zeros(estimate.shape, np.float32)
    phases = np.asarray(phases, dtype=np.int64)
    for order in ((1, 0, 2), (2, 0, 1)):  # planes first, z along, the other in-plane axis across
        g, e = (np.ascontiguousarray(a.transpose(order)) for a in (guide, estimate))
        centres = np.argwhere(mask.transpose(order))
        values = network(g, e, centres, phases[centres[:, 1]])
        detail.transpose(order)[tuple(centres.T)] += 0.5 * values[:, 0]
        error.transpose(order)[tuple(centres.T)] += 0.5 * values[:, 1]
    return detail, error
