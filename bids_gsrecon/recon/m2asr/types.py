"""What goes into and comes out of GaussM2ASR."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.m2asr.config import SIZES, NetworkConfig, Schedule

CARD_FORMAT = 1
"""Of `Model.card`; a model of another number is not read."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One subject's target contrast and its registered reference, on one grid: that of the sharp target.

    Attributes
    ----------
    subject, contrast
        Whose, and the target's BIDS suffix (``T2w``, ``FLAIR``); ``''``: unknown.
    reference, target
        (X, Y, Z) float32.
    lattice
        Of both.
    slice_axis
        Stored axis across slices: coarse images of this contrast are coarse along the two others.
    mask
        (X, Y, Z) bool, where pieces are drawn from and scores count; none: where the target is brighter than its background.
    reference_contrast
        The reference's BIDS suffix.

    Raises
    ------
    ValueError
        Grids that differ, values that are not finite, an image of one value.
    """

    subject: str
    contrast: str
    reference: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)
    lattice: Lattice
    slice_axis: int
    mask: np.ndarray | None = field(default=None, repr=False)
    reference_contrast: str = 'T1w'

    def __post_init__(self):
        for name in ('reference', 'target'):
            data = np.asarray(getattr(self, name), dtype=np.float32)
            if data.shape != self.lattice.shape:
                raise ValueError(
                    f'the {name} of {self.subject} has the shape {data.shape}, not that of the grid'
                    f' {self.lattice.shape}: register both images to one grid first'
                )
            if not np.isfinite(data).all():
                raise ValueError(f'the {name} of {self.subject} holds NaN or infinite values: replace them')
            if data.min() == data.max():
                raise ValueError(f'the {name} of {self.subject} has one value everywhere: leave it out')
            object.__setattr__(self, name, data)
        if self.mask is not None:
            mask = np.asarray(self.mask) > 0
            if mask.shape != self.lattice.shape:
                raise ValueError(f'the mask of {self.subject} is not on the grid of its images')
            object.__setattr__(self, 'mask', mask)
        if self.slice_axis not in (0, 1, 2):
            raise ValueError(f'the slice axis must be 0, 1 or 2, not {self.slice_axis}')


@dataclass(frozen=True)
class TrainingOptions:
    """Every choice of a training.

    Attributes
    ----------
    size
        A key of `config.SIZES`.
    max_minutes, max_steps
        Whichever comes first ends the training, its learning rate fallen to zero; none: the schedule of the size.
        Only a training without ``max_minutes`` has the same bits again.
    scales
        In-plane factors that are drawn, uniformly, inclusive.
    seed
        Of the weights and of every draw.
    n_threads
        0: all that are available.
    device
        ``auto``, ``cpu`` or ``cuda``.
    validation_subjects
        Left out of the training and scored at its end.
    synthetic_fraction
        Share of the draws with contrasts that are made up, every tissue with any brightness in either image, so that
        the model does not rely on how one sequence looks; of label maps, or of the pairs' own tissue classes.
    synthetic_weight
        Of the loss of these draws. Their errors are edges, all alike, and the mean gradient is four times that of real draws
        (seen after 400 steps of ``tiny``): with a weight of one, a share of 0.15 is 0.4 of the gradient, and costs
        0.3 dB.
    checkpoint_minutes
        Time between checkpoints.
    clock
        What ``max_minutes`` counts: ``wall`` time, or ``processor`` time of the process (all threads together),
        which does not depend on what else runs on the machine.
    network, schedule
        In place of those of ``size`` (for comparisons).
    """

    size: str = 'tiny'
    max_minutes: float | None = None
    max_steps: int | None = None
    scales: tuple[float, float] = (1.0, 4.0)
    seed: int = 0
    n_threads: int = 0
    device: str = 'auto'
    validation_subjects: tuple[str, ...] = ()
    synthetic_fraction: float = 0.0
    synthetic_weight: float = 0.5
    checkpoint_minutes: float = 5.0
    clock: str = 'wall'
    network: NetworkConfig | None = None
    schedule: Schedule | None = None

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f'there is no size {self.size!r}: choose one of {", ".join(SIZES)}')
        low, high = self.scales
        if not 1 <= low <= high <= 6:
            raise ValueError(f'the scales must rise and lie in 1 to 6, not {low:g} to {high:g}')
        if not 0 <= self.synthetic_fraction <= 1:
            raise ValueError(f'the synthetic fraction must lie in 0 to 1, not {self.synthetic_fraction:g}')
        if not self.synthetic_weight > 0:
            raise ValueError(f'the weight of made-up draws must be positive, not {self.synthetic_weight:g}')
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f'the training time must be positive, not {self.max_minutes:g} minutes')
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f'the number of steps must be positive, not {self.max_steps}')
        if self.clock not in ('wall', 'processor'):
            raise ValueError(f'the clock must be wall or processor, not {self.clock!r}')


@dataclass(eq=False)
class Model:
    """A trained network.

    Attributes
    ----------
    config
        What to build.
    state
        Its weights (the running mean of the training's end), float32, on the CPU.
    card
        Facts for people and for warnings, JSON-able: ``format``, ``size``, ``n_parameters``, ``scales``,
        ``contrasts``, ``reference_contrast``, ``voxel_mm`` (in plane, smallest and largest), ``field_of_view_mm``,
        ``subjects``, ``validation_subjects``, ``steps``, ``minutes``, ``seed``, ``losses``, ``scores``, ``versions``.
    """

    config: NetworkConfig
    state: dict[str, torch.Tensor] = field(repr=False)
    card: dict


@dataclass(eq=False)
class Applied:
    """A target on the grid of its reference.

    Attributes
    ----------
    image
        (X, Y, Z) float32 on the reference's grid, in the units of the target.
    zero_filled
        The same before the network.
    warnings
        Where the input is not like what the model was trained on; one sentence each.
    scale
        In-plane factors, target voxel over reference voxel, by array axis.
    """

    image: np.ndarray = field(repr=False)
    zero_filled: np.ndarray = field(repr=False)
    warnings: list[str]
    scale: tuple[float, float]


class Store(Protocol):
    """Where arrays are kept that may not all fit into memory."""

    def load(self, name: str) -> tuple[dict[str, np.ndarray], dict] | None:
        """What was saved under this name: arrays of which only those parts are read that are looked at, and facts."""

    def save(
        self, name: str, arrays: dict[str, np.ndarray], facts: dict
    ) -> tuple[dict[str, np.ndarray], dict]:
        """Keep arrays and JSON-able facts; return them as `load` does."""


class UnfitCheckpointError(ValueError):
    """A checkpoint that a training cannot go on from: "it ..."."""


class Checkpoint(Protocol):
    """Where a training that is cut short leaves off."""

    def load(self) -> dict | None:
        """What `save` was given last; None if there is nothing."""

    def save(self, state: dict) -> None:
        """Keep ``state`` (nested dictionaries and lists of tensors, numbers and strings) in place of the last."""
