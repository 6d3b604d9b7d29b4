"""AtlasGS in 3D: a scaffold from the reference, every further contrast on its frozen geometry."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.gpu import thread_limit
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.render import render
from bids_gsrecon.imaging.resample import reached, resample
from bids_gsrecon.recon.amplitudes import sampled_at
from bids_gsrecon.recon.geometry import optimise_geometry, squared_error_gradient
from bids_gsrecon.recon.harmonize.appearance import fit_field, voxel_prior
from bids_gsrecon.recon.harmonize.frame import make_frame
from bids_gsrecon.recon.harmonize.scaffold import (
    check_scaffold,
    checked_mask,
    crop_to,
    learn_scaffold,
)
from bids_gsrecon.recon.harmonize.types import (
    ContrastResult,
    HarmonizeOptions,
    HarmonizeResult,
    Target,
)
from bids_gsrecon.recon.progress import Progress

OUTPUT_MARGIN = 1  # voxels around the mask that the image still covers


def harmonize(
    reference: Volume,
    targets: Sequence[Target],
    *,
    mask: np.ndarray | None = None,
    scaffold: GaussianField | None = None,
    lattice: Lattice | None = None,
    options: HarmonizeOptions = HarmonizeOptions(),
    seed: int = 0,
    progress: Progress | None = None,
) -> HarmonizeResult:
    """Bring thick-slice targets onto the grid of an isotropic reference.

    Parameters
    ----------
    reference
        Isotropic image (T1w): structure guidance, and the scaffold if none is given.
    targets
        Thick-slice images with slice profile and rigid pose.
    mask
        (i, j, k) bool on the reference's grid: what to reconstruct; everything if absent.
    scaffold
        Learned before by `learn_scaffold` on the same reference.
    lattice
        Output grid; the reference's if absent. Any other grid or view can be sampled from the result's
        layers afterwards (`bids_gsrecon.imaging.render.render`).

    Raises
    ------
    ValueError
        A target that misses the mask or has one slice; two of one name; an empty mask or one of another
        shape; a scaffold of another image.

    Notes
    -----
    AtlasGS, arXiv 2606.02961. Ours: true 3D Gaussians in mm, geometry really frozen, amplitudes by conjugate
    gradients through the slice profile, a self-supervised voxel prior, contrast-only Gaussians.
    """
    progress = progress or (lambda stage, done, total: None)
    mask = checked_mask(reference, mask)
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        raise ValueError(f'the targets must have different names, not {names}')
    if scaffold is not None:
        check_scaffold(scaffold, reference, mask)
    lattice = reference.lattice if lattice is None else lattice
    with thread_limit(options.n_threads):
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        if scaffold is None:
            scaffold = learn_scaffold(reference, mask, options=options, seed=seed, progress=progress)
        seconds['scaffold'] = time.perf_counter() - started
        output_mask = _on_lattice(mask, reference.lattice, lattice)
        contrasts = []
        for target in targets:
            started = time.perf_counter()
            contrasts.append(
                _one_contrast(
                    reference, target, mask, scaffold, lattice, output_mask, options, seed, progress
                )
            )
            seconds[target.name] = time.perf_counter() - started
        return HarmonizeResult(lattice, output_mask, scaffold, contrasts, seconds)


def _on_lattice(mask, mask_lattice, lattice) -> np.ndarray:
    matrix = mask_lattice.world_to_voxel @ lattice.affine
    return resample(mask.astype(np.float32), matrix, lattice.shape, 1) >= 0.5


def _one_contrast(reference, target, mask, scaffold, lattice, output_mask, options, seed, progress):
    def report(stage, done, total):
        progress(f'{target.name}: {stage}', done, total)

    clock = time.perf_counter()
    figures: dict[str, float] = {}
    frame = make_frame(target, mask, reference.lattice)
    inside = frame.slabs.forward(frame.mask.astype(np.float32)) > 0.5
    if inside.sum() < 50:
        raise ValueError('the target and the mask of the reference do not overlap')
    scale = float(np.percentile(frame.slices[inside], 99.5))
    if not scale > 0:
        raise ValueError('the target is empty inside the mask of the reference')
    guide = frame.from_volume(reference)
    guide = guide / np.float32(np.percentile(guide[frame.mask], 99.5) or 1.0)
    slices = frame.slices / np.float32(scale)
    prior = voxel_prior(frame, slices, guide, options, seed, report)
    figures['seconds_prior'] = time.perf_counter() - clock
    clock = time.perf_counter()
    contrast_scaffold = scaffold
    if options.relax_geometry:
        contrast_scaffold = _relaxed(scaffold, frame, prior.image, target.name)
    fit = fit_field(contrast_scaffold, frame, slices, prior.image, prior.noise, target.name, options, report)
    figures['seconds_field'] = time.perf_counter() - clock
    layers = [
        layer.with_amplitudes(layer.amplitudes * np.float32(scale), layer.channels) for layer in fit.layers
    ]
    image = _render_inside(layers, lattice, output_mask, frame, target.name)
    residual = slices - frame.slabs.forward(fit.image.transpose(2, 1, 0))
    uncertainty = None
    if options.uncertainty:
        uncertainty = _uncertainty_on(lattice, frame, prior, residual, output_mask, scale)
    figures.update(
        slice_factor=float(frame.factor),
        noise_percent=100.0 * prior.noise,
        guidance_strength=prior.strength,
        field_to_prior_db=fit.goal_db,
        residual_rms_percent=100.0 * float(np.sqrt(np.mean(residual[inside] ** 2, dtype=np.float64))),
        n_gaussians=float(sum(len(layer) for layer in layers)),
        n_detail_gaussians=float(sum(len(layer) for layer in layers[1:])),
        frozen_weights_gb=fit.frozen_gb,
        intensity_scale=scale,
        mask_coverage_percent=100.0 * _coverage(frame, mask, reference.lattice),
    )
    return ContrastResult(
        target.name,
        image,
        uncertainty,
        layers,
        target.target_to_reference,
        frame.to_target(residual * np.float32(scale), target),
        figures,
    )


def _relaxed(scaffold, frame, prior, name) -> GaussianField:
    """The ablation: geometry follows this contrast's prior for a few steps (amplitudes are solved after)."""
    start = scaffold.with_amplitudes(
        sampled_at(scaffold, frame.lattice, prior.transpose(2, 1, 0))[:, None], (name,)
    )
    return optimise_geometry(
        start,
        frame.lattice,
        squared_error_gradient(
            prior.transpose(2, 1, 0), frame.mask.transpose(2, 1, 0).astype(np.float32), len(start)
        ),
        n_iterations=12,
        rate=0.5,
    )


