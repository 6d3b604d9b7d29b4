"""Thick slices: learn what lies across them from what lies in them.

A slice is sharp in its own plane. Averaged along an in-plane axis as the acquisition averaged across slices,
it makes a problem just like the real one with a known answer; a small network learns the answer's difference
from a linear reconstruction and is applied across the slices, in both planes that hold the slice axis. The idea
is that of SMORE (Zhao et al., IEEE TMI 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.sampling import Band, VoxelSampling, axis_weights
from bids_gsrecon.recon.progress import Progress
from bids_gsrecon.recon.superres.patches import (
    DetailNetwork,
    PatchShape,
    TrainingOptions,
    apply_detail,
    gather_cells,
    mirrored_problems,
    train_detail,
)
from bids_gsrecon.recon.superres.similarity import self_similar

SMOOTHNESS = 1e-3  # of the linear reconstruction
# Weight of the mean of the two planes' details. Each is a conditional mean and shrunk; where they agree more is
# meant, and slices averaged over their thickness hold fainter detail than what lies across them. Tuned on one
# development case.
DETAIL_WEIGHT = 1.4
PATCH = PatchShape((1, 1, 1), (0, 2, 4))  # coarse voxels beyond the middle one: none, along, across
MIN_PATCHES = 2000
TRAINING = TrainingOptions(
    n_visits=3_000_000, max_epochs=12, learning_rate=6e-3, hidden=(192, 96), decorrelated=True
)


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

    def in_pixels(self) -> AcrossSlices:
        """The same where ``factor`` pixels take the place of one slice spacing."""
        thickness = self.profile.thickness_mm / self.spacing_mm
        return AcrossSlices(self.factor, replace(self.profile, thickness_mm=thickness), 1.0)


@dataclass(frozen=True, eq=False)
class Averaged:
    """An image whose axis 1 was averaged as slices are; (c, n, d) coarse, (c, n * factor, d) the others."""

    truth: np.ndarray
    coarse: np.ndarray
    estimate: np.ndarray  # linear
    region: np.ndarray  # of ``coarse``
    sampling: np.ndarray  # (n, n * factor)
    offset: int  # pixels left out before the first average

    def held_out(self, centres: np.ndarray) -> np.ndarray:
        """Which of ``centres`` (m, 3) of ``coarse`` lie in blocks that are not trained on (a tenth)."""
        factor = self.truth.shape[1] // self.coarse.shape[1]
        pixels = centres * np.array([1, factor, 1]) + np.array([0, self.offset, 0])
        return (pixels // np.array([4, 8 * factor, 16]) @ np.array([73, 179, 283])) % 10 == 0


def averaged(image, region, across: AcrossSlices, axis: int, offsets) -> Iterator[Averaged]:
    """``image`` (s, y, x) averaged along ``axis`` (1 or 2), which becomes axis 1, from each of ``offsets`` on."""
    order, factor, across = (0, axis, 3 - axis), across.factor, across.in_pixels()
    image, region = image.transpose(order), region.transpose(order)
    for offset in offsets:
        n = (image.shape[1] - offset) // factor
        if n < 2:
            return
        pixels = slice(offset, offset + n * factor)
        truth = np.ascontiguousarray(image[:, pixels])
        sampling, reconstruction = across.sampling(n), across.reconstruction(n)
        coarse = np.einsum('ck,skx->scx', sampling.astype(np.float32), truth, optimize=True)
        estimate = np.einsum('kc,scx->skx', reconstruction, coarse, optimize=True)
        coarse, estimate = (np.ascontiguousarray(a, dtype=np.float32) for a in (coarse, estimate))
        inside = region[:, pixels].reshape(len(region), n, factor, -1).any(2)
        yield Averaged(truth, coarse, estimate, inside, sampling, offset)


def slices_to_planes(
    slices: np.ndarray,
    region: np.ndarray,
    across: AcrossSlices,
    *,
    learn: bool,
    learnable_axes: tuple[int, ...],
    similar: bool,
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
    similar
        Whether places that look alike help each other (`self_similar`), as far as that helps in plane.

    Returns
    -------
    planes, figures
        ``in_plane_gain`` is the network's factor on held-out patches, ``self_similarity_gain`` that on what
        self-similarity changes.
    """
    slices = np.ascontiguousarray(slices, dtype=np.float32)
    planes = across.linear(slices)
    figures: dict[str, float] = {}
    network = None
    if learn and learnable_axes:
        network = _learn(slices, region, across, learnable_axes, seed, progress)
        figures['in_plane_gain'] = network.gain if network else 0.0
    if network:
        # (other in-plane axis, slices, this in-plane axis): the patch lies in the plane of the last two.
        for order in ((1, 0, 2), (2, 0, 1)):
            image = np.ascontiguousarray(slices.transpose(order))
            fine = np.zeros((image.shape[0], image.shape[1] * across.factor, image.shape[2]), np.float32)
            _add(network, image, region.transpose(order), across.factor, fine, 0.5 * DETAIL_WEIGHT)
            planes += fine.transpose(np.argsort(order))
    if similar:
        gain = _gain_of_likeness(slices, region, across, learnable_axes, network)
        figures['self_similarity_gain'] = gain
        if gain > 0:
            pixels = (Band.from_dense(np.eye(n)) for n in slices.shape[1:])
            sampling = VoxelSampling((Band.from_dense(across.sampling(len(slices))), *pixels))
            planes += gain * (self_similar(planes, sampling, slices, region, progress) - planes)
    return planes, figures


