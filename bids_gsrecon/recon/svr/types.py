"""What goes into and comes out of a slice-to-volume reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Lattice


@dataclass(frozen=True)
class SvrOptions:
    """Every choice of the method.

    Attributes
    ----------
    resolution_mm
        Voxel of the reconstructed volume, isotropic, and spacing of its Gaussians.
    stack_motion
        Align whole stacks first.
    slice_motion
        Give every slice a pose of its own.
    robust
        Let pixels and slices that contradict all others count less.
    slice_bias
        Give every slice a smooth field of brightness of its own, beside its gain.
    point_spread
        See the volume through the slices' thickness; without, as if it were their pixel size (for comparison).
    anisotropic
        Gaussians of the final volume are thin across edges and long along them; without, all are round.
    self_similarity
        Let places that look alike tell each other what noise and sampling hid.
    residual_field
        Add M-Gaussian's neural residual field at the end (slow; it has not been seen to help).
    joint_steps
        Steps of volume and poses together at the end; 0: poses are those of the coarse levels.
    reference
        Stack whose frame the volume takes (from 0); none: the one that moved least.
    device
        ``auto``, ``cpu`` or ``cuda``.
    seed
        Of the residual field's network; nothing else draws numbers.
    n_threads
        0: all that are available.
    """

    resolution_mm: float = 0.8
    stack_motion: bool = True
    slice_motion: bool = True
    robust: bool = True
    slice_bias: bool = True
    point_spread: bool = True
    anisotropic: bool = True
    self_similarity: bool = True
    residual_field: bool = False
    joint_steps: int = 7
    reference: int | None = None
    device: str = 'auto'
    seed: int = 0
    n_threads: int = 0

    def __post_init__(self):
        if not self.resolution_mm > 0:
            raise ValueError(f'the resolution must be positive, not {self.resolution_mm}')
        if self.joint_steps < 0:
            raise ValueError(f'joint_steps must not be negative, not {self.joint_steps}')


@dataclass(frozen=True, eq=False)
class SliceTable:
    """The M slices that have a mask: by stack, then as stored.

    Attributes
    ----------
    stack, index
        (M,) stack, and stored slice in it, from 0.
    rank
        (M,) when it was acquired in its stack, 0 first.
    gain
        (M,) its brightness over that of the volume.
    weight
        (M,) mean weight of its pixels, 0..1.
    ncc
        (M,) correlation with what the *other* stacks predict, in the mask; NaN if nothing predicts it.
    motion_mm
        (M,) mean way of its pixels from where the scanner believed them, less the motion of its whole stack.
    excluded
        (M,) bool: counts for next to nothing, or never found its place.
    """

    stack: np.ndarray
    index: np.ndarray
    rank: np.ndarray
    gain: np.ndarray
    weight: np.ndarray
    ncc: np.ndarray
    motion_mm: np.ndarray
    excluded: np.ndarray

    def __len__(self) -> int:
        return len(self.stack)


@dataclass(eq=False)
class SvrResult:
    """A volume, and the poses of the slices it was made of.

    Attributes
    ----------
    lattice
        Isotropic; its axes are those of the reference stack, in the order and direction nearest to RAS.
    image
        (nx, ny, nz) float32, in the units of the reference stack; zero outside ``mask``.
    mask
        (nx, ny, nz) bool, the anatomy.
    uncertainty
        (nx, ny, nz) float32, standard deviation in the units of ``image``; zero outside ``mask``.
    coverage
        (nx, ny, nz) float32, how many slices see the voxel, by their weights.
    field
        The Gaussians (one amplitude each): sampled again at any grid by `bids_gsrecon.imaging.render`.
    poses
        (M, 4, 4) world motions, slice as stored to the volume's world.
    slices
        One row per pose.
    predicted
        Per stack (i, j, slice) float32: what the volume predicts at its pixels, gain included; NaN elsewhere.
    reference
        Stack whose frame and units the volume has, from 0.
    seconds
        By stage.
    """

    lattice: Lattice
    image: np.ndarray
    mask: np.ndarray
    uncertainty: np.ndarray
    coverage: np.ndarray
    field: GaussianField
    poses: np.ndarray
    slices: SliceTable
    predicted: list[np.ndarray]
    reference: int
    seconds: dict[str, float] = field(default_factory=dict)
