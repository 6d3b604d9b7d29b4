"""One volume on a finer grid: physics-driven Gaussians, and what the image teaches about itself."""

from __future__ import annotations

import time

import numpy as np
from scipy import ndimage

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.fields.initialize import sample_by_detail
from bids_gsrecon.gpu import get_backend, thread_limit
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.render import render
from bids_gsrecon.imaging.resample import reached, resample
from bids_gsrecon.imaging.sampling import make_sampling
from bids_gsrecon.imaging.support import find_support
from bids_gsrecon.recon.amplitudes import fit_amplitudes, sampled_at
from bids_gsrecon.recon.geometry import optimise_geometry, squared_error_gradient
from bids_gsrecon.recon.progress import Progress
from bids_gsrecon.recon.superres.cross_scale import add_learned_detail
from bids_gsrecon.recon.superres.grids import (
    cell_factors,
    check_finer,
    is_through_plane,
    points_per_voxel,
)
from bids_gsrecon.recon.superres.physics import fit_physics, relaxation_of
from bids_gsrecon.recon.superres.similarity import Consistency, self_similar
from bids_gsrecon.recon.superres.through_plane import AcrossSlices, intermediate_lattice, slices_to_planes
from bids_gsrecon.recon.superres.types import SuperresOptions, SuperresResult

REGION_MARGIN = (
    2  # voxels of the image around the mask that are fitted too: forgetting them costs dB at the rim
)
GOAL_WEIGHT = {'auto': 0.3, 'physics': 0.02}  # mu of `bids_gsrecon.recon.amplitudes`
CHANNEL = 'image'


def superres(
    image: Volume,
    lattice: Lattice,
    *,
    profiles: tuple[SliceProfile, SliceProfile, SliceProfile],
    mask: np.ndarray | None = None,
    options: SuperresOptions = SuperresOptions(),
    seed: int = 0,
    progress: Progress | None = None,
) -> SuperresResult:
    """Reconstruct one volume on a finer grid.

    Parameters
    ----------
    image
        Any 3D image.
    lattice
        Output grid: any voxel sizes, orientation and field of view. Voxels that the image does not reach are
        zero; outside the mask the image is interpolated linearly.
    profiles
        How a voxel averages the tissue along the stored axes: `voxel_profiles`.
    mask
        (i, j, k) bool on the image's grid: what to reconstruct; the object (`find_support`) if absent.

    Raises
    ------
    ValueError
        Output nowhere finer than the image; an empty mask or one of another shape; profiles out of order.

    Notes
    -----
    Physics-driven 3D Gaussians, arXiv 2603.09621. Ours: the acquisition's true voxel profile, learning in plane
    and across scales, amplitudes by conjugate gradients, any output grid from the saved field.
    """
    if [p.axis for p in profiles] != [0, 1, 2]:
        raise ValueError('give one voxel profile per stored axis, in order')
    check_finer(image.lattice, lattice)
    mask = _checked_mask(image, mask)
    report = progress or (lambda stage, done, total: None)
    with thread_limit(options.n_threads):
        return _superres(image, lattice, profiles, mask, options, seed, report)


def _checked_mask(image: Volume, mask) -> np.ndarray:
    if mask is None:
        mask = find_support(image)[0]
    mask = np.asarray(mask, bool)
    if mask.shape != image.data.shape:
        raise ValueError(f'the mask is {mask.shape} voxels, the image {image.data.shape}')
    if not mask.any():
        raise ValueError('the mask is empty')
    return mask


def _superres(image, lattice, profiles, mask, options, seed, report) -> SuperresResult:
    seconds: dict[str, float] = {}
    clock = time.perf_counter()
    backend = get_backend(options.device).name
    box = _box(mask, REGION_MARGIN)
    source = image.lattice.cropped([s.start for s in box], [s.stop for s in box])
    region = ndimage.binary_dilation(mask[box])
    scale = float(np.percentile(np.abs(image.data[mask]), 99.5))  # of either sign: CT, phase, maps
    if not scale > 0:
        raise ValueError('the image is zero inside the mask: give a mask that covers the object')
    # Arrays are (k, j, i) from here on: the Gaussian engine keeps the first stored axis fastest in memory.
    data = np.ascontiguousarray(image.data[box].transpose(2, 1, 0)) / np.float32(scale)
    region = np.ascontiguousarray(region.transpose(2, 1, 0))
    factors = cell_factors(source, lattice)
    fine = source.refined(factors)
    sampling = make_sampling(fine, source, profiles).reversed()
    figures: dict[str, float] = {'intensity_scale': scale}
    field, goal = None, None
    if options.model == 'auto':
        field, goal, learned = _learned(
            data, source, region, profiles, factors, fine, sampling, options, seed, report
        )
        figures.update(learned)
        seconds['prior'] = time.perf_counter() - clock
        clock = time.perf_counter()
    if field is None:
        field = _physics(data, source, region, fine, sampling, options, report)
    if goal is None:
        goal = render([field], fine, backend=options.device).transpose(2, 1, 0)
    seconds['geometry'] = time.perf_counter() - clock
    clock = time.perf_counter()
    fine_region = _on_cells(region, factors)
    fit = _fit(field, fine, sampling, data, region, fine_region, goal, options, report)
    seconds['amplitudes'] = time.perf_counter() - clock
    left = data - sampling.forward(np.ascontiguousarray(fit.image.transpose(2, 1, 0)))
    inside = mask[box].transpose(2, 1, 0)
    residual = np.zeros(image.data.shape, np.float32)
    residual[box] = (left * inside).transpose(2, 1, 0) * np.float32(scale)
    layers = [
        layer.with_amplitudes(layer.amplitudes * np.float32(scale), layer.channels) for layer in fit.layers
    ]
    figures.update(
        goal_db=fit.goal_db,
        residual_rms_percent=100.0 * float(np.sqrt(np.mean(left[inside] ** 2, dtype=np.float64))),
        n_gaussians=float(sum(len(layer) for layer in layers)),
        n_detail_gaussians=float(sum(len(layer) for layer in layers[1:])),
        frozen_weights_gb=fit.frozen_gb,
    )
    clock = time.perf_counter()
    report('rendering', 0, 1)
    result = _sampled(image, lattice, mask, layers, fine, options)
    report('rendering', 1, 1)
    seconds['rendering'] = time.perf_counter() - clock
    return SuperresResult(lattice, *result, layers, residual, figures, seconds, backend)


