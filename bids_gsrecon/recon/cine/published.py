"""The published model: a constant complex amplitude, and in every frame a shift and a change of shape of its own.

``G_t = sum_m c_m exp(-|z|^2 / 2)``, ``(L_m + l_mt) z = x - mu_m - dmu_mt``; loss
``mean(w |E G - y|^2) + 1e-4 (|dmu|_* + TV_t(dmu) + TV_t(l))`` with k-space scaled to a maximum of 1 and, for the HDR
loss, ``w = 1 / (|E G| + 1e-2)^2`` held constant; Adam with steps of 1e-3, 7500 of them, small or dim Gaussians pruned
every 500. The paper leaves some things open; here: positions in halves of the field of view, start as for the default
model, nuclear norm of the (T, 2 M) matrix, sums (not means) over Gaussians and frames.
"""

from __future__ import annotations

import numpy as np

from bids_gsrecon.fields.dynamic import DynamicField2D
from bids_gsrecon.gpu.splat2d import frame_planes, splat, splat_gradient
from bids_gsrecon.imaging.kspace import CineKSpace
from bids_gsrecon.imaging.sense import SenseSeries
from bids_gsrecon.recon.cine.clock import Clock
from bids_gsrecon.recon.cine.fit import Adam
from bids_gsrecon.recon.cine.initial import PIXELS_PER_GAUSSIAN, activity_map, place, solve_amplitudes
from bids_gsrecon.recon.cine.prepare import prepare
from bids_gsrecon.recon.cine.types import CineOptions, CineResult
from bids_gsrecon.recon.cine.verdict import judge, unexplained_share

STEPS, STEP_SIZE, STRENGTH, HDR_EPS = 7500, 1e-3, 1e-4, 1e-2
MOMENTS = (0.9, 0.999)
PRUNE_EVERY, SMALLEST_WIDTH, DIMMEST = 500, 0.2, 5e-3


def reconstruct_free(kspace: CineKSpace, options: CineOptions, *, seed: int, progress) -> CineResult:
    """As `bids_gsrecon.recon.cine.reconstruct_cine`, with the published model."""
    clock, seconds = Clock(), {}
    ready = prepare(kspace, options.n_harmonics, fewer_coils=False)
    series, support = ready.series, ready.coils.support
    mean = ready.linear[0] * support
    n = options.n_gaussians or max(1, round(support.sum() / PIXELS_PER_GAUSSIAN))
    base = place(mean, activity_map(ready.linear[1:], support), support, n, np.random.default_rng(seed))
    solve_amplitudes(base, mean)
    clock.add('coils and linear', seconds)
    fit = FreeFit(series, base, loss=options.loss)
    steps = options.iterations or STEPS
    fit.run(steps, lambda done, total: progress('Gaussians, every frame by itself', done, total))
    clock.add('Gaussians fitted', seconds)
    images = fit.images()
    chi2 = series.gradient(images)[1] / series.n_samples
    scale = np.float32(kspace.scale)
    fit.base[:, 5:] *= scale
    field = fit.field(options.periodic)
    # Measured: 8 dB below the default model at R = 8, at a chi^2 that would pass.
    notes = (
        *kspace.notes,
        'with a motion of its own for every frame, chi^2 cannot tell a fit from an overfit',
    )
    unexplained = unexplained_share(series, chi2)
    verdict, reasons = judge(chi2, unexplained, ready.kspace.acceleration, 0, notes)
    figures = {
        'chi2': chi2,
        'unexplained_share': unexplained,
        'acceleration': ready.kspace.acceleration,
        'gaussians': field.n_gaussians,
        'moving_gaussians': field.n_dynamic,
        'modes': len(field.modes),
        'lines_left_out': ready.n_dropped,
    }
    return CineResult(images * scale, field, support, chi2, 0, verdict, reasons, figures, seconds)


