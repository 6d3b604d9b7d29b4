"""The noise of the receiver channels: from a noise scan, from where the readout shows no object, or from k-space's edge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Standard deviations of noise scan and data further apart than this cannot both be right.
DISAGREEMENT = 1.4


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """Noise of the coils.

    Attributes
    ----------
    whitening
        (coil kept, coil) complex64: coils times this have independent noise of standard deviation 1 (real and
        imaginary part each).
    scale
        Mean standard deviation of the coils, in the units of the file.
    source
        ``noise scan``, ``readout oversampling``, ``k-space edge`` or ``given``.
    notes
        Sentences on what is unusual.
    """

    whitening: np.ndarray
    scale: float
    source: str
    notes: tuple[str, ...] = ()


def estimate_noise(
    scan, outside, inside, counters, *, share: float, sigma: float | None = None
) -> NoiseModel:
    """Noise covariance and the whitening of the coils.

    Parameters
    ----------
    scan
        (coil, sample) of noise scans, or None.
    outside
        (N, coil, x) of the readout beyond the object, or None.
    inside
        (N, coil, x) of the object.
    counters
        (N,) ISMRMRD counters of the lines.
    share
        Of the encoded samples of an echo that were acquired (partial echo): noise of readouts is smaller by its
        square root than noise of samples.
    sigma
        Standard deviation to assume, in the units of the file.

    Notes
    -----
    A noise scan that disagrees with the noise of the data themselves is not believed: some converters scale it.

    Raises
    ------
    ValueError
        No coil has noise: the data cannot be as acquired.
    """
    n_coils = inside.shape[1]
    notes = []
    seen = _band_covariance(outside, share) if outside is not None else None
    measured = None
    if scan is not None and scan.shape[1] >= 4 * n_coils:
        # The inverse of a covariance from n samples is too large by n / (n - coils) (inverse Wishart).
        measured = (scan @ scan.conj().T) / (2.0 * max(scan.shape[1] - n_coils, 1))
    elif scan is not None:
        notes.append(f'the noise scan has {scan.shape[1]} samples, too few, and is not used')
    source, covariance = 'noise scan', measured
    if measured is not None and seen is not None:
        ratio = _size(measured) / max(_size(seen), 1e-30)
        if not 1 / DISAGREEMENT < ratio < DISAGREEMENT:
            notes.append(
                f'the noise scan says {ratio:.2f} times the noise that the data show, which is used instead'
            )
            covariance = None
        elif scan.shape[1] < 100 * n_coils:
            # A short scan says little about correlations; the data themselves add what they know.
            n_seen = outside.shape[0] * outside.shape[2]
            covariance = (scan.shape[1] * measured + n_seen * seen) / (scan.shape[1] + n_seen)
    if covariance is None and seen is not None:
        source, covariance = 'readout oversampling', seen
    if covariance is None:
        source, covariance = 'k-space edge', _edge_covariance(inside, counters, share)
        notes.append(
            'without noise scan and readout oversampling, the noise is a guess from the edge of k-space'
        )
    power = np.real(np.diag(covariance)).copy()
    signal = (np.abs(inside) ** 2).mean((0, 2))
    dead = (power <= 1e-8 * np.median(power)) | (signal <= 1e-8 * np.median(signal))
    alive = np.flatnonzero(~dead)
    if not len(alive) or not np.median(power) > 0:
        raise ValueError('it has no noise at all: give data as acquired, or simulate noise')
    # A coil without signal is harmless, but its absence is seen in the image.
    silent = ~dead & (signal < 2.5 * share * power) & (signal < 0.02 * np.median(signal))
    if dead.any() or silent.any():
        notes.append(f'{int(dead.sum() + silent.sum())} of {n_coils} coils show no signal')
    covariance = covariance[np.ix_(alive, alive)]
    if sigma is not None:
        ratio = sigma / _size(covariance)
        if not 1 / DISAGREEMENT < ratio < DISAGREEMENT:
            notes.append(f'the noise given is {ratio:.2f} times what the {source} says')
        covariance = covariance * (sigma**2 / _size(covariance) ** 2)
        source = 'given'
    whitening = np.zeros((len(alive), n_coils), np.complex64)
    whitening[:, alive] = np.linalg.inv(np.linalg.cholesky(covariance))
    return NoiseModel(whitening, _size(covariance), source, tuple(notes))


def _size(covariance) -> float:
    """Typical standard deviation (of a real part): the median coil's, which a dead or loud one does not move."""
    return float(np.sqrt(np.median(np.real(np.diag(covariance)))))


def _band_covariance(outside, share):
    """Covariance (of real parts) of samples, from readouts where most show no object."""
    data = np.moveaxis(outside, 1, 0).reshape(outside.shape[1], -1)
    power = np.median(np.abs(data) ** 2, axis=1) / (2.0 * np.log(2.0))
    if not (power > 0).any():
        return None
    # Robust by coil: where a coil is far above its median there is an object after all.
    quiet = (np.abs(data) ** 2 < 20.0 * power[:, None]).all(0)
    data = data[:, quiet] if quiet.sum() > 8 * len(data) else data
    covariance = (data @ data.conj().T) / (2.0 * data.shape[1])
    return covariance / share


def _edge_covariance(inside, counters, share):
    """Diagonal covariance from the lines that are furthest from the centre, at the readout's highest frequencies."""
    step = counters['kspace_encode_step_1'].astype(int)
    distance = np.abs(step - np.median(step))
    far = distance >= np.quantile(distance, 0.75)
    spectrum = np.fft.fft(inside[far], axis=2, norm='ortho')
    n = spectrum.shape[2]
    edge = spectrum[:, :, n // 2 - max(1, n // 16) : n // 2 + max(1, n // 16)]
    power = np.median(np.abs(edge) ** 2, axis=(0, 2)) / (2.0 * np.log(2.0))
    return np.diag(power.astype(np.complex64)) / np.float32(min(1.0, share))
