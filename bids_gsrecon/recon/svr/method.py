"""Slice-to-volume reconstruction: one volume and the pose of every slice, from stacks that moved.

Coarse to fine: whole stacks, packets of slices and single slices are aligned with volumes of wide Gaussians, then the
volume at its final spacing and all poses are solved for together. See M-Gaussian for the idea (Gaussians and slice poses
fitted jointly) and Kuklisova-Murgasova et al. 2012 for robust weights and point spreads; amplitudes are a linear problem
here, and poses are found by Gauss-Newton instead of gradient descent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np

from bids_gsrecon.gpu import get_backend, thread_limit
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.stacks import SliceStack
from bids_gsrecon.recon.progress import Progress
from bids_gsrecon.recon.svr.bias import SliceBias
from bids_gsrecon.recon.svr.frame import choose_reference, grid_axes, grid_over, to_reference
from bids_gsrecon.recon.svr.joint import joint_step
from bids_gsrecon.recon.svr.lost import SMALL, align_apart, find_lost
from bids_gsrecon.recon.svr.motion import Frame, in_time, neighbour_means
from bids_gsrecon.recon.svr.pixels import Pixels, brightness, collect_pixels
from bids_gsrecon.recon.svr.poses import PoseProblem, slice_gains
from bids_gsrecon.recon.svr.quality import finish
from bids_gsrecon.recon.svr.robust import robust_weights
from bids_gsrecon.recon.svr.shapes import NARROW_SIGMA, ShapedView, Shapes
from bids_gsrecon.recon.svr.turned import find_turned
from bids_gsrecon.recon.svr.types import SliceTable, SvrOptions, SvrResult
from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.recon.svr.volume import NOISE_SMOOTHNESS, noise_variance, self_similar, solve_volume
from bids_gsrecon.solvers.blas_threads import single_threaded_blas

PIXELS_PER_CELL = 2.0  # kept at coarse levels, in the area of a grid cell
# Grid spacing (of the final one), slices that move together, rounds at most: large motion is found in large packets on
# coarse grids, again and again, as every volume that slices are compared with gets better.
PACKETS = ((6, 8, 3), (5, 6, 3), (5, 4, 3), (4, 3, 2), (4, 2, 2), (3, 1, 4))
QUIET = 0.15  # mean way of the pixels, of the spacing, below which a further round is not worth it
SLICE_ROUNDS = 8
SLICE_PASSES = 3  # of these rounds at most: further ones while lost slices are being found
# Rounds after which slices that lost their way are looked for; later ones if some were found.
FIND_LOST = (4, 6)
# Last rounds of volume and poses, in which slices also get a field of brightness: before, it would explain what
# the volume does not show yet.
BIAS_ROUNDS = 4
STILL_ROUNDS = 3  # of volume and brightness of slices, where no slice moves by itself
PLACE_SMALL = (3, 6)  # joint steps after which small slices are aligned with the others alone
FIRST_PULL, LAST_PULL = 0.04, 0.001  # of neighbours in time on poses, while single slices are aligned


def svr(
    stacks: list[SliceStack], *, options: SvrOptions | None = None, progress: Progress | None = None
) -> SvrResult:
    """Reconstruct.

    The result does not depend on the order of the stacks, nor on where the scanner's world has its origin and axes.

    Raises
    ------
    ValueError
        Fewer than two stacks, or a stack without signal in its mask.
    """
    options = options or SvrOptions()
    if len(stacks) < 2:
        raise ValueError('slice-to-volume reconstruction needs two stacks at least, in different directions')
    for number, stack in enumerate(stacks, 1):
        if not brightness(stack) > 0:
            raise ValueError(f'stack {number} has no signal inside its mask: leave it out')
    # One order of the stacks, whatever order they come in: sums then have the same bits.
    order = sorted(range(len(stacks)), key=lambda n: _content(stacks[n]))
    if options.reference is not None:
        options = replace(options, reference=order.index(options.reference))
    report = progress or (lambda stage, done, total: None)
    backend, residual_field = get_backend(options.device), None
    if options.residual_field:
        from bids_gsrecon.recon.svr.residual_field import add_residual_field as residual_field
    # What needs torch has loaded it by now, so that its threads are limited too. Products are of 3 x 3 matrices.
    with thread_limit(options.n_threads), single_threaded_blas():
        stacks = [stacks[n] for n in order]
        result = _Reconstruction(stacks, options, report, backend, residual_field).run()
    return _as_given(result, np.array(order))


def _content(stack: SliceStack) -> tuple:
    return int(stack.mask.sum()), float(stack.data[stack.mask].sum(dtype=np.float64)), stack.lattice.shape


def _as_given(result: SvrResult, order: np.ndarray) -> SvrResult:
    """Rows and lists in the order of the stacks as they were given."""
    table = result.slices
    stack = order[table.stack]
    rows = np.lexsort((table.index, stack))
    columns = {f.name: getattr(table, f.name)[rows] for f in fields(table)}
    columns['stack'] = stack[rows]
    return replace(
        result,
        slices=SliceTable(**columns),
        poses=result.poses[rows],
        predicted=[result.predicted[n] for n in np.argsort(order)],
        reference=int(order[result.reference]),
    )


@dataclass(eq=False)
class _Reconstruction:
    """What the stages share: pixels, poses so far, who computes, how long it took."""

    stacks: list[SliceStack]
    options: SvrOptions
    report: Callable[[str, int, int], None]
    backend: object
    residual_field: Callable | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> SvrResult:
        self.pixels = collect_pixels(self.stacks, point_spread=self.options.point_spread)
        self.axes = grid_axes(self.pixels, 0)
        self.frame = Frame.around(self.pixels.points_mm[self.pixels.in_mask])
        self.poses = np.tile(np.eye(4), (self.pixels.n_slices, 1, 1))
        if self.options.stack_motion:
            self._timed('stacks', self._align_stacks)
        if self.options.slice_motion:
            self._timed('packets', self._align_packets)
            self._timed('slices', self._align_slices)
        reference = choose_reference(self.pixels, self.poses, self.frame, self.options.reference)
        self.poses = to_reference(self.pixels, self.poses, reference)
        self.axes = grid_axes(self.pixels, reference)
        solution = self._timed('joint', self._reconstruct)
        return self._timed('quality', lambda: finish(self.stacks, self, *solution, reference))

    def _timed(self, name: str, stage: Callable):
        start = time.perf_counter()
        out = stage()
        self.seconds[name] = time.perf_counter() - start
        return out

    def level(self, spacing_mm: float) -> tuple[Pixels, Lattice]:
        """About as many pixels as a grid of that spacing can tell apart, and the grid."""
        share = (self.pixels.size_mm[:, :2].min() / spacing_mm) ** 2 * PIXELS_PER_CELL
        thinned = self.pixels.thinned(float(share))
        return thinned, self.grid(thinned, spacing_mm)

    def grid(self, pixels: Pixels, spacing_mm: float) -> Lattice:
        """A grid over pixels as they lie now."""
        return grid_over(pixels.placed(self.poses), spacing_mm, self.axes)

    def leave_out(self, pixels: Pixels, lattice: Lattice, n_iterations: int = 7) -> list[np.ndarray]:
        """One volume per stack, made of all the others."""
        images, gains = [], np.ones(pixels.n_slices)
        for stack in range(pixels.n_stacks):
            others = ~pixels.of_stack(stack)
            view = View.make(pixels.selected(others), lattice, self.poses, self.backend)
            ones = np.ones(len(view.pixels.values))
            images.append(solve_volume(view, ones, gains, n_iterations=n_iterations, n_rounds=1))
        return images

    def _align_stacks(self):
        spacing = max(3 * self.options.resolution_mm, *(stack.thickness_mm for stack in self.stacks))
        self.report('aligning stacks', 0, 3)
        find_turned(self, spacing)
        for number in range(1, 3):
            self.report('aligning stacks', number, 3)
            pixels, lattice = self.level(spacing)
            problem = PoseProblem(pixels, lattice, self.leave_out(pixels, lattice), self.frame, self.backend)
            self.poses, _ = problem.refine(self.poses, pixels.stack_of, n_steps=6)

    def _align_packets(self):
        for level, (voxels, size, most) in enumerate(PACKETS):
            spacing = voxels * self.options.resolution_mm
            for _ in range(most):
                self.report('aligning packets of slices', level, len(PACKETS))
                pixels, lattice = self.level(spacing)
                problem = PoseProblem(
                    pixels, lattice, self.leave_out(pixels, lattice), self.frame, self.backend
                )
                before = pixels.placed(self.poses)
                self.poses, _ = problem.refine(self.poses, packets(pixels, size), n_steps=4)
                way = np.linalg.norm(pixels.placed(self.poses) - before, axis=1)
                if way.mean() < QUIET * spacing:
                    break

    def _align_slices(self):
        for number in range(SLICE_PASSES):
            stage = 'aligning slices' if number == 0 else f'aligning slices, pass {number + 1}'
            if not self._align_each(stage):
                return

    def _align_each(self, stage: str) -> bool:
        """One pass of single slices; whether lost ones were still being found at its end."""
        image, found = None, True
        each = np.arange(self.pixels.n_slices)
        ones = np.ones(self.pixels.n_slices)
        pixels, lattice = self.level(2 * self.options.resolution_mm)
        for number in range(SLICE_ROUNDS):
            self.report(stage, number, SLICE_ROUNDS)
            view = View.make(pixels, lattice, self.poses, self.backend)
            image = solve_volume(view, np.ones(len(pixels.values)), ones, image, n_iterations=6, n_rounds=1)
            pull = FIRST_PULL * (LAST_PULL / FIRST_PULL) ** (number / SLICE_ROUNDS)
            problem = PoseProblem(pixels, lattice, [image], self.frame, self.backend)
            self.poses, _ = problem.refine(self.poses, each, n_steps=4, prior=pull)
            if number in FIND_LOST and found:
                found = find_lost(self)
        return found

    def _reconstruct(self):
        """The view, amplitudes, gains and pixel weights at the end."""
        pixels = self.pixels.selected(self.pixels.in_mask)
        lattice = self.grid(pixels, self.options.resolution_mm)
        weights = np.ones(len(pixels.values), np.float32)
        before = self.poses
        view = View.make(pixels, lattice, self.poses, self.backend)
        image = solve_volume(view, weights, np.ones(pixels.n_slices))
        predicted = view.forward(image)
        gains = slice_gains(predicted, pixels, weights)
        acquired, self.bias = pixels, SliceBias.none(pixels)
        n_steps = self.options.joint_steps if self.options.slice_motion else 0
        n_rounds = n_steps or (STILL_ROUNDS if self.options.slice_bias else 0)
        for number in range(n_rounds):
            self.report('volume and poses together', number, n_rounds)
            if self.options.robust and number >= n_rounds - 3:
                weights = robust_weights(predicted, pixels, gains)
            smoothness = NOISE_SMOOTHNESS * noise_variance(pixels.residual(predicted, gains))
            if n_steps:
                pull = 0.01 * 0.1 ** (number / max(1, n_steps - 1))
                image, self.poses = joint_step(
                    view, image, gains, weights, self.frame,
                    smoothness=smoothness, prior=pull, n_iterations=8,
                )  # fmt: skip
            else:
                image = solve_volume(view, weights, gains, image, smoothness=smoothness, n_iterations=8)
            if n_steps and number in PLACE_SMALL:
                self._place_small(view, image, gains, before)
            if self.options.slice_bias and number >= n_rounds - BIAS_ROUNDS:
                self.bias = self.bias.fitted(acquired, predicted, gains, weights)
                pixels = self.bias.removed(acquired)
            view = View.make(pixels, lattice, self.poses, self.backend)
            predicted = view.forward(image)
            gains = slice_gains(predicted, pixels, weights)
        self.pixels = self.bias.removed(self.pixels)
        if self.options.robust:
            weights = robust_weights(predicted, pixels, gains)
        smoothness = NOISE_SMOOTHNESS * noise_variance(pixels.residual(predicted, gains))
        seen = view
        if self.options.anisotropic:
            view = View.make(pixels, lattice, self.poses, self.backend, grid_sigma=NARROW_SIGMA)
            seen = ShapedView(view, Shapes.of(image))
        image = solve_volume(seen, weights, gains, image, smoothness=smoothness, n_iterations=6)
        if self.options.self_similarity:
            image = self_similar(seen, weights, gains, image, self.report)
        if self.options.anisotropic:
            image = seen.shapes.spread(image)
        if self.residual_field is not None:
            image = self.residual_field(
                view, weights, gains, image, seed=self.options.seed, progress=self.report
            )
        return view, image, gains, weights

    def _place_small(self, view: View, image, gains, before: np.ndarray):
        """Align small slices, from several starts, with a volume made of the others.

        At the edge of the anatomy a slice with few pixels is often the only one where it lies, and the joint steps
        let it wander. ``before`` are the poses at the joint steps' start.
        """
        pixels, lattice = view.pixels, view.lattice
        size = np.bincount(pixels.slice_of, minlength=pixels.n_slices)
        small = size < SMALL * np.median(size)
        if not small.any():
            return
        means = neighbour_means(self.frame.parameters(self.poses), pixels.stack_of, pixels.rank, size)
        starts = before, self.frame.motions(means)
        self.poses = align_apart(self, pixels, lattice, small, starts, n_steps=4, gains=gains, image=image)


def packets(pixels: Pixels, size: int) -> np.ndarray:
    """(M,) groups of ``size`` slices acquired one after the other."""
    groups = np.empty(pixels.n_slices, int)
    count = 0
    for mine in in_time(pixels.stack_of, pixels.rank):
        groups[mine] = count + np.arange(len(mine)) // size
        count = groups[mine].max() + 1
    return groups