class FreeFit:
    """Adam on base (M, 7) and the shifts and shapes (T, M, 5) of every frame."""

    def __init__(self, series: SenseSeries, base: np.ndarray, *, loss: str):
        self.series, self.base, self.loss = series, base, loss
        self.motion = np.zeros((series.n_frames, len(base), 5), np.float32)
        self.data_scale = float(np.abs(series.data).max())
        self._restart()

    def images(self) -> np.ndarray:
        """(T, x, y) complex."""
        planes = splat(self._parameters(), self.series.shape)
        return planes[:, 0] + np.complex64(1j) * planes[:, 1]

    def field(self, periodic: bool) -> DynamicField2D:
        """The same as a field whose modes are its frames."""
        modes = np.zeros((*self.motion.shape[:2], 7), np.float32)
        modes[..., :5] = self.motion
        basis = np.eye(self.series.n_frames, dtype=np.float32)
        return DynamicField2D(self.base, modes, basis, min_width=SMALLEST_WIDTH, periodic=periodic)

    def run(self, n_steps: int, report) -> None:
        """Make so many steps."""
        for step in range(n_steps):
            base, motion = self._gradients()
            for adam, gradient in zip(self._adam, (base, motion)):
                adam.step(gradient, 1.0)
            for width in (2, 4):
                np.maximum(self.base[:, width], SMALLEST_WIDTH, out=self.base[:, width])
            if (step + 1) % PRUNE_EVERY == 0 and step + 1 < n_steps:
                self._prune()
            report(step + 1, n_steps)

    def _parameters(self):
        parameters = np.repeat(self.base[None], self.series.n_frames, 0)
        parameters[..., :5] += self.motion
        for width in (2, 4):
            np.maximum(parameters[..., width], SMALLEST_WIDTH, out=parameters[..., width])
        return parameters

    def _gradients(self):
        series, parameters = self.series, self._parameters()
        planes = splat(parameters, series.shape)
        predicted = series.forward(planes[:, 0] + np.complex64(1j) * planes[:, 1])
        residual = predicted - series.data
        if self.loss == 'hdr':
            residual /= (np.abs(predicted) / self.data_scale + HDR_EPS) ** 2
        # Of the mean over samples, k-space scaled to a maximum of 1.
        image = series.adjoint(residual) * np.float32(4.0 / (series.n_samples * self.data_scale**2))
        planes = frame_planes(series.n_frames, series.shape)
        planes[:, 0], planes[:, 1] = image.real, image.imag
        by_frame = splat_gradient(parameters, planes)
        unit = max(series.shape) / 2.0  # pixels of one unit of length
        motion = by_frame[..., :5] + (STRENGTH / unit) * _regulariser(self.motion / unit)
        return by_frame.sum(0), motion

    def _prune(self):
        bright = np.hypot(self.base[:, 5], self.base[:, 6])
        keep = (bright > DIMMEST * bright.max()) & (self.base[:, [2, 4]].min(1) > 1.01 * SMALLEST_WIDTH)
        if keep.any() and not keep.all():
            self.base, self.motion = self.base[keep], np.ascontiguousarray(self.motion[:, keep])
            self._restart()

    def _restart(self):
        length = STEP_SIZE * max(self.series.shape) / 2.0
        bright = float(np.percentile(np.hypot(self.base[:, 5], self.base[:, 6]), 95))
        steps = np.array([length] * 5 + [STEP_SIZE * bright] * 2, np.float32)
        self._adam = (Adam(self.base, steps, MOMENTS), Adam(self.motion, length, MOMENTS))


def _regulariser(motion):
    """Subgradient (T, M, 5) of the nuclear norm of the shifts and of the temporal variation of all."""
    shifts = motion[..., :2].reshape(len(motion), -1)
    values, vectors = np.linalg.eigh((shifts @ shifts.T).astype(np.float64))
    inverse = np.where(values > 1e-10 * max(values[-1], 1e-20), 1 / np.sqrt(np.maximum(values, 1e-20)), 0)
    out = np.zeros_like(motion)
    out[..., :2] = ((vectors * inverse) @ (vectors.T @ shifts)).reshape(*motion.shape[:2], 2)
    sign = np.sign(np.diff(motion, axis=0))
    out[1:] += sign
    out[:-1] -= sign
    return out
