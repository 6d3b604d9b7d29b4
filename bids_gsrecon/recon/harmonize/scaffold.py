"""Stage one: a subject's Gaussian scaffold, learned once on the isotropic reference."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from bids_gsrecon.fields.densify import pruned
from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.fields.initialize import sample_by_detail
from bids_gsrecon.fields.torch_geometry import index_covariances
from bids_gsrecon.gpu import get_backend, rasterize, thread_limit
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.recon.harmonize.types import HarmonizeOptions, Progress

MARGIN = 3  # voxels beyond the mask that carry Gaussians too: forgetting them costs dB at the rim
LEARNING_RATES = {'means': 0.06, 'log_scales': 0.04, 'quaternions': 0.02, 'amplitudes': 0.02}
MAX_ANISOTROPY = 4.0


def check_reference(volume: Volume) -> None:
    """Refuse a reference that is itself made of thick slices.

    Raises
    ------
    ValueError
        One sentence: why it cannot be a scaffold, and what to do.
    """
    sizes = volume.lattice.voxel_sizes_mm
    if sizes.max() > 1.7 * sizes.min() and sizes.max() > 1.6:
        shape = ' x '.join(f'{s:.2g}' for s in sizes)
        raise ValueError(
            f'its voxels are {shape} mm, thick slices hold no isotropic structure to learn a scaffold from: '
            'give an isotropic (3D) image, or name the finest contrast with --reference'
        )
    if min(volume.data.shape) < 8:
        raise ValueError('it has fewer than 8 voxels along one axis: give a whole 3D volume')


def crop_to(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Slices (i, j, k) of the mask's box with ``margin`` voxels, cut to the image."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, mask.shape))


def checked_mask(reference: Volume, mask: np.ndarray | None) -> np.ndarray:
    """``mask`` as booleans on the reference's grid (all of it if None); ValueError if empty or of another shape."""
    if mask is None:
        return np.ones(reference.data.shape, bool)
    mask = np.asarray(mask, bool)
    if mask.shape != reference.data.shape:
        raise ValueError(f'the mask is {mask.shape} voxels, the reference {reference.data.shape}')
    if not mask.any():
        raise ValueError('the mask of the reference is empty')
    return mask