def _render_inside(layers, lattice, output_mask, frame, name) -> np.ndarray:
    """The field on the output grid, within a voxel of the mask and where the slices reach."""
    image = np.zeros(lattice.shape, np.float32)
    covered = reached(lattice, frame.lattice) & ndimage.binary_dilation(output_mask, iterations=OUTPUT_MARGIN)
    if covered.any():
        box = crop_to(covered, 0)
        crop = lattice.cropped([s.start for s in box], [s.stop for s in box])
        image[box] = render(layers, crop, channel=name) * covered[box]
    return image


def _uncertainty_on(lattice, frame, prior, residual, output_mask, scale) -> np.ndarray:
    """Expected rms error on the output grid, in the target's units.

    What in-plane learning expects to miss (known where slices were degraded in plane) and what the slices
    disagree about (their residual, smoothed), added in squares.
    """
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(residual**2, size=(1, 5, 5)), 0))
    variance = frame.slabs.nearest(spread) ** 2 + np.float32(prior.noise) ** 2
    if prior.error is not None:
        variance = variance + prior.error**2
    matrix = frame.lattice.world_to_voxel @ lattice.affine
    values = resample(np.sqrt(variance).transpose(2, 1, 0), matrix, lattice.shape, 1)
    return np.where(output_mask, values * np.float32(scale), 0).astype(np.float32)


def _coverage(frame, mask, mask_lattice) -> float:
    return float(
        frame.mask.sum() * np.prod(frame.spacing_mm) / (mask.sum() * np.prod(mask_lattice.voxel_sizes_mm))
    )


def estimate_memory_gb(
    reference_shape, target_shapes, options: HarmonizeOptions = HarmonizeOptions()
) -> float:
    """Peak memory of `harmonize` in GB: the interpreter, and about 90 float32 images of the reference.

    An upper bound where the mask's box fills the image: 13 edge images, the frozen weights, patches and the
    work arrays of the solvers.
    """
    voxels = float(np.prod(reference_shape))
    targets = max((float(np.prod(shape)) for shape in target_shapes), default=0.0)
    return 0.9 + 4e-9 * (90.0 * voxels + 20.0 * targets)
