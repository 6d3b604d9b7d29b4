"""Noise of single slices: non-local means (Manjon et al., JMRI 2010) that looks for patches in its own slice only."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.interfaces.ants_bridge import import_ants

PATCH, SEARCH = 1, 3  # pixels to each side


def denoised_slices(volume: Volume, axis: int) -> Volume:
    """``volume`` with the (Rician) noise of every slice reduced.

    Parameters
    ----------
    axis
        Stored axis across the slices: neighbours along it moved, and say nothing about a pixel.
    """
    ants = import_ants()
    slices = np.moveaxis(volume.data, axis, 0)
    out = slices.copy()
    for number, data in enumerate(slices):
        if data.min() == data.max():
            continue
        image = ants.from_numpy(np.ascontiguousarray(data))
        filtered = ants.denoise_image(image, p=PATCH, r=SEARCH, noise_model='Rician', shrink_factor=1).numpy()
        # What the filter makes of an empty background is not finite, or below zero.
        out[number] = np.where(np.isfinite(filtered) & (data > 0), np.maximum(filtered, 0), 0)
    return Volume(np.moveaxis(out, 0, axis), volume.lattice)
