"""The published model: normalised Gaussians with an amplitude and a relaxation proxy, through the acquisition.

``I(x) = sum_i w_i(x) A_i / sum_i w_i(x)``, ``w_i = (1 - exp(-rt_i)) g_i(x)`` (arXiv 2603.09621). About one
Gaussian per acquired voxel. Ours: the image is compared through the true voxel profile, not at points.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.sampling import VoxelSampling
from bids_gsrecon.recon.geometry import optimise_geometry

START_SCALE = 0.7  # standard deviation over voxel spacing; tuned on one development case
START_RELAXATION = float(np.log(2.0))  # f = 1/2


def relaxation_of(log_weights: np.ndarray) -> np.ndarray:
    """rt of ``exp(log_weight) = 1 - exp(-rt)``."""
    return -np.log1p(-np.exp(np.minimum(np.asarray(log_weights, dtype=np.float64), -1e-6)))


def gaussian_per_voxel(
    image: np.ndarray, lattice: Lattice, region: np.ndarray, channel: str
) -> GaussianField:
    """One Gaussian, as wide as its voxel asks for, in every voxel of ``region``; arrays (i, j, k)."""
    voxels = np.argwhere(region)
    if len(voxels) == 0:
        raise ValueError('the mask holds no voxel of the image')
    sizes = lattice.voxel_sizes_mm
    directions = lattice.affine[:3, :3] / sizes
    if np.linalg.det(directions) < 0:
        directions = directions * [-1.0, 1.0, 1.0]  # a Gaussian is the same mirrored
    quaternion = Rotation.from_matrix(directions).as_quat()[[3, 0, 1, 2]]
    n = len(voxels)
    return GaussianField(
        lattice.to_world(voxels),
        np.tile(np.log(START_SCALE * sizes), (n, 1)),
        np.tile(quaternion, (n, 1)),
        np.full(n, np.log1p(-np.exp(-START_RELAXATION))),
        image[tuple(voxels.T)][:, None],
        'normalized',
        (channel,),
    )


def fit_physics(
    image: np.ndarray,
    lattice: Lattice,
    region: np.ndarray,
    fine: Lattice,
    sampling: VoxelSampling,
    *,
    n_iterations: int,
    channel: str = 'image',
    device: str = 'auto',
    progress=None,
) -> GaussianField:
    """Gaussians whose sampled image is ``image`` (i, j, k, about 1) on ``lattice`` inside ``region``.

    Parameters
    ----------
    fine, sampling
        Grid on which the field is rendered, and the operator from it (arrays (k, j, i)) to ``image``'s.
    progress
        Called with (done, total).
    """
    field = gaussian_per_voxel(image, lattice, region, channel)
    measured = np.ascontiguousarray(image.transpose(2, 1, 0))
    weights = np.ascontiguousarray(region.transpose(2, 1, 0), dtype=np.float32)
    weights *= np.float32(2.0 * len(field) / weights.sum())

    def gradient(rendered: torch.Tensor) -> torch.Tensor:
        left = sampling.forward(rendered.numpy().transpose(2, 1, 0)) - measured
        return torch.from_numpy(sampling.adjoint(left * weights).transpose(2, 1, 0))

    return optimise_geometry(
        field,
        fine,
        gradient,
        n_iterations=n_iterations,
        learn_weights=True,
        max_scale_mm=4.0 * float(lattice.voxel_sizes_mm.max()),
        device=device,
        progress=progress,
    )
