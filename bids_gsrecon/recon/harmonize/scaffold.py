"""Stage one: a subject's Gaussian scaffold, learned once on the isotropic reference."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.fields.densify import pruned
from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.fields.initialize import sample_by_detail
from bids_gsrecon.gpu import thread_limit
from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.recon.geometry import optimise_geometry, squared_error_gradient
from bids_gsrecon.recon.harmonize.types import HarmonizeOptions
from bids_gsrecon.recon.progress import Progress

MARGIN = 3  # voxels beyond the mask that carry Gaussians too: forgetting them costs dB at the rim


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
            lattice,
            squared_error_gradient(
                image, ndimage.binary_dilation(mask, iterations=1).astype(np.float32), len(field)
            ),
            n_iterations=options.scaffold_iterations,
            device=options.device,
            progress=None if progress is None else lambda i, n: progress('learning the scaffold', i, n),
        )
    smallest = np.exp(field.log_scales).min(1) / lattice.voxel_sizes_mm.min()
    field = pruned(field, smallest, 0.12)  # too thin to be seen by any voxel
    field.amplitudes = field.amplitudes * np.float32(scale)
    field.metadata = {'reference_scale': scale, 'seed': seed, 'iterations': options.scaffold_iterations}
    return field
