"""Weights of pixels and slices that contradict all others."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.recon.svr.pixels import Pixels
from bids_gsrecon.solvers.reductions import median

CAUCHY = 5.0  # scale, of the robust standard deviation of the residuals
TOLERANCE = 2.0  # excess over the typical residual of a slice at which it counts half
LEAST = 0.02  # of what is bright: no residual below that is suspect


def robust_weights(predicted: np.ndarray, pixels: Pixels, gains: np.ndarray) -> np.ndarray:
    """(N,) float32 Cauchy weights of pixels, times those of their slices.

    ``predicted`` (N,) is without the gains (M,).
    """
    p = pixels
    residual = p.residual(predicted, gains)
    scale = CAUCHY * 1.4826 * max(median(np.abs(residual)), LEAST)
    pixel = 1.0 / (1.0 + (residual / scale) ** 2)
    count = np.bincount(p.slice_of, minlength=p.n_slices)
    rms = np.sqrt(np.bincount(p.slice_of, residual**2, p.n_slices) / np.maximum(count, 1))
    typical = max(float(np.median(rms[count > 0])), LEAST)
    per_slice = 1.0 / (1.0 + (np.maximum(rms / typical - 1.0, 0.0) / TOLERANCE) ** 2)
    return (pixel * per_slice[p.slice_of]).astype(np.float32)
