"""Slice-to-volume reconstruction: one volume and the pose of every slice, from stacks that moved."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from bids_gsrecon.gpu import thread_limit
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.stacks import SliceStack
from bids_gsrecon.recon.progress import Progress
from bids_gsrecon.recon.svr.joint import joint_step
from bids_gsrecon.recon.svr.pixels import GRID_SIGMA, Pixels, View, collect_pixels
from bids_gsrecon.recon.svr.poses import Frame, refine_groups, slice_gains
from bids_gsrecon.recon.svr.volume import solve_volume

MARGIN_MM = 6.0
PIXELS_PER_CELL = 2.0  # kept at coarse levels, in the area of a grid cell
CAUCHY = 2.5  # robust scale, of the median absolute residual


@dataclass(frozen=True)
class SvrOptions:
    """Schedule of the reconstruction."""

    resolution_mm: float = 0.8
    stack_motion: bool = True
    slice_motion: bool = True
    robust: bool = True
    n_joint_steps: int = 7
    n_threads: int = 0

    def __post_init__(self):
        if not self.resolution_mm > 0:
            raise ValueError(f'the resolution must be positive, not {self.resolution_mm}')


@dataclass(eq=False)
class SvrResult:
    """Volume on ``lattice`` (bright tissue about 1), poses (M, 4, 4) slice as stored -> anatomy."""

    lattice: Lattice
    image: np.ndarray
    poses: np.ndarray
    gains: np.ndarray
    pixels: Pixels
    seconds: dict[str, float] = field(default_factory=dict)


def grid_over(points_mm: np.ndarray, spacing_mm: float, margin_mm: float = MARGIN_MM) -> Lattice:
    """An axis-aligned isotropic grid over points."""
    low, high = points_mm.min(0) - margin_mm, points_mm.max(0) + margin_mm
    shape = np.ceil((high - low) / spacing_mm).astype(int) + 1
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing_mm * (shape - 1) / 2
    return Lattice(tuple(shape), affine)


def svr(
    stacks: list[SliceStack],
    *,
    options: SvrOptions = SvrOptions(),
    progress: Progress | None = None,
) -> SvrResult:
    """Reconstruct.

    Raises
    ------
    ValueError
        Fewer than two stacks, or a stack without signal in its mask.
    """
    if len(stacks) < 2:
        raise ValueError('slice-to-volume reconstruction needs two stacks at least, in different directions')
    report = progress or (lambda stage, done, total: None)
    with thread_limit(options.n_threads):
        return _svr(stacks, options, report)


def _svr(stacks, options, report) -> SvrResult:
    seconds: dict[str, float] = {}
    clock = time.perf_counter()
    pixels = collect_pixels(stacks)
    n_stacks = len(stacks)
    h = options.resolution_mm
    poses = np.tile(np.eye(4), (pixels.n_slices, 1, 1))
    core = pixels.points_mm[pixels.in_mask]
    centre = np.median(core, axis=0)
    arm = float(np.sqrt(np.mean(np.sum((core - centre) ** 2, 1))))
    frame = Frame(centre, arm)
    ones = np.ones(pixels.n_slices)
    thickness = max(stack.thickness_mm for stack in stacks)
    if options.stack_motion:
        for number, spacing in enumerate((max(3 * h, thickness), max(3 * h, thickness))):
            report('aligning stacks', number, 2)
            level = _thinned(pixels, spacing)
            images, lattice = _leave_out(level, poses, spacing, n_stacks, ones)
            poses = refine_groups(level, lattice, images, poses, pixels.stack_of, frame, n_steps=6)
        seconds['stacks'] = time.perf_counter() - clock
        clock = time.perf_counter()
    if options.slice_motion:
        level = _thinned(pixels, 3 * h)
        for number, size in enumerate((4, 2)):
            report('aligning packets of slices', number, 2)
            images, lattice = _leave_out(level, poses, 3 * h, n_stacks, ones)
            poses = refine_groups(level, lattice, images, poses, _packets(pixels, size), frame, n_steps=4)
        seconds['packets'] = time.perf_counter() - clock
        clock = time.perf_counter()
        level = _thinned(pixels, 2 * h)
        lattice = grid_over(level.points_mm, 2 * h)
        image = np.zeros(lattice.shape, np.float32)
        gains = ones
        rounds = 8
        for number in range(rounds):
            report('aligning slices', number, rounds)
            view = View.make(level, lattice, poses)
            image = solve_volume(view, np.ones(len(level.values)), gains, image, n_iterations=10, n_rounds=1)
            prior = 0.04 * (0.001 / 0.04) ** (number / rounds)
            each = np.arange(pixels.n_slices)
            images = [image]
            poses = refine_groups(level, lattice, images, poses, each, frame, n_steps=4, prior=prior)
        seconds['slices'] = time.perf_counter() - clock
        clock = time.perf_counter()
    last = pixels.selected(pixels.in_mask)
    placed = View.make(last, grid_over(core, 4 * h), poses).placed_mm
    lattice = grid_over(placed, h)
    weights = np.ones(len(last.values))
    view = View.make(last, lattice, poses)
    image = solve_volume(
        view, weights, ones, np.zeros(lattice.shape, np.float32), n_iterations=12, n_rounds=2
    )
    gains = _gains(view, image, weights)
    n_steps = options.n_joint_steps if options.slice_motion else 0
    for number in range(n_steps):
        report('volume and poses together', number, n_steps)
        robust = options.robust and number >= n_steps - 3
        weights = robust_weights(view, image, gains) if robust else weights
        image, poses = joint_step(
            view,
            image,
            gains,
            weights,
            frame,
            prior=0.01 * (0.1 ** (number / max(1, n_steps - 1))),
            n_iterations=12,
        )
        view = View.make(last, lattice, poses)
        gains = _gains(view, image, weights)
    image = solve_volume(view, weights, gains, image, n_iterations=10, n_rounds=2)
    seconds['joint'] = time.perf_counter() - clock
    return SvrResult(lattice, sampled(image), poses, gains, pixels, seconds)


def sampled(amplitudes: np.ndarray) -> np.ndarray:
    """The field at the grid's own nodes: amplitudes blurred by the grid's Gaussian, of unit mass."""
    from scipy import ndimage

    return ndimage.gaussian_filter(amplitudes, GRID_SIGMA, truncate=3.0, mode='nearest')


def _thinned(pixels: Pixels, spacing_mm: float) -> Pixels:
    """About as many pixels as a grid of that spacing can tell apart: a deterministic share of them."""
    share = float(np.clip((pixels.spacing_mm.mean() / spacing_mm) ** 2 * PIXELS_PER_CELL, 0.0, 1.0))
    if share >= 0.9:
        return pixels
    step = 1.0 / share
    keep = np.zeros(len(pixels.values), bool)
    keep[(np.arange(0, len(keep), step)).astype(int)] = True
    return pixels.selected(keep)


def _leave_out(pixels: Pixels, poses, spacing_mm: float, n_stacks: int, gains):
    """One volume per stack, made of all the others; and their lattice."""
    lattice = grid_over(pixels.points_mm, spacing_mm)
    images = []
    for stack in range(n_stacks):
        others = pixels.selected(pixels.stack_of[pixels.slice_of] != stack)
        view = View.make(others, lattice, poses)
        start = np.zeros(lattice.shape, np.float32)
        images.append(
            solve_volume(view, np.ones(len(others.values)), gains, start, n_iterations=10, n_rounds=1)
        )
    return images, lattice


def _packets(pixels: Pixels, size: int) -> np.ndarray:
    """(M,) groups of ``size`` slices acquired one after the other."""
    groups = np.empty(pixels.n_slices, int)
    count = 0
    for stack in np.unique(pixels.stack_of):
        mine = np.flatnonzero(pixels.stack_of == stack)
        mine = mine[np.argsort(pixels.rank[mine], kind='stable')]
        groups[mine] = count + np.arange(len(mine)) // size
        count = groups[mine].max() + 1
    return groups


def _gains(view: View, image, weights) -> np.ndarray:
    p = view.pixels
    return slice_gains(view.weights.forward(image), p.values, weights, p.slice_of, p.n_slices, p.in_mask)


def robust_weights(view: View, image, gains) -> np.ndarray:
    """Cauchy weights of pixels, times those of their slices."""
    p = view.pixels
    residual = p.values - gains[p.slice_of] * view.weights.forward(image)
    scale = CAUCHY * 1.4826 * float(np.median(np.abs(residual))) + 1e-6
    pixel = 1.0 / (1.0 + (residual / scale) ** 2)
    count = np.bincount(p.slice_of, minlength=p.n_slices)
    rms = np.sqrt(np.bincount(p.slice_of, residual**2, p.n_slices) / np.maximum(count, 1))
    typical = float(np.median(rms[count > 0])) + 1e-9
    per_slice = 1.0 / (1.0 + (np.maximum(rms / typical - 1.0, 0.0) / 0.5) ** 2)
    return pixel * per_slice[p.slice_of]
