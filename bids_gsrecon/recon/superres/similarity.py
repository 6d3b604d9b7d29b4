"""Self-similarity: places that look alike are alike, and tell each other what the sampling lost.

Non-local means of the estimate, then back to what was acquired, in turns: the loop of non-local upsampling
(Manjon et al., Medical Image Analysis 2010), here on an estimate that is good already, so that two weak turns do.
"""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.nonlocal_means import local_deviation, nonlocal_means
from bids_gsrecon.imaging.sampling import VoxelSampling
from bids_gsrecon.solvers.cg import conjugate_gradient

N_TURNS = 2
STRENGTH = 0.5  # h, of the local standard deviation (3^3 cells)
LEAST_DEVIATION = 0.02  # of the image's
TRUST = 0.02  # weight of the estimate against the data


def self_similar(
    estimate: np.ndarray, sampling: VoxelSampling, data: np.ndarray, region: np.ndarray, progress=None
) -> np.ndarray:
    """The estimate after the turns; all arrays (k, j, i), ``data`` and ``region`` on the acquired grid."""
    least = np.float32(LEAST_DEVIATION * data[region].std())
    for turn in range(N_TURNS):
        deviation = np.maximum(local_deviation(estimate), least)
        smooth = nonlocal_means(estimate, 1.0 / (np.float32(STRENGTH) * deviation) ** 2)
        estimate = consistent(smooth, sampling, data, region)
        if progress is not None:
            progress('self-similarity', turn + 1, N_TURNS)
    return estimate


def consistent(
    estimate: np.ndarray, sampling: VoxelSampling, data: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """``min |A x - y|^2 + TRUST / n |x - e|^2`` with n cells per voxel, x = e where nothing was acquired."""
    weights = region.astype(np.float32)
    mu = np.float32(TRUST * data.size / estimate.size)

    def apply(p):
        return sampling.adjoint(weights * sampling.forward(p)) + mu * p

    right = sampling.adjoint(weights * (data - sampling.forward(estimate)))
    correction = conjugate_gradient(
        apply,
        right,
        inverse_diagonal=1.0 / (sampling.diagonal(weights) + mu),
        max_iterations=6,
    ).x
    return estimate + correction
