"""What a reconstruction is handed over with: mask, uncertainty, coverage, predicted slices, a row per slice."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.foreground import largest_component
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.render import render
from bids_gsrecon.recon.svr.frame import stack_motion
from bids_gsrecon.recon.svr.lost import leave_out_ncc
from bids_gsrecon.recon.svr.pixels import Pixels, brightness
from bids_gsrecon.recon.svr.types import SliceTable, SvrResult
from bids_gsrecon.recon.svr.view import CUTOFF, View, unit_mass, variance_ratio

LEAST_WEIGHT = 0.25  # of a slice that counts
LEAST_NCC = 0.3  # with what the other stacks predict


def finish(stacks, run, view: View, image, gains, weights, reference: int) -> SvrResult:
    """The result in the units of the reference stack.

    Parameters
    ----------
    run
        The reconstruction at its end: pixels (without their bias), the bias, poses, backend, options.
    view, image, gains, weights
        Masked pixels at their final poses, amplitudes, slice gains and pixel weights.
    """
    scale = brightness(stacks[reference])
    lattice = view.lattice
    everything = View.make(run.pixels, lattice, run.poses, run.backend, grid_sigma=view.grid_sigma)
    mask = anatomy_mask(everything)
    size = run.pixels.size_mm[view.pixels.slice_of]
    coverage = view.adjoint(weights * size.prod(1) / lattice.voxel_sizes_mm[0] ** 3)
    field = grid_field(image * scale, lattice, mask, coverage > 0, view.grid_sigma)
    sampled = render([field], lattice, backend=run.options.device)
    return SvrResult(
        lattice=lattice,
        image=np.where(mask, sampled, 0).astype(np.float32),
        mask=mask,
        uncertainty=np.where(mask, scale * standard_error(view, image, gains, weights), 0).astype(np.float32),
        coverage=coverage,
        field=field,
        poses=run.poses,
        slices=slice_table(run, view.pixels, gains, weights),
        predicted=predicted_slices(
            stacks, everything, image, gains[run.pixels.slice_of] * run.bias.at(run.pixels)
        ),
        reference=reference,
        seconds=run.seconds,
    )


def grid_field(amplitudes, lattice: Lattice, mask, seen, grid_sigma: float) -> GaussianField:
    """The Gaussians of a grid that reach into the mask, or that slices see (a slice's mask may be wider);
    amplitudes are theirs on the grid."""
    h = float(lattice.voxel_sizes_mm[0])
    reach = int(np.ceil(CUTOFF * grid_sigma)) + 1
    ball = ndimage.generate_binary_structure(3, 1)
    keep = seen | ndimage.binary_dilation(mask, ball, iterations=reach)
    where = np.argwhere(keep)
    n = len(where)
    sigma = grid_sigma / np.sqrt(variance_ratio(CUTOFF))  # in grid spacings
    return GaussianField(
        means_mm=lattice.to_world(where),
        log_scales=np.full((n, 3), np.log(sigma * h)),
        quaternions=np.tile([1.0, 0.0, 0.0, 0.0], (n, 1)),
        log_weights=np.full(n, -np.log(unit_mass(CUTOFF) * sigma**3)),
        amplitudes=amplitudes[keep][:, None],
        composition='sum',
        channels=('intensity',),
    )


def anatomy_mask(view: View) -> np.ndarray:
    """(nx, ny, nz) where most of what slices see is inside their masks; one piece, no holes."""
    p = view.pixels
    area = p.size_mm.prod(1)[p.slice_of]
    inside, seen = view.adjoint(area * p.in_mask), view.adjoint(area)
    mask = inside > 0.5 * np.maximum(seen, 1e-6 * max(float(seen.max()), 1e-30))
    return ndimage.binary_fill_holes(largest_component(mask))


def standard_error(view: View, image, gains, weights) -> np.ndarray:
    """Of the volume, from what slices disagree about there and from how much they see of it."""
    residual = view.pixels.residual(view.forward(image), gains)
    seen = np.maximum(view.adjoint(weights), 1e-3)
    variance = view.adjoint(weights * residual**2) / seen
    return np.sqrt(variance / seen)


def predicted_slices(stacks, view: View, image, brightness_of_pixel) -> list[np.ndarray]:
    """Per stack (i, j, slice) in its own units; NaN where there is no pixel.

    ``brightness_of_pixel`` (N,): gain and bias of the slices at their pixels.
    """
    p = view.pixels
    value = view.forward(image) * brightness_of_pixel
    out = []
    for number, stack in enumerate(stacks):
        mine = p.of_stack(number)
        volume = np.full(stack.lattice.shape, np.nan, np.float32)
        where = np.rint(stack.lattice.to_index(p.points_mm[mine])).astype(int)
        volume[tuple(where.T)] = value[mine] * brightness(stack)
        out.append(volume)
    return out


def slice_table(run, pixels: Pixels, gains, weights) -> SliceTable:
    """One row per slice; ``pixels`` and ``weights`` are those in the mask."""
    p = run.pixels
    count = p.n_masked
    weight = np.bincount(pixels.slice_of, weights, p.n_slices) / np.maximum(count, 1)
    agreement = leave_out_ncc(run)
    excluded = (weight < LEAST_WEIGHT) | (agreement < LEAST_NCC)
    whole = np.stack([stack_motion(p, run.poses, stack) for stack in range(p.n_stacks)])
    own = np.linalg.inv(whole)[p.stack_of] @ run.poses
    way = np.linalg.norm(pixels.placed(own) - pixels.points_mm, axis=1)
    motion = np.bincount(pixels.slice_of, way, p.n_slices) / np.maximum(count, 1)
    return SliceTable(p.stack_of, p.index, p.rank, gains, weight, agreement, motion, excluded)
