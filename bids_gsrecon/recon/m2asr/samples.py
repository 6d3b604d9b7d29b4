"""What a training step sees: pieces of slices, made coarse on the fly.

Volumes are cut to the box of their signal once. A slice is acquired (cropped k-space, magnitude) and zero-filled again
by small matrix products (`imaging.kspace_crop`), so only sharp slices are kept, in memory or in a `types.Store`, and every
scale is as cheap. The magnitude in between matters: it folds the ringing around a head back to positive values,
and a network that has not seen that is worse at the rim (half a dB in the mask at x4, on the benchmark).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from bids_gsrecon.imaging.foreground import background_value, bounding_box, foreground_threshold
from bids_gsrecon.imaging.kspace_crop import band_limited, coarse_side, in_plane_axes
from bids_gsrecon.recon.m2asr.synthetic import LabelMap, random_contrasts, tissue_classes
from bids_gsrecon.recon.m2asr.types import Pair, Store

GAIN = 0.15  # spread (log) of the brightness of either image: percentiles of another head may differ by it
GAMMA = 0.15  # spread (log) of the reference's exponent
RINGING = 16  # coarse pixels beyond the box of the mask that an acquired slice is looked at
NEARLY_ISOTROPIC = 1.15  # ratio of voxel sides below which slices are cut across all three axes
GEOMETRY = ('shape', 'start', 'full')


def intensity_range(image: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
    """(low, span) of the affine map to about 0..1: from the background to the 99.5th percentile of the signal, in
    ``mask`` or above the background."""
    low = background_value(image)
    inside = image[image > foreground_threshold(image)] if mask is None else image[mask]
    span = float(np.percentile(inside, 99.5)) - low if inside.size else 0.0
    return low, span if span > 0 else max(float(np.ptp(image)), 1e-6)


def signal(pair: Pair) -> np.ndarray:
    """(X, Y, Z) bool: the pair's mask, or where its target is brighter than the background."""
    return pair.target > foreground_threshold(pair.target) if pair.mask is None else pair.mask


