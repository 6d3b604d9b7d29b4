"""Changing the number of Gaussians: new ones where an image is not explained yet, none that do nothing."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.fields.gaussians import GaussianField


def residual_maxima(
    residual: np.ndarray, region: np.ndarray, n_most: int, threshold: float = 0.0
) -> np.ndarray:
    """Voxels (n, 3) where ``|residual|`` peaks among its six neighbours, the largest ``n_most`` of them.

    In stored order (not by size), so that equal inputs give equal fields.
    """
    magnitude = np.where(region, np.abs(residual), 0.0).astype(np.float32)
    cross = ndimage.generate_binary_structure(3, 1)
    peaks = (magnitude >= ndimage.maximum_filter(magnitude, footprint=cross)) & (magnitude > threshold)
    flat = np.flatnonzero(peaks)
    if len(flat) > n_most:
        sizes = magnitude.ravel()[flat]
        flat = np.sort(flat[np.argsort(-sizes, kind='stable')[:n_most]])
    return np.stack(np.unravel_index(flat, residual.shape), axis=1)


def isotropic_gaussians(means_mm, scale_mm: float, amplitudes, channels) -> GaussianField:
    """Round Gaussians of one size that add to an image (composition ``sum``)."""
    n = len(means_mm)
    quaternions = np.zeros((n, 4), np.float32)
    quaternions[:, 0] = 1.0
    return GaussianField(
        means_mm, np.full((n, 3), np.log(scale_mm)), quaternions, np.zeros(n), amplitudes, 'sum', channels
    )


def pruned(field: GaussianField, contribution: np.ndarray, least: float) -> GaussianField:
    """The field without the Gaussians whose ``contribution`` (N,) is below ``least``."""
    return field.selected(np.asarray(contribution) >= least)