def _learn(slices, region, across, axes, seed, progress) -> DetailNetwork | None:
    """What averages along ``axes`` of ``slices`` lack; None where there is too little to learn from."""
    keep = TRAINING.n_samples // (len(axes) * across.factor)
    features, targets, held = [], [], []
    for axis in axes:
        rng = np.random.default_rng(seed + axis)
        for part in averaged(slices, region, across, axis, range(across.factor)):
            centres = np.argwhere(part.region)
            if len(centres) > keep:
                centres = centres[np.sort(rng.permutation(len(centres))[:keep])]
            cells = (1, across.factor, 1)
            features.append(PATCH.gather(part.coarse, part.coarse, centres))
            targets.append(
                gather_cells(part.truth, centres, cells) - gather_cells(part.estimate, centres, cells)
            )
            held.append(part.held_out(centres))
    if sum(len(f) for f in features) < MIN_PATCHES:
        return None
    features, targets, held = np.concatenate(features), np.concatenate(targets), np.concatenate(held)
    order = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
    return train_detail(
        features[order],
        targets[order],
        mirrored_problems(PATCH, (1, across.factor, 1)),
        seed=seed,
        options=TRAINING,
        progress=progress,
        stage='learning in plane',
    )


def _add(network, image, region, factor, fine, weight) -> None:
    """In place: what the network says of ``image``, coarse along axis 1, to ``fine``."""
    cells = (1, factor, 1)
    problems = mirrored_problems(PATCH, cells)
    centres = np.argwhere(region)
    apply_detail(network, PATCH, image, image, centres, problems, cells, fine, weight * network.gain)


def _gain_of_likeness(slices, region, across, axes, network) -> float:
    """By how much what `self_similar` changes is to be multiplied, 0..1: found in plane, where the truth is known.

    Noise and faint texture have no likes: where an image is rich in them its truth is, too. One where in-plane
    pixels are too coarse to tell.
    """
    product, energy = 0.0, 0.0
    for axis in axes:
        for part in averaged(slices, region, across, axis, (0,)):
            estimate, cells = part.estimate, (1, across.factor, 1)
            if network:
                _add(network, part.coarse, part.region, across.factor, estimate, 1.0)
            sides = (Band.from_dense(np.eye(n)) for n in (len(slices), slices.shape[3 - axis]))
            bands = (next(sides), Band.from_dense(part.sampling), next(sides))
            change = self_similar(estimate, VoxelSampling(bands), part.coarse, part.region) - estimate
            centres = np.argwhere(part.region)
            centres = centres[part.held_out(centres)]
            change = gather_cells(change, centres, cells)
            missing = gather_cells(part.truth - estimate, centres, cells)
            product += float(np.sum(change * missing, dtype=np.float64))
            energy += float(np.sum(change * change, dtype=np.float64))
    return float(np.clip(product / energy, 0, 1)) if energy > 0 else 1.0


def intermediate_lattice(lattice: Lattice, axis: int, factor: int) -> Lattice:
    """``lattice`` with every slice cut into ``factor`` planes."""
    factors = np.ones(3, int)
    factors[axis] = factor
    return lattice.refined(factors)
