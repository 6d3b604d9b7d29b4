"""A small network from patches to the detail they lack, trained on the image itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange

from bids_gsrecon.recon.progress import Progress

FAINTEST = 0.02  # variance below which combinations of scaled features are not made as strong as the others


@njit(parallel=True, cache=True)
def _gather(image, centres, starts, size, reference, out):
    n0, n1, n2 = image.shape
    for i in prange(len(centres)):
        r = reference[i]
        p = 0
        for a in range(size[0]):
            x = min(max(starts[i, 0] + a, 0), n0 - 1)
            for b in range(size[1]):
                y = min(max(starts[i, 1] + b, 0), n1 - 1)
                for c in range(size[2]):
                    z = min(max(starts[i, 2] + c, 0), n2 - 1)
                    out[i, p] = image[x, y, z] - r
                    p += 1
        out[i, p] = r


@njit(parallel=True, cache=True)
def _gather_cells(image, centres, factors, out):
    for i in prange(len(centres)):
        p = 0
        for a in range(factors[0]):
            for b in range(factors[1]):
                for c in range(factors[2]):
                    out[i, p] = image[
                        centres[i, 0] * factors[0] + a,
                        centres[i, 1] * factors[1] + b,
                        centres[i, 2] * factors[2] + c,
                    ]
                    p += 1


@njit(parallel=True, cache=True)
def _add_cells(image, centres, factors, values, weight):
    for i in prange(len(centres)):
        p = 0
        for a in range(factors[0]):
            for b in range(factors[1]):
                for c in range(factors[2]):
                    image[
                        centres[i, 0] * factors[0] + a,
                        centres[i, 1] * factors[1] + b,
                        centres[i, 2] * factors[2] + c,
                    ] += weight * values[i, p]
                    p += 1


@dataclass(frozen=True)
class PatchShape:
    """Which values a patch holds: a box of ``image`` that reaches ``margin`` beyond one coarse voxel's cells.

    Attributes
    ----------
    factors
        (3,) cells of ``image`` per coarse voxel; 1 where ``image`` is the coarse image itself.
    margin
        (3,) cells more on both sides.
    """

    factors: tuple[int, int, int]
    margin: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int, int]:
        return tuple(f + 2 * m for f, m in zip(self.factors, self.margin))

    @property
    def n_features(self) -> int:
        return int(np.prod(self.size)) + 1

    def gather(self, image: np.ndarray, coarse: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """Features (n, n_features): the box relative to the coarse voxel's value, then that value.

        ``image`` and ``coarse`` are C-contiguous float32; ``centres`` (n, 3) index ``coarse``; the edges of
        ``image`` are repeated.
        """
        out = np.empty((len(centres), self.n_features), np.float32)
        starts = centres * np.array(self.factors) - np.array(self.margin)
        reference = coarse[tuple(centres.T)]
        _gather(image, centres, starts, np.array(self.size), reference, out)
        return out

    def flipped(self, axes) -> np.ndarray:
        """Order of the features after mirroring the patch along ``axes``."""
        index = np.flip(np.arange(self.n_features - 1).reshape(self.size), axes).ravel()
        return np.append(index, self.n_features - 1)


def mirrored_problems(shape: PatchShape, factors) -> list[tuple[np.ndarray, np.ndarray]]:
    """The mirrorings of patch and cells along every axis on which the patch is wide: eight at most."""
    cells = np.arange(int(np.prod(factors))).reshape(factors)
    wide = [axis for axis in range(3) if shape.size[axis] > 1]
    axes = [[a for bit, a in enumerate(wide) if code >> bit & 1] for code in range(2 ** len(wide))]
    return [(shape.flipped(a), np.flip(cells, a).ravel()) for a in axes]


def gather_cells(image, centres, factors) -> np.ndarray:
    """Values (n, prod(factors)) of the cells of coarse voxels ``centres`` (n, 3)."""
    out = np.empty((len(centres), int(np.prod(factors))), np.float32)
    _gather_cells(image, centres, np.array(factors), out)
    return out


def add_cells(image, centres, factors, values, weight: float) -> None:
    """In place: ``image`` at the cells of coarse voxels += weight * values (n, prod(factors))."""
    _add_cells(image, centres, np.array(factors), values, np.float32(weight))


@dataclass(frozen=True)
class TrainingOptions:
    """Schedule of the network."""

    n_samples: int = 300_000
    n_held_out: int = 20_000
    n_visits: int = 1_500_000  # patches seen in all, each several times in other mirrorings
    max_epochs: int = 60
    batch_size: int = 1024
    learning_rate: float = 3e-3
    hidden: tuple[int, int] = (128, 96)
    decorrelated: bool = False  # inputs: learns faster, and overfits sooner where patches are few


@dataclass(eq=False)
class DetailNetwork:
    """Features to detail in every cell of a coarse voxel.

    Attributes
    ----------
    parameters
        Three layers of weights and biases; the standardisation of inputs and outputs is folded in.
    gain
        The factor on the detail that minimised the error on patches never trained on, at most one; zero
        where the network explains nothing there.
    """

    parameters: list[torch.Tensor]
    gain: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        w1, b1, w2, b2, w3, b3 = self.parameters
        with torch.inference_mode():
            hidden = torch.addmm(b1, torch.from_numpy(features), w1).relu_()
            hidden = torch.addmm(b2, hidden, w2).relu_()
            return torch.addmm(b3, hidden, w3).numpy()


def train_detail(
    features: np.ndarray,
    targets: np.ndarray,
    flips: list[tuple[np.ndarray, np.ndarray]],
    *,
    seed: int,
    options: TrainingOptions = TrainingOptions(),
    progress: Progress | None = None,
    stage: str = 'learning detail',
) -> DetailNetwork:
    """Fit the network; every epoch sees each patch once, mirrored in a random one of ``flips``.

    Parameters
    ----------
    features, targets
        (n, f), (n, t); the last ``n_held_out`` (a tenth at most) are held out: order them so that they are
        far from the others.
    flips
        Orders of features and targets that leave the problem unchanged, the identity among them.
    """
    n_held = min(options.n_held_out, len(features) // 10)
    n = len(features) - n_held
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    # Of all mirrorings together: features can then be scaled once, before they are reordered.
    mean, variance = features[:n].mean(0, dtype=np.float64), features[:n].var(0, dtype=np.float64)
    mean = np.mean([mean[f] for f, _ in flips], 0)
    spread = np.sqrt(np.mean([variance[f] for f, _ in flips], 0)) + 1e-4
    scaled = (features[:n] - mean.astype(np.float32)) / spread.astype(np.float32)
    scale = float(targets[:n].std()) + 1e-12
    h1, h2 = options.hidden

    def layer(n_in, n_out):
        return ((torch.rand(n_in, n_out, generator=generator) * 2 - 1) / n_in**0.5).requires_grad_()

    parameters = [
        layer(features.shape[1], h1), torch.zeros(h1, requires_grad=True),
        layer(h1, h2), torch.zeros(h2, requires_grad=True),
        layer(h2, targets.shape[1]), torch.zeros(targets.shape[1], requires_grad=True),
    ]  # fmt: skip
    w1, b1, w2, b2, w3, b3 = parameters
    n_batches = max(1, n // options.batch_size)
    n_epochs = int(np.clip(round(options.n_visits / max(n, 1)), 3, options.max_epochs))
    n_steps = n_batches * n_epochs
    optimizer = torch.optim.Adam(parameters, lr=options.learning_rate, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=n_steps + 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so the weights, must not depend on the machine's cores
    try:
        # Values of a patch are nearly alike: unless decorrelated, steps along what sets them apart are too short.
        whitening = _whitening(scaled, flips) if options.decorrelated else torch.eye(scaled.shape[1])
        step = 0
        for _ in range(n_epochs):
            order = rng.permutation(n)
            which = rng.integers(0, len(flips), n_batches)
            for batch in range(n_batches):
                rows = order[batch * options.batch_size : (batch + 1) * options.batch_size]
                feature_order, target_order = flips[which[batch]]
                x = scaled[rows][:, feature_order]
                y = torch.from_numpy(targets[rows][:, target_order] / np.float32(scale))
                hidden = torch.addmm(b1, torch.from_numpy(x), whitening @ w1).relu()
                hidden = torch.addmm(b2, hidden, w2).relu()
                loss = ((torch.addmm(b3, hidden, w3) - y) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                if progress is not None and step % 50 == 0:
                    progress(stage, step, n_steps)
    finally:
        torch.set_num_threads(threads)
    weights = (whitening.double() @ w1.detach().double()).numpy() / spread[:, None]
    bias = b1.detach().double().numpy() - mean @ weights
    folded = [
        torch.from_numpy(weights.astype(np.float32)), torch.from_numpy(bias.astype(np.float32)),
        w2.detach(), b2.detach(), w3.detach() * scale, b3.detach() * scale,
    ]  # fmt: skip
    network = DetailNetwork(folded, 1.0)
    if n_held:
        predicted = network(features[n:])
        energy = float(np.sum(predicted.astype(np.float64) ** 2))
        network.gain = float(
            np.clip(np.sum(predicted * targets[n:], dtype=np.float64) / (energy + 1e-30), 0, 1)
        )
    return network


def _whitening(scaled: np.ndarray, flips) -> torch.Tensor:
    """(f, f): columns along which the features (n, f), in all orders of ``flips``, are uncorrelated, about 1."""
    part = torch.from_numpy(scaled[:: max(1, len(scaled) // 50_000)])
    covariance = (part.T @ part).double().numpy() / len(part)
    covariance = np.mean([covariance[np.ix_(f, f)] for f, _ in flips], 0)
    values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
    return (vectors / torch.sqrt(values.clamp_min(0) + FAINTEST)).float()


def apply_detail(
    network: DetailNetwork, shape: PatchShape, image, coarse, centres, flips, factors, out, weight
) -> None:
    """In place: add ``weight`` times the mean prediction over ``flips`` to the cells of ``centres`` in ``out``."""
    inverse = [(f, np.argsort(t)) for f, t in flips]
    for low in range(0, len(centres), 32768):
        part = centres[low : low + 32768]
        features = shape.gather(image, coarse, part)
        total = 0.0
        for feature_order, target_order in inverse:
            total = total + network(features[:, feature_order])[:, target_order]
        add_cells(out, part, factors, total, weight / len(flips))
