"""What goes into and comes out of a harmonisation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.profile import SliceProfile


@dataclass(frozen=True, eq=False)
class Target:
    """One thick-slice image to bring onto the reference grid.

    ``target_to_reference`` is a 4x4 rigid world-to-world motion (RAS mm): where a point of the target's
    world lies in the reference's world.
    """

    name: str
    volume: Volume
    profile: SliceProfile
    target_to_reference: np.ndarray = field(default_factory=lambda: np.eye(4))


@dataclass(frozen=True)
class HarmonizeOptions:
    """Every choice of the method; the defaults are those that were tuned on one development case."""

    gaussians_per_voxel: float = 0.33
    scaffold_iterations: int = 30
    guidance_strength: float = 1e-3
    guidance_bandwidth: float = 0.05
    in_plane_learning: bool = True
    detail_gaussians: bool = True
    relax_geometry: bool = False
    uncertainty: bool = True
    device: str = 'auto'
    n_threads: int = 0  # 0: all that are available

    def __post_init__(self):
        for name in ('gaussians_per_voxel', 'guidance_strength', 'guidance_bandwidth'):
            if not 0 < getattr(self, name) < float('inf'):
                raise ValueError(f'{name} must be a positive number, not {getattr(self, name)}')
        if self.scaffold_iterations < 0:
            raise ValueError(f'scaffold_iterations must not be negative, but is {self.scaffold_iterations}')


@dataclass(eq=False)
class ContrastResult:
    """One harmonised contrast, on ``HarmonizeResult.lattice``."""

    name: str
    image: np.ndarray  # (i, j, k) float32, intensity units of the target
    uncertainty: np.ndarray | None  # (i, j, k) expected rms error, same units
    layers: list[GaussianField]  # rendered image = sum of the layers' renders
    target_to_reference: np.ndarray  # 4x4, as used
    residual: np.ndarray  # target minus the slices predicted from the field, on the target's own grid
    figures: dict[str, float]  # named figures of merit (units in the names)


@dataclass(eq=False)
class HarmonizeResult:
    lattice: Lattice
    mask: np.ndarray  # (i, j, k) bool
    scaffold: GaussianField
    contrasts: list[ContrastResult]
    seconds: dict[str, float]  # by stage
