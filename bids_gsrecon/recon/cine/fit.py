"""Gaussians with few temporal modes fitted to k-space by Adam, in units of the noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bids_gsrecon.fields.dynamic import DynamicField2D
from bids_gsrecon.gpu.splat2d import frame_planes, splat, splat_gradient
from bids_gsrecon.imaging.sense import SenseSeries
from bids_gsrecon.recon.cine.initial import neighbour_laplacian

# Step sizes: centres and widths in pixels, amplitudes as a share of the bright signal; of the base and the modes.
BASE_STEPS = (0.08, 0.03, 0.03)
MODE_STEPS = (0.06, 0.015, 0.02)
BASIS_STEP = 0.01
# By how much the modes of neighbours may differ: pixels (centres, widths), share of the bright signal.
MODE_SCALES = (1.0, 0.3, 0.3)
# Memories of Adam: shorter than usual, worth 30 of 150 steps.
MOMENTS = (0.85, 0.92)
# After the first half the steps shrink to this.
LAST_STEP = 0.1
# Once they shrink and the data are explained down to their noise, so many more: what follows would fit noise.
ENOUGH, LAST_STEPS = 1.0, 10


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
        self.planes = frame_planes(series.n_frames, series.shape)
        self.still = frame_planes(1, series.shape)
        self.history: list[float] = []

    def images(self) -> np.ndarray:
        """(T, x, y) complex of the field as it is."""
        self._render()
        return self.planes[:, 0] + np.complex64(1j) * self.planes[:, 1]

    def chi2(self) -> float:
        """Mean squared residual of the field as it is."""
        self._render()
        return self.series.gradient(self.planes)[1] / self.series.n_samples

    def run(self, n_steps: int, report: Callable[[int, int], None] = lambda done, total: None) -> float:
        """Make so many steps at most; returns chi^2.

        Ends early where chi^2 reaches 1, the residual that noise alone leaves (the discrepancy principle).
        """
        field = self.field
        n_modes, n_dynamic = field.modes.shape[:2]
        laplacian = neighbour_laplacian(field.base[:n_dynamic, :2])
        mode_scales = self._by_parameter(MODE_SCALES)
        adam = [
            Adam(field.base, self._by_parameter(BASE_STEPS)),
            Adam(field.modes, self._by_parameter(MODE_STEPS)),
        ]
        orders = 1.0 + np.arange(n_modes) // 2
        tie = (self.smoothness * self.series.n_frames * orders**2)[:, None, None] / mode_scales**2
        tie = tie.astype(np.float32)
        if self.learn_basis:
            adam.append(Adam(field.basis, BASIS_STEP))
        late, pace = 0.0, 1.0 / max(0.5 * n_steps, 1)
        for step in range(n_steps):
            gradients, chi2 = self._gradients()
            self.history.append(chi2)
            if step > 0.5 * n_steps:
                if chi2 < ENOUGH:
                    pace = max(pace, (1.0 - late) / LAST_STEPS)
                late += pace
            if late >= 1.0:
                break
            if n_modes and n_dynamic:
                spread = laplacian @ field.modes.transpose(1, 0, 2).reshape(n_dynamic, -1)
                gradients[1] += tie * spread.reshape(n_dynamic, n_modes, -1).transpose(1, 0, 2)
            for one, gradient in zip(adam, gradients):
                one.step(gradient, LAST_STEP**late)
            for width in (2, 4):
                np.maximum(field.base[:, width], field.min_width, out=field.base[:, width])
            report(step + 1, n_steps)
        return self.chi2()

    def _by_parameter(self, three) -> np.ndarray:
        centre, width, amplitude = three
        return np.array([centre] * 2 + [width] * 3 + [amplitude * self.bright] * 2, np.float32)

    def _render(self):
        self.still.base[...] = 0
        if self.field.n_gaussians > self.field.n_dynamic:
            splat(self.field.static_parameters(), self.series.shape, out=self.still)
        self.planes.base[...] = self.still.base
        moving = self.field.dynamic_parameters()
        if self.field.n_dynamic:
            splat(moving, self.series.shape, out=self.planes)
        return moving

    def _gradients(self):
        """Of half the squared residual: base (M, 7), modes (K, D, 7), basis (T, K); and chi^2."""
        field = self.field
        moving = self._render()
        image_gradient, power = self.series.gradient(self.planes)
        self.planes.base[...] = 0
        self.planes[:, 0], self.planes[:, 1] = image_gradient.real, image_gradient.imag
        base = np.zeros_like(field.base)
        n_modes, n_dynamic = field.modes.shape[:2]
        by_frame = splat_gradient(moving, self.planes)
        base[:n_dynamic] = by_frame.sum(0)
        if field.n_gaussians > n_dynamic:
            self.still[0] = self.planes.sum(0)
            self.still.base[..., self.series.shape[1] :] = 0
            base[n_dynamic:] = splat_gradient(field.static_parameters(), self.still)[0]
        flat = by_frame.reshape(len(by_frame), n_dynamic * base.shape[1])
        modes = (field.basis.T @ flat).reshape(field.modes.shape)
        basis = flat @ field.modes.reshape(n_modes, flat.shape[1]).T
        return [base, modes, basis], power / self.series.n_samples


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
