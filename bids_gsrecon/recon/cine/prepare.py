"""What precedes the Gaussians: coil maps, encoding, and the quick linear reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_gsrecon.imaging.espirit import CoilMaps, espirit_maps
from bids_gsrecon.imaging.kspace import CineKSpace
from bids_gsrecon.imaging.sense import SenseSeries
from bids_gsrecon.recon.cine.subspace import fourier_basis, outlier_lines, subspace_sense

MAX_REPAIRS = 3


@dataclass(eq=False)
class Prepared:
    """What precedes the Gaussians: maps, encoding, and the quick linear reconstruction.

    Attributes
    ----------
    kspace
        The data, without lines that contradict the others.
    coils
        Sensitivities.
    series
        Encoding and data in units of the noise.
    linear
        (1 + K, x, y) mean and modes of the linear reconstruction.
    n_dropped
        Lines left out.
    """

    kspace: CineKSpace
    coils: CoilMaps
    series: SenseSeries
    linear: np.ndarray
    n_dropped: int


def prepare(kspace: CineKSpace, n_harmonics: int, *, fewer_coils: bool = True) -> Prepared:
    """Maps and linear reconstruction; lines that contradict it are left out, and both made again.

    ``fewer_coils``: what noise alone fills of a row's coils is left out, see `SenseSeries.with_fewer_coils`.
    """
    n_before = int(kspace.mask.sum())
    for attempt in range(MAX_REPAIRS + 1):
        coils = espirit_maps(kspace.calibration(), kspace.hybrid.shape[2:])
        if not coils.support.any():
            raise ValueError('it has no signal that its coils agree on: check the calibration lines')
        series = SenseSeries(coils.maps / kspace.file_norm(coils.maps), kspace.hybrid, kspace.weights)
        series = series.with_fewer_coils() if fewer_coils else series
        basis = fourier_basis(series.n_frames, n_harmonics)
        linear = subspace_sense(series, basis)
        if attempt < MAX_REPAIRS:
            frames = linear[0] + np.tensordot(basis, linear[1:], (1, 0))
            bad = outlier_lines(series, frames.astype(np.complex64), kspace.weights)
            if not bad.any():
                break
            kspace = kspace.without(bad)
    return Prepared(kspace, coils, series, linear, n_before - int(kspace.mask.sum()))
