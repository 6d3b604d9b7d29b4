"""Learning where Gaussians sit and how they are shaped: Adam on the non-linear parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.fields.torch_geometry import index_covariances
from bids_gsrecon.gpu import get_backend, rasterize
from bids_gsrecon.imaging.lattice import Lattice

LEARNING_RATES = {
    'means': 0.06,  # of the finest voxel size
    'log_scales': 0.04,
    'quaternions': 0.02,
    'amplitudes': 0.02,
    'log_weights': 0.05,
}
MAX_ANISOTROPY = 4.0
MAX_LOG_WEIGHT = -1e-3  # exp(log_weight) stays a saturation f = 1 - exp(-rt) < 1 where it is learned


def optimise_geometry(
    field: GaussianField,
    lattice: Lattice,
    gradient: Callable[[torch.Tensor], torch.Tensor],
    *,
    n_iterations: int,
    learn_amplitudes: bool = True,
    learn_weights: bool = False,
    rate: float = 1.0,
    max_scale_mm: float | None = None,
    device: str = 'auto',
    progress: Callable[[int, int], None] | None = None,
) -> GaussianField:
    """Adam on the geometry (and amplitudes, weights) of a one-channel field, intensities about 1.

    Parameters
    ----------
    gradient
        Takes the rendered image (i, j, k), first axis fastest in memory, on the CPU; returns the gradient of
        the loss with respect to it, same shape. The loss should be summed per Gaussian, not averaged over
        voxels: a mean's gradient would vanish in Adam's epsilon.
    learn_weights
        Also learn the log-weights, kept below zero.
    rate
        Factor on all learning rates.
    max_scale_mm
        Largest standard deviation; four times the finest voxel if absent.
    """
    spacing = float(lattice.voxel_sizes_mm.min())
    low, high = np.log(0.3 * spacing), np.log(max_scale_mm or 4.0 * spacing)
    half = 0.5 * np.log(MAX_ANISOTROPY)
    linear = lattice.world_to_voxel[:3, :3]
    linear_transposed = torch.from_numpy(np.ascontiguousarray(linear.T))
    base = torch.from_numpy(lattice.to_index(field.means_mm))
    offsets = torch.zeros(len(field), 3, requires_grad=True)  # world mm
    log_scales = torch.from_numpy(field.log_scales.copy()).requires_grad_()
    quaternions = torch.from_numpy(field.quaternions.copy()).requires_grad_()
    amplitudes = torch.from_numpy(field.amplitudes.copy()).requires_grad_(learn_amplitudes)
    log_weights = torch.from_numpy(field.log_weights.copy()).requires_grad_(learn_weights)
    rates = {name: value * rate for name, value in LEARNING_RATES.items()}
    groups = [
        {'params': [offsets], 'lr': rates['means'] * spacing},
        {'params': [log_scales], 'lr': rates['log_scales']},
        {'params': [quaternions], 'lr': rates['quaternions']},
    ]
    if learn_amplitudes:
        groups.append({'params': [amplitudes], 'lr': rates['amplitudes']})
    if learn_weights:
        groups.append({'params': [log_weights], 'lr': rates['log_weights']})
    optimizer = torch.optim.Adam(groups, betas=(0.8, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, n_iterations), eta_min=0.0)
    backend = get_backend(device)
    for iteration in range(n_iterations):
        rendered = rasterize(
            base + offsets.double() @ linear_transposed,
            index_covariances(log_scales, quaternions, linear),
            log_weights,
            amplitudes,
            lattice.shape,
            composition=field.composition,
            backend=backend,
        )[0]
        optimizer.zero_grad()
        rendered.backward(gradient(rendered.detach()))
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            # A needle is seen by few voxels and tells nothing about what lies between them.
            middle = log_scales.mean(1, keepdim=True)
            log_scales.copy_(torch.clamp(log_scales, middle - half, middle + half))
            log_scales.clamp_(low, high)
            if learn_weights:
                log_weights.clamp_(max=MAX_LOG_WEIGHT)
        if progress is not None:
            progress(iteration + 1, n_iterations)
    quaternions = torch.nn.functional.normalize(quaternions.detach(), dim=1)
    return GaussianField(
        field.means_mm + offsets.detach().double().numpy(),
        log_scales.detach().numpy(),
        quaternions.numpy(),
        log_weights.detach().numpy(),
        amplitudes.detach().numpy(),
        field.composition,
        field.channels,
        dict(field.metadata),
    )


def squared_error_gradient(target: np.ndarray, weights: np.ndarray, n_gaussians: int):
    """For `optimise_geometry`: the weighted mean squared distance to a target (i, j, k), per Gaussian."""
    # Rendered images have their first axis fastest in memory: the same order here saves strided passes.
    target, weights = (torch.from_numpy(np.asfortranarray(a)) for a in (target, weights))
    factor = 2.0 * n_gaussians / (float(weights.sum()) + 1e-12)
    return lambda rendered: (rendered - target) * weights * factor
