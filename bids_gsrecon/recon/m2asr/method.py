"""GaussM2ASR: training, and use on whole volumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.m2asr.types import Applied, Checkpoint, Model, Pair, TrainingOptions
from bids_gsrecon.recon.progress import Progress


def train(
    pairs: Sequence[Pair],
    options: TrainingOptions | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Model:
    """Train a network on pairs.

    Coarse inputs are made from the sharp targets on the fly: the central block of the k-space of every slice, padded
    with zeros. Under ``torchrun`` (``WORLD_SIZE`` > 1 in the environment) every process works on draws of its own and
    gradients are averaged; all return the same model, and the one of rank 0 saves the checkpoint.

    Parameters
    ----------
    pairs
        Training and validation pairs together (`TrainingOptions.validation_subjects` tells which are which).
    options
        Every choice; default: `TrainingOptions()`.
    checkpoint
        Where to resume from and to save to; a resumed training of so many steps equals the undisturbed one.
    progress
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    InputError
        No training pair, slices too small, a checkpoint of another training.
    """
    raise NotImplementedError


def apply(
    model: Model,
    reference: np.ndarray,
    reference_lattice: Lattice,
    target: np.ndarray,
    target_lattice: Lattice,
    *,
    mask: np.ndarray | None = None,
    slice_axis: int | None = None,
    contrast: str = '',
    n_threads: int = 0,
    device: str = 'auto',
    progress: Progress | None = None,
) -> Applied:
    """Bring a target to the grid of its reference, slice by slice.

    Parameters
    ----------
    model
        Of `train`.
    reference, reference_lattice
        (X, Y, Z) and its grid: the grid of the result.
    target, target_lattice
        The coarse image: the same field of view and slices, directions alike, coarser in plane by any factors.
    mask
        (X, Y, Z) bool on the reference's grid: slices without any of it are only zero-filled; none: everything counts.
    slice_axis
        Array axis across slices; none: the axis along which both grids have the same voxels.
    contrast
        BIDS suffix of the target, if known, for the warning about contrasts that the model has not seen.
    n_threads
        0: all that are available.
    device
        ``auto``, ``cpu`` or ``cuda``.
    progress
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    InputError
        Fields of view or slices that do not fit, a factor outside (1, 6], values that are not finite.
    """
    raise NotImplementedError
