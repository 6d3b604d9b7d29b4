"""Fully sampled series: the coils combined, nothing more."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.espirit import espirit_maps
from bids_gsrecon.imaging.kspace import CineKSpace
from bids_gsrecon.imaging.sense import centred_ifft


def coil_combined(kspace: CineKSpace) -> tuple[np.ndarray, np.ndarray]:
    """Images (T, x, y) complex64 in the units of the file, and the support (x, y) of the coils.

    Lines that were not acquired count as zero: meant for fully sampled data.
    """
    coils = espirit_maps(kspace.calibration(), kspace.hybrid.shape[2:])
    images = np.einsum('tcxy,cxy->txy', centred_ifft(kspace.hybrid, 3), coils.maps.conj(), optimize=True)
    return (images * (kspace.file_norm(coils.maps) * kspace.scale)).astype(np.complex64), coils.support
