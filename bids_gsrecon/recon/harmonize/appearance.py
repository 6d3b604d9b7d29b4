"""Stage two: one contrast on frozen geometry.

First the voxel prior (guided solve, in-plane learning, closing solve), then the amplitudes of the scaffold and
of narrow contrast-only Gaussians, solved jointly through the slices and the prior:
``min_b |A W b - y|^2 + mu |W b - prior|^2``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.recon.amplitudes import FieldFit, fit_amplitudes, sampled_at
from bids_gsrecon.recon.harmonize.frame import SliceFrame
from bids_gsrecon.recon.harmonize.guidance import guided_solve
from bids_gsrecon.recon.harmonize.inplane import (
    InPlaneOptions,
    degrade_in_plane,
    predict_across,
    train_in_plane,
)
from bids_gsrecon.recon.harmonize.types import HarmonizeOptions
from bids_gsrecon.recon.progress import Progress
from bids_gsrecon.solvers.laplacian import GuidedLaplacian

IN_PLANE_WEIGHT = 0.75  # of the learned detail; tuned on sub-m06 of the development data
PRIOR_WEIGHT = 0.3  # mu
# Noise (relative to bright tissue) from which the slices are no longer reproduced to the letter; the guidance
# strength that scored best on sub-m06 with 1, 3 and 6 % noise was (noise / .0055)^2 times the noise-free one.
STRENGTH_NOISE = 0.0055
TRUST_NOISE = 0.01


@dataclass(eq=False)
class VoxelPrior:
    """The voxel solution on the fine grid (nz, ny, nx), in units of ``scale``."""

    image: np.ndarray
    error: np.ndarray | None
    noise: float
    strength: float


def noise_level(slices: np.ndarray, mask: np.ndarray) -> float:
    """Noise standard deviation from the finest diagonal differences in plane (robust)."""
    d = slices[:, 1:, 1:] - slices[:, :-1, 1:] - slices[:, 1:, :-1] + slices[:, :-1, :-1]
    inside = mask[:, 1:, 1:] & mask[:, :-1, :-1]
    return float(np.median(np.abs(d[inside])) / 0.6745 / 2.0) if inside.any() else 0.0


def data_trust(noise: float) -> float:
    """Weight (0..1] of the slices against the prior: 1 up to `TRUST_NOISE`, then falling as 1 / noise^2."""
    return 1.0 / max(1.0, (noise / TRUST_NOISE) ** 2)


def voxel_prior(
    frame: SliceFrame,
    slices: np.ndarray,
    guide: np.ndarray,
    options: HarmonizeOptions,
    seed: int,
    progress: Progress,
) -> VoxelPrior:
    """Guided solve, then what in-plane learning adds, then a guided solve of what the slices still miss.

    ``slices`` and ``guide`` are scaled so that bright tissue is near 1.
    """
    slabs, mask = frame.slabs, frame.mask
    slice_mask = slabs.forward(mask.astype(np.float32)) > 0.5
    noise = noise_level(slices, slice_mask)
    strength = options.guidance_strength * max(1.0, (noise / STRENGTH_NOISE) ** 2)
    spacing = frame.spacing_mm / frame.spacing_mm.min()
    progress('guided solve', 0, 4)
    start, stop = _row_spans(mask)
    laplacian = GuidedLaplacian(guide, options.guidance_bandwidth, spacing, start, stop)
    estimate = guided_solve(slabs, slices, laplacian, strength).x
    progress('guided solve', 1, 4)
    error = None
    learn = options.in_plane_learning and frame.factor > 1 and slice_mask.sum() > 2000
    if learn:
        seen = slabs.forward(guide)
        if slabs.in_plane_factors != (1, 1):
            learn = False  # a slice that is coarse in plane too knows nothing finer than itself
    if learn:
        problems = [
            degrade_in_plane(
                slices, seen, slice_mask, axis, frame.factor, strength, options.guidance_bandwidth
            )
            for axis in (1, 2)
            if slices.shape[axis] >= 2 * frame.factor
        ]
        progress('guided solve', 2, 4)
        network = train_in_plane(problems, frame.factor, InPlaneOptions(), seed, progress)
        detail, error = predict_across(network, guide, estimate, mask, frame.phases)
        progress('guided solve', 3, 4)
        estimate += IN_PLANE_WEIGHT * detail
        left = slices - slabs.forward(estimate)
        # Noisy slices: what they still miss is mostly noise, the closing solve may only add what is smooth.
        closing_strength = strength / data_trust(noise)
        closing = guided_solve(slabs, left, laplacian, closing_strength, x0=np.zeros_like(estimate))
        estimate += closing.x
    progress('guided solve', 4, 4)
    return VoxelPrior(estimate, error, noise, strength)


def _row_spans(mask: np.ndarray, margin: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """x-range of each (z, y) row that holds the mask or lies within ``margin`` of it."""
    nx = mask.shape[2]
    any_row = mask.any(2)
    start = np.where(any_row, mask.argmax(2), nx)
    stop = np.where(any_row, nx - mask[:, :, ::-1].argmax(2), 0)
    size = 2 * margin + 1
    start = np.maximum(ndimage.minimum_filter(start, size) - margin, 0)
    stop = np.minimum(ndimage.maximum_filter(stop, size) + margin, nx)
    empty = start >= stop
    start[empty], stop[empty] = 0, 0
    return start.astype(np.int64), stop.astype(np.int64)


def fit_field(
    scaffold: GaussianField,
    frame: SliceFrame,
    slices: np.ndarray,
    prior: np.ndarray,
    noise: float,
    name: str,
    options: HarmonizeOptions,
    progress: Progress,
) -> FieldFit:
    """Amplitudes of the scaffold, and contrast-only Gaussians where it cannot say what the prior says.

    The image of the result is (x, y, z): the index order of ``frame.lattice``.
    """
    slabs, mask = frame.slabs, frame.mask
    trust = np.float32(data_trust(noise))
    slice_weights = trust * (slabs.forward(mask.astype(np.float32)) > 0.99)
    prior_weights = np.float32(PRIOR_WEIGHT) * ndimage.binary_dilation(mask).astype(np.float32)

    def normal(image):
        image = image.transpose(2, 1, 0)
        image = slabs.adjoint(slice_weights * slabs.forward(image)) + prior_weights * image
        return image.transpose(2, 1, 0)

    right_image = slabs.adjoint(slice_weights * slices) + prior_weights * prior
    start = sampled_at(scaffold, frame.lattice, prior.transpose(2, 1, 0))
    return fit_amplitudes(
        scaffold.with_amplitudes(start[:, None], (name,)),
        frame.lattice,
        normal,
        right_image.transpose(2, 1, 0),
        # |A W b|^2 has about the diagonal of the mean row: cells are averaged, their squares add up.
        precondition_weights=(prior_weights + slabs.diagonal(slice_weights)).transpose(2, 1, 0),
        goal=prior.transpose(2, 1, 0),
        mask=mask.transpose(2, 1, 0),
        detail=options.detail_gaussians,
        progress=progress,
    )
