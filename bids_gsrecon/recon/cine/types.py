"""What goes into and comes out of a cine reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bids_gsrecon.fields.dynamic import DynamicField2D

MODELS = ('auto', 'free')
LOSSES = ('l2', 'hdr')
VERDICTS = ('trust', 'check', 'do not use')


@dataclass(frozen=True)
class CineOptions:
    """Every choice of the method.

    Attributes
    ----------
    model
        ``auto``: few temporal modes, still tissue apart, in units of the noise; ``free``: as published, every
        frame has its own motion.
    n_gaussians
        0: one for every four pixels that hold signal.
    n_harmonics
        Of the heart beat, at the start: two modes each.
    iterations
        Steps of Adam at most, two in five of them on half of the frames (fewer once chi^2 is 1, or lines that were
        kept out say that enough was learnt); 0: 78, and 7500 of the published model.
    smoothness
        Strength of the graph that ties the modes of neighbours together, 0: none.
    activity
        A Gaussian moves where the activity is above this share of its maximum; 0: all do.
    learn_basis
        Let the time courses themselves follow the data.
    fall_back
        Add motion, and modes for drift, where chi^2 says that the model is too stiff.
    periodic
        The last frame is followed by the first.
    loss
        Of the published model.
    n_threads
        0: all that are available.
    """

    model: str = 'auto'
    n_gaussians: int = 0
    n_harmonics: int = 2
    iterations: int = 0
    smoothness: float = 20.0
    activity: float = 0.25
    learn_basis: bool = True
    fall_back: bool = True
    periodic: bool = True
    loss: str = 'hdr'
    n_threads: int = 0

    def __post_init__(self):
        if self.model not in MODELS or self.loss not in LOSSES:
            raise ValueError(f'the model is one of {MODELS} and the loss one of {LOSSES}')
        if (
            min(
                self.n_gaussians,
                self.n_harmonics,
                self.iterations,
                self.smoothness,
                self.activity,
                self.n_threads,
            )
            < 0
        ):
            raise ValueError('no option of the cine model may be negative')


@dataclass(eq=False)
class CineResult:
    """One slice.

    Attributes
    ----------
    images
        (T, x, y) complex64, in the units of the file.
    field
        The Gaussians; sampled again on any grid, at any time.
    support
        (x, y) bool: where there are coil sensitivities.
    chi2
        Mean squared residual in units of the noise: 1 is a perfect fit.
    rung
        How far the model had to fall back: 0 not at all, 1 more motion, 2 drift and more modes.
    verdict
        One of `VERDICTS`.
    reasons
        Why it is not ``trust``; sentences.
    figures
        Names and numbers.
    seconds
        By stage.
    """

    images: np.ndarray
    field: DynamicField2D
    support: np.ndarray
    chi2: float
    rung: int
    verdict: str
    reasons: tuple[str, ...]
    figures: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
