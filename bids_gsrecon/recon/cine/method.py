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

import numpy as np
from scipy import ndimage

from bids_gsrecon.fields.dynamic import DynamicField2D
from bids_gsrecon.gpu import thread_limit
from bids_gsrecon.imaging.kspace import CineKSpace
from bids_gsrecon.recon.cine.clock import Clock
from bids_gsrecon.recon.cine.fit import CineFit, with_more_modes, with_more_motion
from bids_gsrecon.recon.cine.initial import PIXELS_PER_GAUSSIAN, activity_map, place, solve_amplitudes
from bids_gsrecon.recon.cine.prepare import Prepared, prepare
from bids_gsrecon.recon.cine.subspace import drift_basis, fourier_basis, outlier_lines
from bids_gsrecon.recon.cine.types import CineOptions, CineResult
from bids_gsrecon.recon.cine.verdict import judge, unexplained_share
from bids_gsrecon.recon.progress import Progress
from bids_gsrecon.solvers.blas_threads import single_threaded_blas

STEPS = 120
# chi^2 above which more Gaussians move, and above which drift and a further harmonic are added.
MORE_MOTION, MORE_MODES = 1.3, 1.3
FALL_BACK_ACTIVITY = 0.1


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
    with thread_limit(options.n_threads), single_threaded_blas():
        if options.model == 'free':
            from bids_gsrecon.recon.cine.published import reconstruct_free

            return reconstruct_free(kspace, options, seed=seed, progress=report)
        return _reconstruct(kspace, options, seed, report)


def _reconstruct(kspace, options, seed, report) -> CineResult:
    clock, seconds, dropped = Clock(), {}, 0
    steps = options.iterations or STEPS
    for attempt in range(2):
        report('coil sensitivities', 0, 1)
        ready = prepare(kspace, options.n_harmonics)
        kspace, dropped = ready.kspace, dropped + ready.n_dropped
        clock.add('coils and linear', seconds)
        activity, field, bright = _start(ready, options, seed)
        clock.add('Gaussians placed', seconds)
        fit = _fit(ready.series, field, bright, options)
        chi2 = fit.run(steps, lambda done, total: report('Gaussians', done, total))
        # The Gaussians know better than the linear images which lines are out of place.
        bad = outlier_lines(ready.series, fit.images(), kspace.weights)
        if attempt or not bad.any():
            break
        kspace, dropped = kspace.without(bad), dropped + int(bad.sum())
    rung = 0
    if options.fall_back and chi2 > MORE_MOTION and ready.series.n_frames > 2:
        fit, chi2, rung = _fall_back(fit, activity, chi2, options, steps, report)
        field = fit.field
    images = fit.images() * np.float32(kspace.scale)
    field.base[:, 5:] *= np.float32(kspace.scale)
    field.modes[..., 5:] *= np.float32(kspace.scale)
    clock.add('Gaussians fitted', seconds)
    notes = list(kspace.notes)
    if dropped:
        notes.append(f'{dropped} lines contradict all others and were left out')
    unexplained = unexplained_share(ready.series, chi2)
    verdict, reasons = judge(chi2, unexplained, kspace.acceleration, rung, notes)
    figures = {
        'chi2': chi2,
        'unexplained_share': unexplained,
        'acceleration': kspace.acceleration,
        'gaussians': field.n_gaussians,
        'moving_gaussians': field.n_dynamic,
        'modes': len(field.modes),
        'lines_left_out': dropped,
    }
    return CineResult(images, field, ready.coils.support, chi2, rung, verdict, reasons, figures, seconds)


def _start(ready: Prepared, options, seed):
    """Activity (x, y), the field before its fit, and the signal of bright tissue."""
    support = ready.coils.support
    activity = activity_map(ready.linear[1:], support)
    mean = ready.linear[0] * support
    n = options.n_gaussians or max(1, round(support.sum() / PIXELS_PER_GAUSSIAN))
    base = place(mean, activity, support, n, np.random.default_rng(seed))
    moves = _moving(base, activity, options.activity)
    base = base[np.argsort(~moves, kind='stable')]
    solve_amplitudes(base, mean)
    basis = fourier_basis(ready.series.n_frames, options.n_harmonics)
    modes = np.zeros((basis.shape[1], int(moves.sum()) if basis.shape[1] else 0, 7), np.float32)
    field = DynamicField2D(base, modes, basis, periodic=options.periodic)
    return activity, field, float(np.percentile(np.abs(mean[support]), 95))


def _fall_back(fit, activity, chi2, options, steps, report):
    """More movers, then drift and a further harmonic; the fit, its chi^2, and how far it went."""
    series, bright = fit.series, fit.bright
    field = with_more_motion(fit.field, _moving(fit.field.base, activity, FALL_BACK_ACTIVITY))
    fit = _fit(series, field, bright, options)
    chi2 = fit.run(steps, lambda done, total: report('more motion', done, total))
    if chi2 <= MORE_MODES:
        return fit, chi2, 1
    field = with_more_motion(field, np.ones(field.n_gaussians, bool))
    field = with_more_modes(field, _further_modes(series.n_frames, field.basis.shape[1]))
    fit = _fit(series, field, bright, options)
    return fit, fit.run(2 * steps, lambda done, total: report('drift', done, total)), 2


def _fit(series, field, bright, options):
    return CineFit(series, field, bright, smoothness=options.smoothness, learn_basis=options.learn_basis)


def _moving(base, activity, threshold):
    """(M,) bool: Gaussians whose place is more active than the threshold."""
    at = ndimage.map_coordinates(activity, base[:, :2].T.astype(np.float64), order=1, mode='nearest')
    return at > threshold if threshold > 0 else np.ones(len(base), bool)


def _further_modes(n_frames, n_modes):
    """Drift, and the next harmonic (long series: the next few)."""
    orders = max((n_modes + 1) // 2 + 1, n_frames // 8)
    return np.concatenate([drift_basis(n_frames), fourier_basis(n_frames, orders)[:, n_modes:]], 1)
