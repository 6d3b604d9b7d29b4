"""Small pairs of images on disk, and stand-ins for training and application."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_gsrecon.imaging.kspace_crop import crop_kspace, zero_filled
from bids_gsrecon.interfaces.io import save_volume
from bids_gsrecon.recon.m2asr.config import SIZES
from bids_gsrecon.recon.m2asr.network import Network
from bids_gsrecon.recon.m2asr.types import CARD_FORMAT, Applied, Model
from tests.phantoms import head

ADDED = 40.0  # what `fake_apply` adds to an image


def write_pairs(
    folder: Path, n: int = 2, *, factor: float = 2.0, shape=(40, 44, 36), slice_mm: float = 1.0
) -> Path:
    """``sub-NN_T1w.nii.gz``, ``sub-NN_T2w.nii.gz`` on one grid, and ``sub-NN_coarse_T2w.nii.gz`` (axial slices)."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.0, slice_mm, 1.0])
    for number in range(1, n + 1):
        t1w, t2w, *_ = head(shape, seed=number, affine=affine)
        save_volume(folder / f'sub-{number:02d}_T1w.nii.gz', t1w.data, t1w.affine)
        save_volume(folder / f'sub-{number:02d}_T2w.nii.gz', t2w.data, t2w.affine)
        coarse, lattice = crop_kspace(t2w.data, t2w.lattice, 2, factor)
        save_volume(folder / f'sub-{number:02d}_coarse_T2w.nii.gz', coarse, lattice.affine)
    return folder


def fake_model(size: str = 'tiny', **card) -> Model:
    """A network with the weights that it begins with."""
    config = SIZES[size].network
    state = {name: tensor.detach().clone() for name, tensor in Network(config).state_dict().items()}
    known = {
        'format': CARD_FORMAT,
        'size': size,
        'n_parameters': sum(tensor.numel() for tensor in state.values()),
        'scales': [1.0, 4.0],
        'contrasts': ['T2w'],
        'reference_contrast': 'T1w',
        'voxel_mm': [1.0, 1.0],
        'field_of_view_mm': [40.0, 44.0],
        'subjects': ['sub-01'],
        'validation_subjects': ['sub-02'],
        'steps': 3,
        'minutes': 0.1,
        'seed': 0,
        'versions': {'torch': '0'},
    }
    return Model(config, state, {**known, **card})


def fake_train(pairs, options=None, *, labels=(), checkpoint=None, store=None, progress=None) -> Model:
    """Goes through the pairs, saves a checkpoint, says how far it is."""
    known = (checkpoint.load() if checkpoint else None) or {'step': 0}
    subjects = []
    for number in range(len(pairs)):
        subjects.append(pairs[number].subject)
        if checkpoint:
            checkpoint.save({'step': known['step'] + number + 1})
        if progress:
            progress('training', number + 1, len(pairs))
    held_out = list(options.validation_subjects)
    scores = {'2': {'psnr_db': 30.0, 'zero_filled_db': 27.0}} if held_out else {}
    return fake_model(
        options.size,
        subjects=sorted(set(subjects) - set(held_out)),
        validation_subjects=held_out,
        contrasts=sorted({pairs[n].contrast for n in range(len(pairs))}),
        scores=scores,
        steps=known['step'] + len(pairs),
    )


def fake_apply(
    model,
    reference,
    reference_lattice,
    target,
    target_lattice,
    *,
    mask=None,
    slice_axis=None,
    contrast='',
    n_threads=0,
    device='auto',
    progress=None,
) -> Applied:
    """Zero-filled, a little brighter."""
    if progress:
        progress('slices', 1, 1)
    filled = zero_filled(target, target_lattice, reference_lattice, slice_axis)
    factors = np.delete(np.array(reference_lattice.shape) / np.array(target_lattice.shape), slice_axis)
    known = model.card['contrasts']
    warnings = (
        [] if contrast in known else [f'the network was trained on {", ".join(known)}, not on {contrast}']
    )
    return Applied(filled + np.float32(ADDED), filled, warnings, tuple(float(f) for f in factors))


@pytest.fixture
def fake(monkeypatch):
    """Replaces the method; what it is called with, by function."""
    from bids_gsrecon.recon.m2asr import method

    calls = {'train': [], 'apply': []}

    def train(*args, **kwargs):
        calls['train'].append((args, kwargs))
        return fake_train(*args, **kwargs)

    def apply(*args, **kwargs):
        calls['apply'].append((args, kwargs))
        return fake_apply(*args, **kwargs)

    monkeypatch.setattr(method, 'train', train)
    monkeypatch.setattr(method, 'apply', apply)
    return calls
