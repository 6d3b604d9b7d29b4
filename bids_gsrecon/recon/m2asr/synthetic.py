"""Contrasts that no scanner has: training on some of them keeps a model from relying on how one sequence looks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from bids_gsrecon.imaging.lattice import Lattice

CLASSES = 12
AT_ONCE = 100_000  # voxels whose distances to all classes are in memory


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Tissue labels (X, Y, Z), 0 outside, on a grid."""

    labels: np.ndarray = field(repr=False)
    lattice: Lattice

    def __post_init__(self):
        # Numbered from 0 without gaps, so that a label is a place in a table.
        _, numbered = np.unique(self.labels, return_inverse=True)
        numbered = numbered.reshape(self.labels.shape)
        if self.labels.min() > 0:
            numbered = numbered + 1
        object.__setattr__(self, 'labels', numbered.astype(np.int16))


def tissue_classes(images: np.ndarray, mask: np.ndarray, n: int = CLASSES, seed: int = 0) -> np.ndarray:
    """(X, Y, Z) int16 classes 1..n of like intensities in both images (2, X, Y, Z); 0 outside the mask."""
    values = images[:, mask].T.astype(np.float64)
    rng = np.random.default_rng(seed)
    some = values[rng.choice(len(values), min(len(values), 20_000), replace=False)]
    centres, _ = kmeans2(some, n, minit='++', seed=rng)
    labels = np.zeros(mask.shape, np.int16)
    nearest = [
        ((some[:, None] - centres) ** 2).sum(-1).argmin(1)
        for some in np.array_split(values, len(values) // AT_ONCE + 1)
    ]
    labels[mask] = np.concatenate(nearest) + 1
    return labels


def random_contrasts(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(2, H, W) float32, target and reference of a slice of labels: every tissue has any brightness in either.

    Edges are softened as a scanner's are, and tissues have a little texture of their own.
    """
    n = int(labels.max()) + 1
    out = []
    for _ in range(2):
        table = rng.uniform(0, 1, n).astype(np.float32)
        table[0] = 0
        image = table[labels]
        image *= 1 + 0.04 * rng.standard_normal(image.shape, dtype=np.float32)
        out.append(ndimage.gaussian_filter(image, rng.uniform(0.4, 0.7)))
    return np.stack(out)