def _box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, mask.shape))


def _on_cells(region, factors) -> np.ndarray:
    """A mask (k, j, i) of voxels on their cells; ``factors`` along (i, j, k)."""
    for axis, factor in enumerate(factors[::-1]):
        region = np.repeat(region, factor, axis)
    return region


def _physics(data, source, region, fine, sampling, options, report) -> GaussianField:
    return fit_physics(
        data.transpose(2, 1, 0),
        source,
        region.transpose(2, 1, 0),
        fine,
        sampling,
        n_iterations=options.iterations,
        channel=CHANNEL,
        device=options.device,
        progress=lambda done, total: report('fitting Gaussians', done, total),
    )


def _learned(data, source, region, profiles, factors, fine, sampling, options, seed, report):
    """What the field shall hold, (k, j, i) on ``fine``, and Gaussians for it: (field, goal, figures)."""
    axis = source.coarsest_axis
    figures: dict[str, float] = {}
    remaining = list(factors)
    current, lattice, current_region = data, source, region
    current_profiles = profiles
    thick = is_through_plane(source, axis) and factors[axis] > 1 and profiles[axis].kind != 'point'
    if thick:
        lattice = intermediate_lattice(source, axis, factors[axis])
        current, gains = _planes(data, source, region, profiles, axis, factors[axis], options, seed, report)
        figures.update(gains)
        remaining[axis] = 1
        cells = [factors[axis] if a == axis else 1 for a in range(3)]
        current_region = _on_cells(region, cells)
        size = float(lattice.voxel_sizes_mm[axis])
        current_profiles = tuple(
            SliceProfile('box', size, a) if a == axis else p for a, p in enumerate(profiles)
        )
    if max(remaining) == 1:
        return _field_of(current, fine, current_region, region.sum(), options, seed, report), current, figures
    operator = make_sampling(fine, lattice, current_profiles).reversed()
    field = _physics(current, lattice, current_region, fine, operator, options, report)
    goal = np.ascontiguousarray(render([field], fine, backend=options.device).transpose(2, 1, 0))
    if options.self_similarity:
        goal = self_similar(goal, sampling, data, region, report)
    if options.scale_learning and _averages(current_profiles, lattice):
        figures.update(
            add_learned_detail(
                goal, current, lattice, current_region, current_profiles, tuple(remaining),
                similar=options.self_similarity, n_iterations=options.iterations, seed=seed, device=options.device, progress=report,
            )
        )  # fmt: skip
        goal = Consistency(sampling)(goal, data, region)
    return field, goal, figures


def _averages(profiles, lattice) -> bool:
    """Whether voxels average about all of their volume: what is lost by skipping tissue (aliasing) is not of one
    kind at two scales, and learning across them was seen to do harm."""
    return all(
        p.kind != 'point' and p.thickness_mm > 0.7 * s for p, s in zip(profiles, lattice.voxel_sizes_mm)
    )


def _planes(data, source, region, profiles, axis, factor, options, seed, report):
    """Thick slices (k, j, i) to thin planes on the same axes."""
    array_axis = 2 - axis
    order = (array_axis, *(a for a in range(3) if a != array_axis))
    sizes = source.voxel_sizes_mm[::-1]
    spacing = float(sizes[array_axis])
    # Pixels coarser than the planes to be found know nothing of them.
    learnable = tuple(n for n, a in enumerate(order) if n and sizes[a] <= 1.5 * spacing / factor)
    across = AcrossSlices(factor, profiles[axis], spacing)
    planes, figures = slices_to_planes(
        data.transpose(order),
        region.transpose(order),
        across,
        learn=options.in_plane_learning,
        learnable_axes=learnable,
        similar=options.self_similarity,
        seed=seed,
        progress=report,
    )
    return np.ascontiguousarray(planes.transpose(np.argsort(order))), figures


