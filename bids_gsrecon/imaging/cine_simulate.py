"""Multi-coil k-space of a cine with known truth: from a phantom or from any series of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_gsrecon.imaging.cine_phantom import HeartPhantom
from bids_gsrecon.imaging.cine_sampling import variable_density_lines
from bids_gsrecon.imaging.sense import centred_fft, centred_ifft


@dataclass(frozen=True, eq=False)
class SimulatedCine:
    """One slice.

    Attributes
    ----------
    kspace
        (T, coil, kx, ky) complex64 with noise, all lines; unitary transform of the images.
    mask
        (T, ky) bool: lines to acquire.
    truth
        (T, x, y) complex64 without noise, combined with the true sensitivities (unit norm over coils).
    sigma
        Standard deviation of the noise (real and imaginary part each).
    """

    kspace: np.ndarray
    mask: np.ndarray
    truth: np.ndarray
    sigma: float


def coil_sensitivities(shape, n_coils: int) -> np.ndarray:
    """(coil, nx, ny) complex64 of loops around a body that spans the grid; the largest norm over coils is 1."""
    nx, ny = shape
    x = (np.arange(nx) - (nx - 1) / 2)[:, None] / (nx / 2)
    y = (np.arange(ny) - (ny - 1) / 2)[None, :] / (nx / 2)
    reach = ny / nx
    maps = []
    for angle in np.linspace(0, 2 * np.pi, n_coils, endpoint=False) + 0.2:
        squared = (x - 1.05 * np.cos(angle)) ** 2 + (y - 1.12 * reach * np.sin(angle)) ** 2
        phase = 1.3 * (x * np.cos(2 * angle) + y * np.sin(angle)) + angle + 0.4 * squared
        maps.append(np.exp(1j * phase) / (1.0 + squared / 0.35))
    maps = np.stack(maps)
    return (maps / np.sqrt((np.abs(maps) ** 2).sum(0)).max()).astype(np.complex64)


def breathing_shift(times: np.ndarray, amplitude_px: float, cycles: float = 1.3) -> np.ndarray:
    """(T,) shift along x in pixels at times 0..1 of the scan: quiet at end-expiration."""
    return amplitude_px * np.sin(np.pi * cycles * times) ** 4


def simulate_phantom(
    shape=(128, 96),
    n_frames: int = 20,
    *,
    kind: str = 'sharp',
    n_coils: int = 8,
    acceleration: float = 8.0,
    noise: float = 0.02,
    drift_px: float = 0.0,
    breathing_px: float = 0.0,
    level: float = 0.0,
    seed: int = 0,
) -> SimulatedCine:
    """A beating heart (`HeartPhantom`): ``n_frames`` over one beat, seen by coils, with noise.

    Parameters
    ----------
    acceleration
        R: every frame has 1 / R of the lines.
    noise
        Standard deviation of the complex noise as a share of the brightest coil image.
    drift_px, breathing_px
        How far the whole body moves along x over the scan: steadily, and in and out.
    """
    phantom = HeartPhantom(shape, kind, level=level, seed=seed)
    times = np.arange(n_frames) / max(n_frames, 1)
    shifts = drift_px * times + breathing_shift(times, breathing_px)
    images = [phantom.image(t, shift=(float(shift), 0.0)) for t, shift in zip(times, shifts)]
    return simulate_series(
        np.stack(images), shape, n_coils=n_coils, acceleration=acceleration, noise=noise, seed=seed
    )


def simulate_series(
    images: np.ndarray,
    shape=None,
    *,
    n_coils: int = 8,
    acceleration: float = 8.0,
    noise: float = 0.02,
    seed: int = 0,
) -> SimulatedCine:
    """k-space of any series (T, x, y) of (complex) images, at their own or a coarser grid ``shape``."""
    images = np.asarray(images)
    shape = images.shape[1:] if shape is None else tuple(shape)
    fine = coil_sensitivities(images.shape[1:], n_coils)
    reduction = np.sqrt(np.prod(shape) / np.prod(images.shape[1:]))
    kspace = np.empty((len(images), n_coils, *shape), np.complex64)
    for frame, image in enumerate(images):
        kspace[frame] = _central_block(centred_fft(centred_fft(image * fine, 1), 2), shape) * reduction
    clean = centred_ifft(centred_ifft(kspace, 2), 3)
    sigma = float(noise * np.abs(clean).max() / np.sqrt(2.0))
    maps = _central_image(fine, shape)
    truth = (clean * maps.conj()).sum(1).astype(np.complex64)
    rng = np.random.default_rng([seed, 1])
    kspace += (sigma * (rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape))).astype(
        np.complex64
    )
    mask = variable_density_lines(shape[1], len(images), max(1, round(shape[1] / acceleration)))
    return SimulatedCine(kspace, mask, truth, sigma)


def _central_block(kspace, shape):
    start = [n // 2 - m // 2 for n, m in zip(kspace.shape[-2:], shape)]
    if min(start) < 0:
        raise ValueError(
            f'images of {kspace.shape[-2:]} pixels cannot be seen on the finer grid {tuple(shape)}'
        )
    return kspace[..., start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]


def _central_image(maps, shape):
    """Smooth maps on a coarser grid, unit norm over coils."""
    nx, ny = maps.shape[1:]
    # Pixel n // 2 is the centre on both grids.
    at = [
        np.clip(np.rint((np.arange(m) - m // 2) * (n / m) + n // 2).astype(int), 0, n - 1)
        for n, m in zip((nx, ny), shape)
    ]
    coarse = maps[:, at[0]][:, :, at[1]]
    return coarse / np.sqrt((np.abs(coarse) ** 2).sum(0))
