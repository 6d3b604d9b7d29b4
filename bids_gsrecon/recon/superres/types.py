"""What goes into and comes out of a super-resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Lattice

MODELS = ('auto', 'physics')


@dataclass(frozen=True)
class SuperresOptions:
    """Every choice of the method.

    Attributes
    ----------
    model
        ``physics``: the published model (normalised Gaussians with amplitude and relaxation proxy) through the
        true forward model, nothing else. ``auto``: the same Gaussians fitted to what the image teaches about
        itself too (``in_plane_learning``, ``scale_learning``, ``self_similarity``,
        ``detail_gaussians``).
    iterations
        Adam steps on the geometry.
    in_plane_learning
        Thick slices: learn across-slice detail from the slices' own planes.
    scale_learning
        Learn what finer voxels add from what the image's own voxels add to their mean.
    self_similarity
        Let places that look alike tell each other what the sampling lost.
    detail_gaussians
        Narrow Gaussians where the normalised ones cannot hold the estimate.
    """

    model: str = 'auto'
    iterations: int = 40
    in_plane_learning: bool = True
    scale_learning: bool = True
    self_similarity: bool = True
    detail_gaussians: bool = True
    device: str = 'auto'
    n_threads: int = 0  # 0: all that are available

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f'unknown model {self.model!r}: one of {", ".join(MODELS)}')
        if self.iterations < 1:
            raise ValueError(f'iterations must be positive, not {self.iterations}')


@dataclass(eq=False)
class SuperresResult:
    """One image on ``lattice``, (i, j, k) float32 maps; outside ``mask`` the image is interpolated, maps are zero.

    Attributes
    ----------
    image
        Intensity units of the input.
    amplitude
        Aggregated amplitudes of the normalised Gaussians, without their relaxation weights; input's units.
    relaxation_proxy
        Aggregated ``rt`` of the Gaussians' weights ``f = 1 - exp(-rt)``: how much a Gaussian prevails over its
        neighbours. One contrast holds no relaxation time: a proxy, without unit.
    mask
        (i, j, k) bool, where the result is defined.
    layers
        The rendered image is the sum of the layers' images; sample them on any other grid.
    residual
        Input minus what the acquisition makes of the field, on the input's own grid.
    figures
        Named figures of merit.
    seconds
        By stage.
    backend
        Which one rendered: ``cpu``, ``cuda`` or ``reference``.
    """

    lattice: Lattice
    image: np.ndarray
    amplitude: np.ndarray
    relaxation_proxy: np.ndarray
    mask: np.ndarray
    layers: list[GaussianField]
    residual: np.ndarray
    figures: dict[str, float]
    seconds: dict[str, float]
    backend: str