def _field_of(goal, fine, region, n_gaussians, options, seed, report) -> GaussianField:
    """Geometry learned on the goal itself: about as many Gaussians as the image has voxels in the region."""
    start = sample_by_detail(
        goal.transpose(2, 1, 0),
        fine.affine,
        region.transpose(2, 1, 0),
        int(n_gaussians),
        seed=seed,
        channel=CHANNEL,
    )
    start.log_weights = np.full(len(start), np.log(0.5), np.float32)
    return optimise_geometry(
        start,
        fine,
        squared_error_gradient(
            goal.transpose(2, 1, 0), region.transpose(2, 1, 0).astype(np.float32), len(start)
        ),
        n_iterations=options.iterations,
        learn_weights=True,
        device=options.device,
        progress=lambda done, total: report('fitting Gaussians', done, total),
    )


def _fit(field, fine, sampling, data, region, fine_region, goal, options, report):
    mu = np.float32(GOAL_WEIGHT[options.model])
    weights = region.astype(np.float32)
    cells_per_voxel = np.float32(goal.size / data.size)
    goal_weights = fine_region.astype(np.float32) * (mu / cells_per_voxel)

    def normal(picture):
        picture = np.ascontiguousarray(picture.transpose(2, 1, 0))
        out = sampling.adjoint(weights * sampling.forward(picture)) + goal_weights * picture
        return out.transpose(2, 1, 0)

    right = sampling.adjoint(weights * data) + goal_weights * goal
    start = (
        field.amplitudes
        if options.model == 'physics'
        else sampled_at(field, fine, goal.transpose(2, 1, 0))[:, None]
    )
    return fit_amplitudes(
        field.with_amplitudes(start, (CHANNEL,)),
        fine,
        normal,
        right.transpose(2, 1, 0),
        precondition_weights=(goal_weights + sampling.diagonal(weights)).transpose(2, 1, 0),
        goal=goal.transpose(2, 1, 0),
        mask=fine_region.transpose(2, 1, 0),
        detail=options.detail_gaussians and options.model == 'auto',
        progress=report,
    )


def _sampled(image, lattice, mask, layers, fine, options):
    """Image, amplitude and relaxation maps, and mask on the output grid."""
    matrix = image.lattice.world_to_voxel @ lattice.affine
    # The outer half of the image's first and last voxels lies beyond their centres: repeated, not zero.
    wide = ndimage.binary_dilation(mask).astype(np.float32)
    inside = resample(wide, matrix, lattice.shape, 1, mode='nearest') > 0.25
    inside &= reached(lattice, image.lattice)
    output_mask = resample(mask.astype(np.float32), matrix, lattice.shape, 1, mode='nearest') >= 0.5
    picture = resample(image.data, matrix, lattice.shape, 1, mode='nearest')
    picture[~reached(lattice, image.lattice)] = 0
    amplitude, relaxation = (np.zeros(lattice.shape, np.float32) for _ in range(2))
    if inside.any():
        box = _box(inside, 0)
        crop = lattice.cropped([s.start for s in box], [s.stop for s in box])
        # Output voxels much larger than the cells along an axis show their mean, not a point.
        repeat = points_per_voxel(fine, crop)
        rendered = render(layers, crop.refined(repeat) if max(repeat) > 1 else crop, backend=options.device)
        if max(repeat) > 1:
            shape = [n for pair in zip(crop.shape, repeat) for n in pair]
            rendered = rendered.reshape(shape).mean((1, 3, 5))
        # Nothing below the darkest acquired value: Gaussians may ring a little beside sharp edges.
        rendered = np.maximum(rendered, image.data.min())
        picture[box] = np.where(inside[box], rendered, picture[box])
        amplitude[box], relaxation[box] = _maps(layers[0], crop, options)
        amplitude[box] *= output_mask[box]
        relaxation[box] *= output_mask[box]
    return picture, amplitude, relaxation, output_mask & reached(lattice, image.lattice)


def _maps(field: GaussianField, lattice: Lattice, options) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude and relaxation proxy aggregated by the Gaussians alone, without their weights."""
    plain = GaussianField(
        field.means_mm, field.log_scales, field.quaternions, np.zeros(len(field)),
        np.stack([field.amplitudes[:, 0], relaxation_of(field.log_weights)], 1), 'normalized', ('a', 'rt'),
    )  # fmt: skip
    return tuple(render([plain], lattice, channel=c, backend=options.device) for c in ('a', 'rt'))


def estimate_memory_gb(image_shape, factors) -> float:
    """Peak memory of `superres` in GB for an image of this shape and cells per voxel along its axes.

    The interpreter and the training patches, and about 50 float32 images of the cells where the mask fills the
    image (seen: 1.2 GB for 4.9 million cells a third full, 2.0 GB for 6.7 million all full).
    """
    cells = float(np.prod(image_shape)) * float(np.prod(factors))
    return 1.0 + 4e-9 * 52.0 * cells
