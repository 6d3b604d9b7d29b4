"""Tiny files of k-space on disk, and a stand-in for the method."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from bids_gsrecon.fields.dynamic import DynamicField2D
from bids_gsrecon.imaging.cine_simulate import simulate_phantom
from bids_gsrecon.imaging.ismrmrd_write import write_cine
from bids_gsrecon.recon.cine.reference import coil_combined
from bids_gsrecon.recon.cine.types import CineResult

SHAPE, FRAMES, COILS = (32, 25), 5, 4


@lru_cache(maxsize=8)
def _slice(acceleration: float, number: int, coils: int):
    return simulate_phantom(SHAPE, FRAMES, kind='soft', n_coils=coils, acceleration=acceleration, seed=number)


def write_kspace(
    root, label='01', session=None, entities='', *, acceleration=2.0, slices=1, coils=COILS, extension='.h5'
) -> Path:
    """``sourcedata/sub-<label>/[ses-<session>/]cmr/..._cine.h5`` of a beating heart."""
    folder = Path(root) / 'sourcedata' / f'sub-{label}'
    folder = (folder / f'ses-{session}' if session else folder) / 'cmr'
    folder.mkdir(parents=True, exist_ok=True)
    stem = f'sub-{label}_ses-{session}' if session else f'sub-{label}'
    path = folder / f'{stem}{entities}_cine{extension}'
    write_cine(path, [_slice(acceleration, number, coils) for number in range(slices)])
    return path


def fake_cine(kspace, options, *, seed=0, progress=None) -> CineResult:
    """The images of the lines that there are, and three Gaussians, of which one moves."""
    images, support = coil_combined(kspace)
    base = np.array([[8, 8, 3, 0, 3, 1, 0], [16, 12, 3, 0, 3, 1, 0], [24, 16, 3, 0, 3, 1, 0]], np.float32)
    angles = 2 * np.pi * np.arange(len(images)) / len(images)
    basis = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    modes = np.zeros((2, 1, 7), np.float32)
    modes[0, 0, 0] = 0.5
    field = DynamicField2D(base, modes, basis)
    figures = {'chi2': 1.7, 'unexplained_share': 0.01, 'gaussians': 3, 'moving_gaussians': 1, 'modes': 2}
    return CineResult(
        images, field, support, 1.7, 0, 'check', ('chi^2 is 1.70: something moves',), figures, {'all': 1.0}
    )
