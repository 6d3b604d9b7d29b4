"""Gaussians with few temporal modes fitted to k-space by Adam, in units of the noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bids_gsrecon.fields.dynamic import DynamicField2D
from bids_gsrecon.gpu.splat2d import frame_planes, splat, splat_gradient
from bids_gsrecon.imaging.sense import SenseSeries
from bids_gsrecon.recon.cine.initial import neighbour_laplacian

# Step sizes: centres and widths in pixels, amplitudes as a share of the bright signal; of the base and the modes.
BASE_STEPS = (0.16, 0.06, 0.01)
MODE_STEPS = (0.18, 0.03, 0.0066)
BASIS_STEP = 0.06
# By how much the modes of neighbours may differ: pixels (centres, widths), share of the bright signal.
MODE_SCALES = (1.0, 0.3, 0.3)
# Memories of Adam, shorter than usual.
MOMENTS = (0.8, 0.9)
# The first steps of Adam, which knows no slopes yet, are smaller.
WARM_UP = 5
# Of the steps on all frames, so many at full size; then they shrink to this.
FULL_SIZE, LAST_STEP = 0.3, 0.2
# A line of every frame is kept out of the fit where frames have so many, and looked at every few steps after the
# first: once its residual is above the least by this factor, the fit no longer learns what other lines say, but noise.
LINES_TO_SPARE, LOOK_FROM, LOOK_EVERY, WORSE = 10, 6, 3, 1.03
# Where the data are explained down to their noise, so many more: what follows would fit noise.
ENOUGH, LAST_STEPS = 1.0, 10


@dataclass(eq=False)
class _Part:
    """Some of the frames, their data, room for their images, and the time courses at them."""

    frames: slice
    series: SenseSeries
    planes: np.ndarray
    adam: Adam


class CineFit:
    """A field, its data, and Adam on both base and modes.

    Parameters
    ----------
    series
        Encoding and data, in units of the noise.
    field
        Start; changed in place.
    bright
        Signal of bright tissue: the unit of amplitudes.
    smoothness
        Strength of the neighbours' graph on the modes.
    learn_basis
        Let the time courses follow the data.
    """

    def __init__(
        self,
        series: SenseSeries,
        field: DynamicField2D,
        bright: float,
        *,
        smoothness: float,
        learn_basis: bool,
    ):
        self.series, self.field, self.bright = series, field, float(bright)
        self.smoothness, self.learn_basis = smoothness, learn_basis
        self.still = frame_planes(1, series.shape)
        self.history: list[float] = []
        self._all = self._part(slice(None))
        self._base_adam = Adam(field.base, self._by_parameter(BASE_STEPS))
        self._modes_adam = Adam(field.modes, self._by_parameter(MODE_STEPS))
        n_modes, n_dynamic = field.modes.shape[:2]
        self._laplacian = neighbour_laplacian(field.base[:n_dynamic, :2])
        orders = 1.0 + np.arange(n_modes) // 2
        tie = (smoothness * series.n_frames * orders**2)[:, None, None] / self._by_parameter(MODE_SCALES) ** 2
        self._tie = tie.astype(np.float32)

    def images(self) -> np.ndarray:
        """(T, x, y) complex of the field as it is."""
        self._render(self._all)
        return self._all.planes[:, 0] + np.complex64(1j) * self._all.planes[:, 1]

    def chi2(self) -> float:
        """Mean squared residual of the field as it is."""
        self._render(self._all)
        return self.series.gradient(self._all.planes)[1] / self.series.n_samples

    def sketch(self, n_steps: int, report: Callable[[int, int], None] = lambda done, total: None) -> float:
        """Make so many steps at most on every second frame in turn; returns chi^2, a little too high.

        Neighbouring frames say nearly the same of base and modes: half of them cost half. Ends early where chi^2
        reaches 1.
        """
        n_frames = self.series.n_frames
        parts = [self._part(slice(first, None, 2)) for first in (0, 1)] if n_frames > 3 else [self._all]
        recent = [float('inf')] * len(parts)
        for step in range(n_steps):
            which = step % len(parts)
            recent[which] = self._step(parts[which], lambda chi2: 1.0)
            report(step + 1, n_steps)
            if np.mean(recent) < ENOUGH:
                break
        return float(np.mean(recent))

    def refine(self, n_steps: int, report: Callable[[int, int], None] = lambda done, total: None) -> float:
        """Make so many steps at most on all frames, smaller ones at the end; returns chi^2.

        Ends early where chi^2 reaches 1, the residual that noise alone leaves (the discrepancy principle), or where
        lines that were kept out are predicted worse than before; the last steps see these too.
        """
        late, pace, least, ending = 0.0, 1.0 / max((1.0 - FULL_SIZE) * n_steps, 1), float('inf'), False
        part, kept_out, worse = self._all, None, 0
        held = lines_to_hold(self.series.lines, self.series.shape[1])
        if held is not None and n_steps > 2 * LAST_STEPS:
            rest, kept_out = self.series.split(held)
            part = replace(self._all, series=rest)

        def look(images):
            nonlocal least, worse
            now = kept_out.gradient(images)[1] / kept_out.n_samples
            least = min(least, now)
            worse = worse + 1 if now > WORSE * least else 0

        def size(chi2):
            nonlocal late, pace
            if ending:
                pace = max(pace, (1.0 - late) / LAST_STEPS)
            if ending or step >= FULL_SIZE * n_steps:
                late += pace
            return LAST_STEP ** min(late, 1.0)

        for step in range(n_steps):
            ending = ending or n_steps - step <= LAST_STEPS
            if ending:
                part = self._all
            wanted = kept_out is not None and not ending and step >= LOOK_FROM and step % LOOK_EVERY == 0
            chi2 = self._step(part, size, look if wanted else None)
            ending = ending or chi2 < ENOUGH or worse > 1
            report(step + 1, n_steps)
            if late >= 1.0:
                break
        return self.chi2()

    def _part(self, frames) -> _Part:
        series = self.series if frames == slice(None) else self.series.of_frames(frames)
        # The step of a time course needs what its own frame said before, not what others did.
        adam = Adam(self.field.basis[frames], BASIS_STEP)
        return _Part(frames, series, frame_planes(series.n_frames, series.shape), adam)

    def _step(self, part: _Part, size: Callable[[float], float], look=None) -> float:
        """One step of Adam, its size as ``size(chi2)`` says; chi^2 before it. ``look`` is shown the images."""
        field = self.field
        gradients, chi2 = self._gradients(part, look)
        self.history.append(chi2)
        n_modes, n_dynamic = field.modes.shape[:2]
        if n_modes and n_dynamic:
            spread = self._laplacian @ field.modes.transpose(1, 0, 2).reshape(n_dynamic, -1)
            gradients[1] += self._tie * spread.reshape(n_dynamic, n_modes, -1).transpose(1, 0, 2)
        factor = size(chi2) * min(1.0, (self._base_adam.count + 1) / WARM_UP)
        adam = [self._base_adam, self._modes_adam] + [part.adam] * self.learn_basis
        for one, gradient in zip(adam, gradients):
            one.step(gradient, factor)
        for width in (2, 4):
            np.maximum(field.base[:, width], field.min_width, out=field.base[:, width])
        return chi2

    def _by_parameter(self, three) -> np.ndarray:
        centre, width, amplitude = three
        return np.array([centre] * 2 + [width] * 3 + [amplitude * self.bright] * 2, np.float32)

    def _render(self, part: _Part):
        field, planes = self.field, part.planes
        self.still.base[...] = 0
        if field.n_gaussians > field.n_dynamic:
            splat(field.static_parameters(), self.series.shape, out=self.still)
        planes.base[...] = self.still.base
        moving = field.dynamic_parameters(field.basis[part.frames])
        if field.n_dynamic:
            splat(moving, self.series.shape, out=planes)
        return moving

    def _gradients(self, part: _Part, look=None):
        """Of half the squared residual, as if of all frames: base (M, 7), modes (K, D, 7), those of the basis; and chi^2."""
        field, planes = self.field, part.planes
        moving = self._render(part)
        if look is not None:
            look(planes)
        image_gradient, power = part.series.gradient(planes)
        planes.base[...] = 0
        planes[:, 0], planes[:, 1] = image_gradient.real, image_gradient.imag
        base = np.zeros_like(field.base)
        n_modes, n_dynamic = field.modes.shape[:2]
        by_frame = splat_gradient(moving, planes)
        base[:n_dynamic] = by_frame.sum(0)
        if field.n_gaussians > n_dynamic:
            self.still[0] = planes.sum(0)
            self.still.base[..., self.series.shape[1] :] = 0
            base[n_dynamic:] = splat_gradient(field.static_parameters(), self.still)[0]
        flat = by_frame.reshape(len(by_frame), n_dynamic * base.shape[1])
        modes = (field.basis[part.frames].T @ flat).reshape(field.modes.shape)
        basis = flat @ field.modes.reshape(n_modes, flat.shape[1]).T
        share = np.float32(self.series.n_frames / len(moving))
        return [base * share, modes * share, basis], power / part.series.n_samples


def lines_to_hold(lines: list[np.ndarray], n_lines: int) -> list[int] | None:
    """Of every frame the place in ``lines`` (T lists of ky) of one that other frames have too; None: too few to spare.

    Golden-ratio steps, so that they are spread evenly over each frame's lines.
    """
    if len(lines) < 2 or min(map(len, lines)) < LINES_TO_SPARE:
        return None
    times = np.bincount(np.concatenate(lines), minlength=n_lines)
    held = []
    for frame, ours in enumerate(lines):
        spare = np.flatnonzero(times[ours] > 1)
        held.append(int(spare[int((frame * 0.618034) % 1.0 * len(spare))]) if len(spare) else -1)
        if len(spare):
            times[ours[held[-1]]] -= 1
    return held


class Adam:
    """Kingma and Ba 2015, in place on ``values``; ``steps`` broadcasts to them."""

    def __init__(self, values: np.ndarray, steps, moments: tuple[float, float] = MOMENTS):
        self.values, self.steps, self.moments = values, steps, moments
        self.first, self.second, self.count = np.zeros_like(values), np.zeros_like(values), 0

    def step(self, gradient: np.ndarray, factor: float) -> None:
        """One step, its size times ``factor``."""
        self.count += 1
        first, second = self.moments
        self.first += (1 - first) * (gradient - self.first)
        self.second += (1 - second) * (gradient * gradient - self.second)
        size = np.sqrt(self.second / (1 - second**self.count)) + 1e-12
        change = np.asarray(self.steps) * factor * (self.first / (1 - first**self.count)) / size
        self.values -= change.astype(np.float32)


def with_more_motion(field: DynamicField2D, moves: np.ndarray) -> DynamicField2D:
    """The same field in which the Gaussians ``moves`` (M,) bool may move too; movers stay movers."""
    moves = moves.copy()
    moves[: field.n_dynamic] = True
    new = np.flatnonzero(moves[field.n_dynamic :]) + field.n_dynamic
    rest = np.flatnonzero(~moves)
    order = np.concatenate([np.arange(field.n_dynamic), new, rest])
    modes = np.zeros((len(field.modes), field.n_dynamic + len(new), 7), np.float32)
    modes[:, : field.n_dynamic] = field.modes
    return DynamicField2D(
        field.base[order], modes, field.basis, field.min_width, field.periodic, field.metadata
    )


def with_more_modes(field: DynamicField2D, columns: np.ndarray) -> DynamicField2D:
    """The same field with time courses ``columns`` (T, J) in addition, their modes zero."""
    modes = np.concatenate([field.modes, np.zeros((columns.shape[1], field.n_dynamic, 7), np.float32)])
    basis = np.concatenate([field.basis, columns], 1)
    return DynamicField2D(field.base, modes, basis, field.min_width, field.periodic, field.metadata)