@dataclass(eq=False)
class Subject:
    """A pair, normalised and cut to the box of its mask.

    Attributes
    ----------
    planes
        By axis, (N, 2, h, w) float32: target and reference of every slice across it; a slice is read when it is drawn.
    labels
        By axis, (N, h, w) int16: their tissue classes; empty unless contrasts are to be made up.
    places
        (M,) voxels of the mask, numbered through the box in C order.
    shape, start, full
        (3,) of the box, where it begins, and of the whole grid: the field of view of k-space.
    facts
        About the pair, for the card, JSON-able: ``subject``, ``contrast``, ``reference_contrast``, and in plane
        ``voxel_mm`` and ``field_of_view_mm``.
    """

    planes: dict[int, np.ndarray]
    labels: dict[int, np.ndarray]
    places: np.ndarray
    shape: tuple[int, ...]
    start: tuple[int, ...]
    full: tuple[int, ...]
    facts: dict

    @classmethod
    def of(cls, pair: Pair, patch: int, with_labels: bool) -> Subject:
        """Cut and normalise.

        Raises
        ------
        ValueError
            Slices smaller than a patch; an empty mask.
        """
        mask = signal(pair)
        if not mask.any():
            raise ValueError(f'the mask of {pair.subject} is empty: leave the subject or the mask out')
        axes = slice_axes(pair.lattice, pair.slice_axis, patch)
        start, stop = _box(mask, patch, axes, pair.subject)
        cut = tuple(slice(a, b) for a, b in zip(start, stop))
        images = []
        for image in (pair.target, pair.reference):
            low, span = intensity_range(image, pair.mask)
            images.append((image[cut] - low) / span)
        images = np.stack(images).astype(np.float32)
        planes = {axis: np.moveaxis(images, axis - 3, 0) for axis in axes}
        labels = _by_axis(tissue_classes(images, mask[cut]), axes) if with_labels else {}
        in_plane = list(in_plane_axes(pair.slice_axis))
        sizes = pair.lattice.voxel_sizes_mm[in_plane]
        facts = {
            'subject': pair.subject,
            'contrast': pair.contrast,
            'reference_contrast': pair.reference_contrast,
            'voxel_mm': sizes.tolist(),
            'field_of_view_mm': (sizes * np.array(mask.shape)[in_plane]).tolist(),
        }
        return cls(planes, labels, *_geometry(mask, start, cut), facts)

    @classmethod
    def of_labels(cls, labels: LabelMap, patch: int) -> Subject:
        """Of a label map: no images, only contrasts that are made up."""
        mask = labels.labels > 0
        axes = slice_axes(labels.lattice, labels.lattice.coarsest_axis, patch)
        start, stop = _box(mask, patch, axes, 'the label map')
        cut = tuple(slice(a, b) for a, b in zip(start, stop))
        return cls({}, _by_axis(labels.labels[cut], axes), *_geometry(mask, start, cut), {})

    @classmethod
    def kept(cls, store: Store | None, name: str, make: Callable[[], Subject]) -> Subject:
        """What ``make`` returns, its slices in ``store``: from there if they are there already; None: in memory."""
        if store is None:
            return make()
        if (found := store.load(name)) is None:
            found = store.save(name, *make()._parts())
        arrays, facts = found
        by_axis = {
            kind: {int(key[-1]): array for key, array in arrays.items() if key[:-1] == kind}
            for kind in ('planes', 'labels')
        }
        geometry = {key: tuple(facts[key]) for key in GEOMETRY}
        return cls(**by_axis, places=arrays['places'], **geometry, facts=facts['facts'])

    def _parts(self) -> tuple[dict[str, np.ndarray], dict]:
        """For a store: arrays by name, and the rest. Numbers of two bytes come last, so that all lie aligned."""
        planes = {f'planes{axis}': array for axis, array in self.planes.items()}
        labels = {f'labels{axis}': array for axis, array in self.labels.items()}
        facts = {name: list(getattr(self, name)) for name in GEOMETRY}
        return {**planes, 'places': self.places, **labels}, {**facts, 'facts': self.facts}

    @property
    def axes(self) -> tuple[int, ...]:
        """Across which slices are cut."""
        return tuple(self.planes or self.labels)

    def place(self, number: int) -> tuple[int, ...]:
        """A voxel of the mask, in the box."""
        return tuple(int(i) for i in np.unravel_index(self.places[number], self.shape))

    def draw(self, rng: np.random.Generator, patch: int, factor: float, synthetic: bool):
        """Zero-filled target, reference and target (patch, patch) of a random place, and n / m."""
        axis = int(rng.choice(self.axes))
        place = self.place(rng.integers(len(self.places)))
        plane = (self.labels if synthetic else self.planes)[axis][place[axis]]
        if synthetic:
            plane = random_contrasts(plane, rng)
        first, second = (a for a in range(3) if a != axis)
        ranges, cropping, filling, ratio = [], [], [], 1.0
        for a in (first, second):
            size = plane.shape[1 + (a == second)]
            low = int(np.clip(place[a] - rng.integers(patch), 0, size - patch)) if patch else 0
            ranges.append(slice(low, low + (patch or size)))
            n = self.full[a]
            side = coarse_side(n, factor)
            crop, fill = _matrices(n, side, self.start[a], size)
            cropping.append(crop)
            filling.append(fill[ranges[-1]])
            ratio *= n / side
        sharp = plane[(slice(None), *ranges)]
        coarse = sharp[0]
        if factor > 1:
            # torch, whose threads are the caller's to limit; numpy's BLAS has its own.
            whole = torch.from_numpy(np.ascontiguousarray(plane[0]))
            acquired = (cropping[0] @ whole @ cropping[1].T).abs()
            coarse = (filling[0] @ acquired @ filling[1].T).abs().numpy()
        return np.stack([coarse, sharp[1], sharp[0]]), ratio**0.5


