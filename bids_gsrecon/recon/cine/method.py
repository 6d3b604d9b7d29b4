"""Cine from undersampled k-space with dynamic 2D Gaussians.

Published (dynamic 2D Gaussians for cine): a Gaussian has a constant complex amplitude and, in every frame, its own
shift and shape; fitted to k-space by Adam. Here every parameter has few temporal modes, Gaussians that do not need
to move rest, the modes of neighbours are tied together, and the data count in units of their noise, so that chi^2
tells how well the model does and when it needs more motion.

Flow: coil maps (ESPIRiT) -> linear subspace reconstruction -> lines that contradict it left out -> Gaussians placed
on its mean, moving where it changes -> Adam on all parameters and time courses, first on half of the frames at a time
-> if chi^2 says so, more movers, then drift and another harmonic, from where the fit is -> verdict.
"""

from __future__ import annotations

from functools import partial

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

# Steps of Adam on half of the frames, twice as many, then on all.
SKETCH_STEPS, STEPS = 12, 34
# chi^2 above which more Gaussians move, and above which drift and a further harmonic are added: in the sketch, where
# it is still too high, and at the end.
SKETCH_LIMITS, LIMITS = (2.0, 2.0), (1.3, 1.3)
FALL_BACK_ACTIVITY = 0.1
STAGES = ('Gaussians', 'more motion', 'drift')


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
    sketch_steps, steps = _steps(options.iterations)
    for attempt in range(2):
        report('coil sensitivities', 0, 1)
        ready = prepare(kspace, options.n_harmonics)
        kspace, dropped = ready.kspace, dropped + ready.n_dropped
        clock.add('coils and linear', seconds)
        activity, field, bright = _start(ready, options, seed)
        clock.add('Gaussians placed', seconds)
        fit = _fit(ready.series, field, bright, options)
        chi2 = fit.sketch(sketch_steps, partial(report, 'Gaussians, half of the frames'))
        # The Gaussians know better than the linear images which lines are out of place.
        bad = outlier_lines(ready.series, fit.images(), kspace.weights)
        if attempt or not bad.any():
            break
        kspace, dropped = kspace.without(bad), dropped + int(bad.sum())
    rung, last = 0, 2 if options.fall_back and ready.series.n_frames > 2 else 0
    for _ in range(1 + last):
        looser = rung < last and chi2 > SKETCH_LIMITS[rung]
        if looser:
            fit, rung = _looser(fit, rung, activity, options), rung + 1
        chi2 = fit.sketch(sketch_steps, partial(report, STAGES[rung]))
        if not looser:
            break
    chi2 = fit.refine(steps, partial(report, 'Gaussians'))
    while rung < last and chi2 > LIMITS[rung]:
        fit, rung = _looser(fit, rung, activity, options), rung + 1
        chi2 = fit.refine(steps, partial(report, STAGES[rung]))
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


def _steps(wanted):
    """Steps of half a sketch, and on all frames, in all about so many (0: the default)."""
    sketch = round(wanted * SKETCH_STEPS / (2 * SKETCH_STEPS + STEPS))
    return (sketch, max(1, wanted - 2 * sketch)) if wanted else (SKETCH_STEPS, STEPS)


def _looser(fit, rung, activity, options):
    """The fit as it is with more movers (rung 0), or all moving, with drift and a further harmonic (rung 1)."""
    field = fit.field
    if rung == 0:
        field = with_more_motion(field, _moving(field.base, activity, FALL_BACK_ACTIVITY))
    else:
        field = with_more_motion(field, np.ones(field.n_gaussians, bool))
        field = with_more_modes(field, _further_modes(fit.series.n_frames, field.basis.shape[1]))
    return _fit(fit.series, field, fit.bright, options)


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
