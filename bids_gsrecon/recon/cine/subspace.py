"""Time courses of few modes, and the quick linear reconstruction in their span."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.sense import SenseSeries

RIDGE, MEAN_RIDGE = 0.05, 1e-3
# A line is out of place if its residual is so many times that of its neighbourhood and so large a share of itself.
OUTLIER_FACTOR, OUTLIER_SHARE = 5.0, 0.25


def fourier_basis(n_frames: int, n_harmonics: int) -> np.ndarray:
    """(T, 2 J) cosines and sines of the first J harmonics, of mean square 1 (fewer where T frames hold fewer).

    The highest harmonic of an even number of frames is a cosine alone.
    """
    times = np.arange(n_frames) / n_frames
    columns = [
        np.sqrt(2.0) * wave(2 * np.pi * order * times)
        for order in range(1, min(n_harmonics, (n_frames - 1) // 2) + 1)
        for wave in (np.cos, np.sin)
    ]
    if n_frames % 2 == 0 and n_harmonics >= n_frames // 2:
        columns.append((-1.0) ** np.arange(n_frames))
    return np.stack(columns, 1).astype(np.float32) if columns else np.zeros((n_frames, 0), np.float32)


def drift_basis(n_frames: int) -> np.ndarray:
    """(T, 1) a straight line of mean square 1: what moved once and does not come back."""
    times = np.linspace(-1.0, 1.0, n_frames) if n_frames > 1 else np.zeros(1)
    return (times / max(np.sqrt(np.mean(times**2)), 1e-6))[:, None].astype(np.float32)


def subspace_sense(series: SenseSeries, basis: np.ndarray, *, n_iterations: int = 15) -> np.ndarray:
    """Images (1 + K, x, y) of the mean and of each time course: ridge-regularised SENSE by conjugate gradients.

    Parameters
    ----------
    series
        Encoding and data.
    basis
        (T, K); the ridge grows with the column (harmonics are fainter the higher they are).
    """
    basis = np.concatenate([np.ones((series.n_frames, 1), np.float32), basis], 1)
    orders = np.concatenate([[MEAN_RIDGE], RIDGE * (1 + np.arange(basis.shape[1] - 1) // 2)])
    # In units of the mean diagonal of E^H E, for each column summed over the frames.
    strength = np.mean([np.sum(np.abs(f) ** 2) / f.shape[0] for f in series.fourier])
    ridge = (orders * series.n_frames * strength)[:, None, None].astype(np.float32)
    b = np.tensordot(basis.T, series.adjoint_of_data(), (1, 0))
    x, r = np.zeros_like(b), b.copy()
    p, rr = r.copy(), np.vdot(r, r).real
    stop = 1e-6 * rr
    for _ in range(n_iterations):
        if rr <= stop:
            break
        q = np.tensordot(basis.T, series.normal(np.tensordot(basis, p, (1, 0))), (1, 0)) + ridge * p
        step = np.float32(rr / np.vdot(p, q).real)
        x += step * p
        r -= step * q
        rr, before = np.vdot(r, r).real, rr
        p = r + np.float32(rr / before) * p
    return x


def outlier_lines(series: SenseSeries, images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(T, ky) bool: acquired lines that contradict ``images`` (T, x, y) as no line of their neighbourhood does.

    Such a line differs from its prediction by much of its own energy, and by far more than other frames do around
    there: motion that the images miss shows in all frames of a line, a spike or a lost echo in one. Of every line
    of k-space at least one acquisition stays, and of every frame at least two lines.
    """
    residual, energy = np.full(weights.shape, np.nan), np.zeros(weights.shape)
    for t, (lines, values) in enumerate(zip(series.lines, series.residual_power(images))):
        residual[t, lines] = values.mean(0) / 2.0
        measured = (np.abs(series.data[t]) ** 2).reshape(series.shape[0], series.n_coils, -1).mean(
            (0, 1)
        ) / 2.0
        energy[t, lines] = measured[: len(lines)]
    bad = np.zeros(weights.shape, bool)
    for y in range(weights.shape[1]):
        near = residual[:, max(0, y - 2) : y + 3]
        if np.isfinite(near).sum() >= 4:
            usual = max(float(np.nanmedian(near)), 1.0)
            with np.errstate(invalid='ignore'):
                bad[:, y] = (residual[:, y] > OUTLIER_FACTOR * usual) & (
                    residual[:, y] > OUTLIER_SHARE * energy[:, y]
                )
    return bad & ~_needed(bad, residual)


def _needed(bad, residual):
    """(T, ky) bool: the least contradicting of lines and frames that would lose all others."""
    rank = np.where(np.isfinite(residual), residual, np.inf)
    acquired, needed = np.isfinite(residual), np.zeros(bad.shape, bool)
    for y in np.flatnonzero(acquired.any(0) & ~(acquired & ~bad).any(0)):
        needed[np.argmin(rank[:, y]), y] = True
    for t in np.flatnonzero((acquired & ~bad).sum(1) < 2):
        needed[t, np.argsort(rank[t])[:2]] = True
    return needed & acquired
