"""Thick slices: learn what lies across them from what lies in them.

A slice is sharp in its own plane. Averaged along an in-plane axis as the acquisition averaged across slices,
it makes a problem just like the real one with a known answer; a small network learns the answer's difference
from a linear reconstruction and is applied across the slices, in both planes that hold the slice axis. The idea
is that of SMORE (Zhao et al., IEEE TMI 2021).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.sampling import axis_weights
from bids_gsrecon.recon.progress import Progress
from bids_gsrecon.recon.superres.patches import (
    PatchShape,
    TrainingOptions,
    apply_detail,
    gather_cells,
    train_detail,
)

SMOOTHNESS = 1e-3  # of the linear reconstruction
# Weight of the mean of the two planes' details. Each is a conditional mean and shrunk; where they agree more is
# meant, and slices averaged over their thickness hold fainter detail than what lies across them. Tuned on one
# development case (1.4 was best there).
DETAIL_WEIGHT = 1.3
HALF_ALONG, HALF_ACROSS = 2, 4
MIN_PATCHES = 2000
TRAINING = TrainingOptions(n_visits=3_000_000, hidden=(192, 96))


@dataclass(frozen=True, eq=False)
class AcrossSlices:
    """Slices (s, y, x) of one stack, their fine planes, and the linear way from one to the other."""

    factor: int
    profile: SliceProfile
    spacing_mm: float

    def sampling(self, n_slices: int) -> np.ndarray:
        """(n_slices, n_slices * factor): what slices average."""
        cell = self.spacing_mm / self.factor
        centres = (np.arange(n_slices * self.factor) - (self.factor - 1) / 2) * cell
        return axis_weights(self.profile, n_slices, self.spacing_mm, centres, cell)

    def reconstruction(self, n_slices: int) -> np.ndarray:
        """(n_slices * factor, n_slices): the smoothest fine planes that have these averages."""
        sampling = self.sampling(n_slices)
        difference = np.diff(np.eye(sampling.shape[1]), axis=0)
        normal = sampling.T @ sampling + SMOOTHNESS * difference.T @ difference
        return np.linalg.solve(normal, sampling.T).astype(np.float32)

    def linear(self, slices: np.ndarray) -> np.ndarray:
        """Fine planes (s * factor, y, x) of slices (s, y, x)."""
        return np.ascontiguousarray(np.tensordot(self.reconstruction(len(slices)), slices, 1))


def slices_to_planes(
    slices: np.ndarray,
    region: np.ndarray,
    across: AcrossSlices,
    *,
    learn: bool,
    learnable_axes: tuple[int, ...],
    seed: int,
    progress: Progress,
) -> tuple[np.ndarray, dict[str, float]]:
    """Fine planes (s * factor, y, x) of slices (s, y, x) of about 1.

    Parameters
    ----------
    region
        (s, y, x) bool: where detail is learned and added.
    learn
        Whether to learn at all (else the linear reconstruction).
    learnable_axes
        In-plane axes (1, 2) fine enough to learn along.

    Returns
    -------
    planes, figures
        ``in_plane_gain`` is the factor on held-out patches.
    """
    slices = np.ascontiguousarray(slices, dtype=np.float32)
    planes = across.linear(slices)
    if not learn:
        return planes, {}
    factor = across.factor
    shape = PatchShape((1, 1, 1), (0, HALF_ALONG, HALF_ACROSS))
    flips = [
        (shape.flipped(axes), np.flip(np.arange(factor), 0) if 1 in axes else np.arange(factor))
        for axes in ([], [1], [2], [1, 2])
    ]
    features, targets, held = [], [], []
    for axis in learnable_axes:
        part = _degraded(slices, region, across, axis, shape, seed)
        if part is not None:
            for collected, value in zip((features, targets, held), part):
                collected.append(value)
    if sum(len(f) for f in features) < MIN_PATCHES:
        return planes, {'in_plane_gain': 0.0}
    features, targets, held = np.concatenate(features), np.concatenate(targets), np.concatenate(held)
    order = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
    network = train_detail(
        features[order],
        targets[order],
        flips,
        seed=seed,
        options=TRAINING,
        progress=progress,
        stage='learning in plane',
    )
    # (other in-plane axis, slices, this in-plane axis): the patch lies in the plane of the last two.
    for order in ((1, 0, 2), (2, 0, 1)):
        coarse = np.ascontiguousarray(slices.transpose(order))
        fine = np.zeros((coarse.shape[0], coarse.shape[1] * factor, coarse.shape[2]), np.float32)
        centres = np.argwhere(region.transpose(order))
        weight = 0.5 * DETAIL_WEIGHT * network.gain
        apply_detail(network, shape, coarse, coarse, centres, flips, (1, factor, 1), fine, weight)
        planes += fine.transpose(np.argsort(order))
    return planes, {'in_plane_gain': network.gain}


def _degraded(slices, region, across, axis, shape, seed):
    """Features, targets and held-out flags of the in-plane problem along ``axis`` (1 or 2)."""
    order = (0, axis, 3 - axis)
    truth, inside = (np.ascontiguousarray(a.transpose(order)) for a in (slices, region))
    factor = across.factor
    n = truth.shape[1] // factor
    if n < 2:
        return None
    truth, inside = np.ascontiguousarray(truth[:, : n * factor]), inside[:, : n * factor]
    # The same profile in units of the slice spacing, which is ``factor`` pixels here.
    unit = AcrossSlices(
        factor, replace(across.profile, thickness_mm=across.profile.thickness_mm / across.spacing_mm), 1.0
    )
    coarse = np.einsum('ck,skx->scx', unit.sampling(n).astype(np.float32), truth, optimize=True)
    estimate = np.einsum('kc,scx->skx', unit.reconstruction(n), coarse, optimize=True)
    coarse, estimate = (np.ascontiguousarray(a, dtype=np.float32) for a in (coarse, estimate))
    centres = np.argwhere(inside.reshape(len(inside), n, factor, -1).any(2))
    keep = TRAINING.n_samples // 2
    if len(centres) > keep:
        rng = np.random.default_rng(seed + axis)
        centres = centres[np.sort(rng.permutation(len(centres))[:keep])]
    cells = (1, factor, 1)
    target = gather_cells(truth, centres, cells) - gather_cells(estimate, centres, cells)
    held = ((centres // np.array([4, 8, 16])) @ np.array([73, 179, 283])) % 10 == 0
    return shape.gather(coarse, coarse, centres), target, held


def intermediate_lattice(lattice: Lattice, axis: int, factor: int) -> Lattice:
    """``lattice`` with every slice cut into ``factor`` planes."""
    factors = np.ones(3, int)
    factors[axis] = factor
    return lattice.refined(factors)
