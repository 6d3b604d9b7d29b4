"""Self-similarity: places that look alike are alike, and tell each other what the sampling lost.

Non-local means of the estimate, then back to what was acquired, in turns: the loop of non-local upsampling
(Manjon et al., Medical Image Analysis 2010), here on an estimate that is good already, so that few turns do.
"""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.nonlocal_means import local_deviation, nonlocal_means
from bids_gsrecon.imaging.sampling import Band, VoxelSampling, apply_band
from bids_gsrecon.solvers.cg import conjugate_gradient

# Strength h of each turn, of the local standard deviation (3^3 cells); tuned on one development case. Where a
# voxel holds many cells the start is further from the truth and gains by strong turns first.
WEAK_TURNS = (0.5, 0.5)
STRONG_TURNS = (1.0, 1.0, 0.5, 0.5)
MANY_CELLS = 20
# Voxels that skip most of the tissue leave more to their likes.
SKIPPING_TURNS = (1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5)
SKIPPED = 0.5
# ... and the last of these turns is repeated while it pays: while likes predict what was acquired better than in
# the turn before, by at least this share.
MOST_MORE_TURNS = 8
LEAST_GAIN = 0.005
LEAST_DEVIATION = 0.02  # of the image's
SPREAD = 0.33  # standard deviation of a correction, of the voxel spacing
NOISE = 0.005  # of a voxel's own part in the normal operator


def self_similar(
    estimate: np.ndarray, sampling: VoxelSampling, data: np.ndarray, region: np.ndarray, progress=None
) -> np.ndarray:
    """The estimate after the turns; all arrays (k, j, i), ``data`` and ``region`` on the acquired grid."""
    turns = _turns(sampling)
    most = len(turns) + (MOST_MORE_TURNS if turns is SKIPPING_TURNS else 0)
    least = np.float32(max(LEAST_DEVIATION * float(data[region].std()), 1e-4))  # of a constant image too
    back = Consistency(sampling)
    report = progress or (lambda stage, done, total: None)
    error = np.inf
    for turn in range(most):
        strength = turns[min(turn, len(turns) - 1)]
        deviation = np.maximum(local_deviation(estimate), least)
        smooth = nonlocal_means(estimate, 1.0 / (np.float32(strength) * deviation) ** 2)
        before = error
        error = np.linalg.norm((data - sampling.forward(smooth))[region])
        if turn >= len(turns) and error >= (1 - LEAST_GAIN) * before:
            report('self-similarity', most, most)
            break
        estimate = back(smooth, data, region)
        report('self-similarity', turn + 1, most)
    return estimate


def _turns(sampling: VoxelSampling) -> tuple[float, ...]:
    seen = sampling.adjoint(np.ones(sampling.coarse_shape, np.float32)) > 0
    if seen.mean() < SKIPPED:
        return SKIPPING_TURNS
    return STRONG_TURNS if seen.size >= MANY_CELLS * np.prod(sampling.coarse_shape) else WEAK_TURNS


class Consistency:
    """Brings an estimate back to the data by corrections that are smooth within a voxel.

    The least correction in the norm of K^-1, K a Gaussian blur of `SPREAD` voxels:
    ``x = e + K A^T (A K A^T + noise)^-1 (y - A e)``. Without K a point sample would become a spike.
    """

    def __init__(self, sampling: VoxelSampling):
        self.sampling = sampling
        self.blurs = [
            _blur(n, SPREAD * cells) if cells > 1 else None
            for n, cells in zip(sampling.fine_shape, _cells_per_voxel(sampling))
        ]
        one = np.zeros(sampling.coarse_shape, np.float32)
        middle = tuple(n // 2 for n in one.shape)
        one[middle] = 1
        self.noise = np.float32(NOISE) * sampling.forward(self._spread(sampling.adjoint(one)))[middle]

    def _spread(self, x: np.ndarray) -> np.ndarray:
        for axis, blur in enumerate(self.blurs):
            if blur is not None:
                x = apply_band(blur, x, axis)
        return x

    def __call__(self, estimate: np.ndarray, data: np.ndarray, region: np.ndarray) -> np.ndarray:
        """The corrected estimate; voxels of ``data`` outside ``region`` do not count."""
        weights = region.astype(np.float32)
        sampling = self.sampling

        def apply(c):
            return weights * sampling.forward(self._spread(sampling.adjoint(weights * c))) + self.noise * c

        missing = weights * (data - sampling.forward(estimate))
        solved = conjugate_gradient(apply, missing, max_iterations=8, tolerance=1e-3).x
        return estimate + self._spread(sampling.adjoint(weights * solved))


def _cells_per_voxel(sampling: VoxelSampling) -> tuple[float, ...]:
    return tuple(n / m for n, m in zip(sampling.fine_shape, sampling.coarse_shape))


def _blur(n: int, sigma: float) -> Band:
    """A symmetric Gaussian band matrix (n, n), cut at three sigma."""
    distance = np.abs(np.arange(n)[:, None] - np.arange(n)[None, :])
    kernel = np.where(distance <= 3 * sigma + 0.5, np.exp(-0.5 * (distance / sigma) ** 2), 0.0)
    return Band.from_dense(kernel / kernel.sum(1).max())