def check_scaffold(scaffold: GaussianField, reference: Volume, mask: np.ndarray) -> None:
    """Refuse a scaffold that leaves part of the mask without Gaussians: it was learned on another image."""
    block = 6  # voxels: far wider than any gap between the Gaussians of a scaffold
    occupied = np.zeros([n // block + 1 for n in mask.shape], bool)
    index = np.round(reference.lattice.to_index(scaffold.means_mm)).astype(int)
    index = index[((index >= 0) & (index < mask.shape)).all(1)] // block
    occupied[tuple(index.T)] = True
    wanted = np.zeros_like(occupied)
    wanted[tuple((np.argwhere(mask) // block).T)] = True
    if (occupied & wanted).sum() < 0.9 * wanted.sum():
        raise ValueError(
            'the scaffold does not cover the mask of the reference, it was learned on another image: learn it again'
        )


def learn_scaffold(
    reference: Volume,
    mask: np.ndarray | None = None,
    *,
    options: HarmonizeOptions = HarmonizeOptions(),
    seed: int = 0,
    progress: Progress | None = None,
) -> GaussianField:
    """Fit normalized anisotropic Gaussians to the reference inside (and a little around) the mask.

    Parameters
    ----------
    reference
        Isotropic image.
    mask
        (i, j, k) bool; everything if absent.

    Returns
    -------
    GaussianField
        One channel, ``reference``, in the image's units; about ``options.gaussians_per_voxel`` Gaussians
        for every voxel of the mask.

    Notes
    -----
    Stage one of AtlasGS (arXiv 2606.02961) with 3D Gaussians: Adam on centres, scales, rotations and
    amplitudes, squared error; deterministic for a seed.
    """
    mask = checked_mask(reference, mask)
    box = crop_to(mask, MARGIN + 2)
    lattice = reference.lattice.cropped([s.start for s in box], [s.stop for s in box])
    mask = mask[box]
    region = ndimage.binary_dilation(mask, iterations=MARGIN)
    scale = float(np.percentile(reference.data[box][mask], 99.5)) or 1.0
    image = reference.data[box] / np.float32(scale)
    n_gaussians = max(1, round(options.gaussians_per_voxel * region.sum()))
    field = sample_by_detail(image, lattice.affine, region, n_gaussians, seed=seed, channel='reference')
    with thread_limit(options.n_threads):
        field = optimise_geometry(
            field,
            image,
            lattice,
            weights=ndimage.binary_dilation(mask, iterations=1).astype(np.float32),
            n_iterations=options.scaffold_iterations,
            device=options.device,
            progress=None if progress is None else lambda i, n: progress('learning the scaffold', i, n),
        )
    smallest = np.exp(field.log_scales).min(1) / lattice.voxel_sizes_mm.min()
    field = pruned(field, smallest, 0.12)  # too thin to be seen by any voxel
    field.amplitudes = field.amplitudes * np.float32(scale)
    field.metadata = {'reference_scale': scale, 'seed': seed, 'iterations': options.scaffold_iterations}
    return field


def optimise_geometry(
    field: GaussianField,
    image: np.ndarray,
    lattice: Lattice,
    *,
    weights: np.ndarray,
    n_iterations: int,
    learn_amplitudes: bool = True,
    rate: float = 1.0,
    device: str = 'auto',
    progress=None,
) -> GaussianField:
    """Adam on the geometry (and amplitudes) of a one-channel field against an image on a lattice.

    Parameters
    ----------
    image, weights
        (i, j, k); the weighted mean squared error is minimised. Intensities about 1.
    rate
        Factor on all learning rates.
    """
    spacing = float(lattice.voxel_sizes_mm.min())
    linear = lattice.world_to_voxel[:3, :3]
    linear_transposed = torch.from_numpy(np.ascontiguousarray(linear.T))
    base = torch.from_numpy(lattice.to_index(field.means_mm))
    offsets = torch.zeros(len(field), 3, requires_grad=True)  # world mm
    log_scales = torch.from_numpy(field.log_scales.copy()).requires_grad_()
    quaternions = torch.from_numpy(field.quaternions.copy()).requires_grad_()
    amplitudes = torch.from_numpy(field.amplitudes.copy()).requires_grad_(learn_amplitudes)
    log_weights = torch.from_numpy(field.log_weights)
    groups = [
        {'params': [offsets], 'lr': LEARNING_RATES['means'] * spacing * rate},
        {'params': [log_scales], 'lr': LEARNING_RATES['log_scales'] * rate},
        {'params': [quaternions], 'lr': LEARNING_RATES['quaternions'] * rate},
    ]
    if learn_amplitudes:
        groups.append({'params': [amplitudes], 'lr': LEARNING_RATES['amplitudes'] * rate})
    optimizer = torch.optim.Adam(groups, betas=(0.8, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, n_iterations), eta_min=0.0)
    # Rendered images have their first axis fastest in memory: the same order here saves strided passes.
    target, weights = (torch.from_numpy(np.asfortranarray(a)) for a in (image, weights))
    total = float(weights.sum()) + 1e-12
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
        difference = (rendered - target) * weights
        # The gradient of the mean over voxels would vanish in Adam's epsilon: use the sum per Gaussian.
        loss = (difference * (rendered - target)).sum() * (len(field) / total)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            # A needle is seen by few voxels and tells nothing about other contrasts.
            middle = log_scales.mean(1, keepdim=True)
            half = 0.5 * np.log(MAX_ANISOTROPY)
            log_scales.copy_(torch.clamp(log_scales, middle - half, middle + half))
            log_scales.clamp_(np.log(0.3 * spacing), np.log(4.0 * spacing))
        if progress is not None:
            progress(iteration + 1, n_iterations)
    quaternions = torch.nn.functional.normalize(quaternions.detach(), dim=1)
    return GaussianField(
        field.means_mm + offsets.detach().double().numpy(),
        log_scales.detach().numpy(),
        quaternions.numpy(),
        field.log_weights,
        amplitudes.detach().numpy(),
        field.composition,
        field.channels,
        dict(field.metadata),
    )