@dataclass(eq=False)
class Sampler:
    """Draws batches; the draw of a step depends on (seed, rank, step) alone.

    Attributes
    ----------
    subjects, made_up
        Real pairs, and what made-up contrasts are drawn from.
    patch
        0: whole slices (of one size).
    synthetic_weight
        Of the loss of a made-up draw, that of a real one being 1.
    """

    subjects: list[Subject]
    made_up: list[Subject]
    patch: int
    batch: int
    synthetic_fraction: float
    seed: int
    synthetic_weight: float = 1.0

    def draw(
        self, step: int, rank: int, scales: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(3, B, h, w) float32: zero-filled, reference, target; (B,) scales; and weights, none where all are alike."""
        rng = np.random.default_rng([self.seed, rank, step])
        samples, ratios, weights = [], [], []
        for _ in range(self.batch):
            synthetic = rng.random() < self.synthetic_fraction
            group = self.made_up if synthetic else self.subjects
            subject = group[rng.integers(len(group))]
            sample, ratio = subject.draw(rng, self.patch, rng.uniform(*scales), synthetic)
            samples.append(_augmented(sample, rng))
            ratios.append(ratio)
            weights.append(self.synthetic_weight if synthetic else 1.0)
        alike = not self.synthetic_fraction or self.synthetic_weight == 1
        weights = None if alike else np.array(weights, np.float32)
        return np.stack(samples, 1), np.array(ratios, np.float32), weights


@lru_cache(maxsize=512)
def _matrices(n: int, m: int, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Along an axis of n pixels, m of them acquired: box (start, size) to samples, and these to the box zero-filled.

    Of the samples those near the box: further out there is only faint ringing.
    """
    box = start + np.arange(size)
    samples = (np.arange(m) + 0.5) * n / m - 0.5
    near = np.flatnonzero(np.abs(samples - box.mean()) <= size / 2 + RINGING * n / m)
    crop = band_limited(samples[near] - start, n, m, size)
    fill = band_limited((box + 0.5) * m / n - 0.5 - near[0], m, m, len(near))
    return torch.from_numpy(crop.astype(np.float32)), torch.from_numpy(fill.astype(np.float32))


def _augmented(sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flipped, transposed (if square), with other brightness; the target and its coarse image alike."""
    if rng.random() < 0.5:
        sample = sample[:, ::-1]
    if rng.random() < 0.5:
        sample = sample[:, :, ::-1]
    if sample.shape[1] == sample.shape[2] and rng.random() < 0.5:
        sample = sample.transpose(0, 2, 1)
    gains = np.exp(rng.uniform(-GAIN, GAIN, 2)).astype(np.float32)
    gamma = np.float32(np.exp(rng.uniform(-GAMMA, GAMMA)))
    out = sample * gains[[0, 1, 0], None, None]
    out[1] = gains[1] * np.maximum(sample[1], 0) ** gamma
    return out


def _by_axis(volume: np.ndarray, axes) -> dict[int, np.ndarray]:
    return {axis: np.moveaxis(volume, axis, 0) for axis in axes}


def _geometry(mask: np.ndarray, start, cut):
    """Places, shape, start and full of a box of a mask."""
    inside = mask[cut]
    places = np.flatnonzero(inside)
    if inside.size < 2**31:
        places = places.astype(np.int32)
    return places, inside.shape, tuple(int(a) for a in start), mask.shape


def slice_axes(lattice, slice_axis: int, patch: int) -> tuple[int, ...]:
    """Across which slices are cut: all three of isotropic voxels, where the planes hold a patch."""
    sizes = lattice.voxel_sizes_mm
    isotropic = sizes.max() <= NEARLY_ISOTROPIC * sizes.min()
    wide = [a for a in range(3) if min(n for b, n in enumerate(lattice.shape) if b != a) >= max(patch, 8)]
    return tuple(wide) if isotropic and wide else (slice_axis,)


def _box(mask: np.ndarray, patch: int, axes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Box of the mask, two voxels wider, at least a patch wide where slices are cut (and the grid is)."""
    size = np.array(mask.shape)
    low, high = bounding_box(mask)
    low, high = np.maximum(low - 2, 0), np.minimum(high + 2, size)
    in_plane = [a for a in range(3) if any(a != axis for axis in axes)]
    for a in in_plane:
        lacking = max(patch - (high[a] - low[a]), 0)
        low[a] = max(0, min(low[a] - lacking // 2, size[a] - patch))
        high[a] = min(size[a], max(high[a], low[a] + patch))
        if high[a] - low[a] < max(patch, 8):
            raise ValueError(f'the slices of {name} are smaller than {max(patch, 8)} pixels: leave it out')
    return low, high
