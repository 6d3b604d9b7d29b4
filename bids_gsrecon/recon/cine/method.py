"""Cine from undersampled k-space with dynamic 2D Gaussians.

Published (dynamic 2D Gaussians for cine): a Gaussian has a constant complex amplitude and, in every frame, its own
shift and shape; fitted to k-space by Adam. Here every parameter has few temporal modes, Gaussians that do not need
to move rest, the modes of neighbours are tied together, and the data count in units of their noise, so that chi^2
tells how well the model does and when it needs more motion.

Flow: coil maps (ESPIRiT) -> linear subspace reconstruction -> lines that contradict it left out -> Gaussians placed
on its mean, moving where it changes -> Adam on all parameters and time courses -> if chi^2 says so, more movers,
then drift and another harmonic -> verdict.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_gsrecon.fields.dynamic import DynamicField2D
from bids_gsrecon.gpu import thread_limit
from bids_gsrecon.imaging.espirit import CoilMaps, espirit_maps
from bids_gsrecon.imaging.kspace import CineKSpace
from bids_gsrecon.imaging.sense import SenseSeries
from bids_gsrecon.recon.cine.fit import CineFit, with_more_modes, with_more_motion
from bids_gsrecon.recon.cine.initial import PIXELS_PER_GAUSSIAN, activity_map, place, solve_amplitudes
from bids_gsrecon.recon.cine.subspace import drift_basis, fourier_basis, outlier_lines, subspace_sense
from bids_gsrecon.recon.cine.types import CineOptions, CineResult
from bids_gsrecon.recon.cine.verdict import judge
from bids_gsrecon.recon.progress import Progress

STEPS = 150
# chi^2 above which more Gaussians move, and above which drift and a further harmonic are added.
MORE_MOTION, MORE_MODES = 1.15, 1.5
FALL_BACK_ACTIVITY = 0.1


@dataclass(eq=False)
class Prepared:
    """What precedes the Gaussians: maps, encoding, and the quick linear reconstruction.

    Attributes
    ----------
    kspace
        The data, without lines that contradict the others.
    coils
        Sensitivities.
    series
        Encoding and data in units of the noise.
    linear
        (1 + K, x, y) mean and modes of the linear reconstruction.
    n_dropped
        Lines left out.
    """

    kspace: CineKSpace
    coils: CoilMaps
    series: SenseSeries
    linear: np.ndarray
    n_dropped: int


def reconstruct_cine(
    kspace: CineKSpace,
    options: CineOptions | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> CineResult:
    """Images of one slice, and the moving Gaussians that show them.

    Parameters
    ----------
    kspace
        Whitened hybrid-space data (`bids_gsrecon.imaging.kspace.cine_slices`).
    options
        Choices; default: all automatic.
    seed
        Where in their cells the Gaussians start.
    progress
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    ValueError
        "it ...": no signal in the calibration region.
    """
    options = options or CineOptions()
    report = progress or (lambda stage, done, total: None)
    with thread_limit(options.n_threads):
        if options.model == 'free':
            from bids_gsrecon.recon.cine.published import reconstruct_free

            return reconstruct_free(kspace, options, seed=seed, progress=report)
        return _reconstruct(kspace, options, seed, report)


def prepare(kspace: CineKSpace, n_harmonics: int) -> Prepared:
    """Maps and linear reconstruction; lines that contradict it are left out, and both made again."""
    from dataclasses import replace

    n_before = int(kspace.mask.sum())
    for attempt in range(3):
        coils = espirit_maps(kspace.calibration(), kspace.hybrid.shape[2:])
        if not coils.support.any():
            raise ValueError('it has no signal that its coils agree on: check the calibration lines')
        maps = coils.maps / kspace.file_norm(coils.maps)
        series = SenseSeries(maps, kspace.hybrid, kspace.weights)
        basis = fourier_basis(series.n_frames, n_harmonics)
        linear = subspace_sense(series, basis)
        if attempt == 2:
            break
        frames = linear[0] + np.tensordot(basis, linear[1:], (1, 0))
        bad = outlier_lines(series, frames.astype(np.complex64), kspace.weights)
        if not bad.any() or ((kspace.weights > 0) & ~bad).sum(1).min() < 1:
            break
        kspace = replace(kspace, weights=kspace.weights * ~bad, hybrid=kspace.hybrid * ~bad[:, None, None])
    return Prepared(kspace, coils, series, linear, n_before - int(kspace.mask.sum()))


def _reconstruct(kspace, options, seed, report) -> CineResult:
    clock, seconds = _Clock(), {}
    report('coil sensitivities', 0, 1)
    ready = prepare(kspace, options.n_harmonics)
    series, support = ready.series, ready.coils.support
    seconds['coils and linear'] = clock.lap()
    activity = activity_map(ready.linear[1:], support)
    mean = ready.linear[0] * support
    bright = float(np.percentile(np.abs(mean[support]), 95))
    n = options.n_gaussians or max(1, round(support.sum() / PIXELS_PER_GAUSSIAN))
    base = place(mean, activity, support, n, np.random.default_rng(seed))
    moves = _moving(base, activity, options.activity)
    base = base[np.argsort(~moves, kind='stable')]
    solve_amplitudes(base, mean)
    basis = fourier_basis(series.n_frames, options.n_harmonics)
    modes = np.zeros((basis.shape[1], int(moves.sum()) if basis.shape[1] else 0, 7), np.float32)
    field = DynamicField2D(base, modes, basis, periodic=options.periodic)
    seconds['Gaussians placed'] = clock.lap()

    steps = options.iterations or STEPS
    fit = _fit(series, field, bright, options)
    chi2 = fit.run(steps, lambda done, total: report('Gaussians', done, total))
    rung = 0
    if options.fall_back and chi2 > MORE_MOTION and series.n_frames > 2:
        rung = 1
        field = with_more_motion(field, _moving(field.base, activity, FALL_BACK_ACTIVITY))
        fit = _fit(series, field, bright, options)
        chi2 = fit.run(steps, lambda done, total: report('more motion', done, total))
        if chi2 > MORE_MODES:
            rung = 2
            field = with_more_motion(field, np.ones(field.n_gaussians, bool))
            field = with_more_modes(field, _further_modes(series.n_frames, field.basis.shape[1]))
            fit = _fit(series, field, bright, options)
            chi2 = fit.run(2 * steps, lambda done, total: report('drift', done, total))
    seconds['Gaussians fitted'] = clock.lap()
    images = fit.images() * np.float32(kspace.scale)
    field.base[:, 5:] *= np.float32(kspace.scale)
    field.modes[..., 5:] *= np.float32(kspace.scale)
    notes = list(kspace.notes)
    if ready.n_dropped:
        notes.append(f'{ready.n_dropped} lines contradict all others and were left out')
    verdict, reasons = judge(chi2, kspace.acceleration, rung, notes)
    figures = {
        'chi2': chi2,
        'acceleration': kspace.acceleration,
        'gaussians': field.n_gaussians,
        'moving_gaussians': field.n_dynamic,
        'modes': len(field.modes),
        'lines_left_out': ready.n_dropped,
    }
    return CineResult(images, field, support, chi2, rung, verdict, reasons, figures, seconds)


def _fit(series, field, bright, options):
    return CineFit(series, field, bright, smoothness=options.smoothness, learn_basis=options.learn_basis)


def _moving(base, activity, threshold):
    """(M,) bool: Gaussians whose place is more active than the threshold."""
    at = ndimage.map_coordinates(activity, base[:, :2].T.astype(np.float64), order=1, mode='nearest')
    return at > threshold if threshold > 0 else np.ones(len(base), bool)


def _further_modes(n_frames, n_modes):
    """Drift, and the next harmonic."""
    orders = n_modes // 2 + 1
    return np.concatenate([drift_basis(n_frames), fourier_basis(n_frames, orders)[:, n_modes:]], 1)


class _Clock:
    """Seconds of processor time, which other programs on the machine do not change much."""

    def __init__(self):
        self._last = time.process_time()

    def lap(self) -> float:
        now = time.process_time()
        spent, self._last = now - self._last, now
        return spent
