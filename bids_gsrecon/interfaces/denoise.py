"""Noise of single slices: non-local means (Manjon et al., JMRI 2010) that looks for patches in its own slice only."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.interfaces.ants_bridge import import_ants, to_ants

PATCH, SEARCH = 1, 3  # pixels to each side


def denoised_slices(volume: Volume, axis: int) -> Volume:
    """``volume`` with the (Rician) noise of every slice reduced.

    Parameters
    ----------
    axis
        Stored axis across the slices: neighbours along it moved, and say nothing about a pixel.
    """
    patch, search = (
        'x'.join('0' if a == axis else str(radius) for a in range(3)) for radius in (PATCH, SEARCH)
    )
    ants = import_ants()
    data = ants.denoise_image(
        to_ants(volume), p=patch, r=search, noise_model='Rician', shrink_factor=1
    ).numpy()
    # What the filter makes of the empty background is not finite, or below zero.
    data = np.where(np.isfinite(data) & (volume.data > 0), np.maximum(data, 0), 0)
    return Volume(data.astype(np.float32), volume.lattice)
