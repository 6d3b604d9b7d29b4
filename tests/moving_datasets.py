"""A tiny BIDS dataset of stacks of slices that moved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bids_gsrecon.imaging.simulate_stacks import moving_stacks
from bids_gsrecon.interfaces.io import save_volume
from tests.bids_datasets import anat
from tests.phantoms import folded_head

SETTINGS = {
    'in_plane_mm': 2.0,
    'thickness_mm': 4.0,
    'rotation_deg': 2.0,
    'translation_mm': 1.0,
    'noise': 0.01,
}


def write_moving(root, label, session=None, suffix='T2w', masks=None, **options) -> list[Path]:
    """``run-N`` stacks of a head of 36 mm; with ``masks`` (a derivatives folder) also the masks there."""
    volume, mask = folded_head()
    folder, stem = anat(root, label, session)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, simulated in enumerate(moving_stacks(volume, mask, **{**SETTINGS, **options}), 1):
        stack, name = simulated.stack, f'{stem}_run-{number}'
        affine = stack.lattice.affine
        paths.append(save_volume(folder / f'{name}_{suffix}.nii.gz', stack.data, affine))
        sidecar = {'SliceThickness': stack.thickness_mm, 'SliceTiming': stack.acquisition_rank().tolist()}
        (folder / f'{name}_{suffix}.json').write_text(json.dumps(sidecar))
        if masks is not None:
            where = anat(masks, label, session)[0] / f'{name}_desc-brain_mask.nii.gz'
            save_volume(where, stack.mask, affine, dtype=np.uint8)
    return paths
