"""Coil sensitivities from a fully sampled centre of k-space (ESPIRiT, Uecker et al., MRM 2014)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from numpy.lib.stride_tricks import sliding_window_view

POWER_ITERATIONS = 40


@dataclass(frozen=True, eq=False)
class CoilMaps:
    """Sensitivities on the image grid.

    Attributes
    ----------
    maps
        (coil, x, y) complex64, unit norm over coils inside ``support``, zero outside.
    eigenvalue
        (x, y) float32, 0..1: near 1 where the coils agree with the calibration.
    support
        (x, y) bool.
    """

    maps: np.ndarray
    eigenvalue: np.ndarray
    support: np.ndarray


def espirit_maps(
    calibration: np.ndarray,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.8,
) -> CoilMaps:
    """Sensitivities from the centre of k-space.

    Parameters
    ----------
    calibration
        (coil, kx, ky) complex, fully sampled, its centre (n // 2 along both axes) at the centre of k-space.
    shape
        (nx, ny) of the image, whose field of view is that of the calibration.
    kernel
        Width of the kernels along both axes (less where the calibration is narrower).
    threshold
        Singular values of the calibration matrix above this share of the largest span the signal.
    crop
        Eigenvalue above which a pixel belongs to the support.

    Notes
    -----
    Equations 6 to 10 of the paper, without a Fourier transform per kernel: the operator of a pixel is band-limited
    to (2 kernel - 1)^2 coefficients per pair of coils, which two small matrix products bring to all pixels. Its
    first eigenvector is found by power iteration.

    Raises
    ------
    ValueError
        A calibration narrower than three samples, or without signal.
    """
    calibration = np.asarray(calibration, dtype=np.complex64)
    n_coils = len(calibration)
    width = tuple(min(kernel, (n + 1) // 2) for n in calibration.shape[1:])
    if min(calibration.shape[1:]) < 3:
        raise ValueError(
            f'a calibration region of {calibration.shape[1:]} samples is too small (at least 3 x 3)'
        )
    scale = np.abs(calibration).max()
    if not scale > 0:
        raise ValueError('the calibration region holds no signal')
    projector = _signal_projector(calibration / scale, width, threshold)
    phase_x, phase_y = (
        np.exp(2j * np.pi * np.outer(np.arange(n) - n // 2, np.arange(1 - w, w)) / n).astype(np.complex64)
        for n, w in zip(shape, width)
    )
    operator = np.empty((*shape, n_coils, n_coils), np.complex64)
    for a in range(n_coils):
        for b in range(a + 1):
            values = phase_x @ _by_shift(projector[a, :, :, b]) @ phase_y.T
            operator[:, :, a, b] = values
            operator[:, :, b, a] = values.conj()
    operator /= width[0] * width[1]
    # Coils by their energy: the first eigenvector of the mean operator is a start that no pixel is orthogonal to,
    # and the smooth reference for its phase.
    _, vectors = np.linalg.eigh(np.einsum('cij,dij->cd', calibration, calibration.conj()))
    maps, eigenvalue = _first_eigenvectors(operator, vectors[:, -1].astype(np.complex64), POWER_ITERATIONS)
    eigenvalue = np.clip(eigenvalue, 0.0, 1.0)
    support = eigenvalue > crop
    return CoilMaps(np.ascontiguousarray(np.moveaxis(maps, -1, 0) * support), eigenvalue, support)


def _signal_projector(calibration, width, threshold):
    """Projector (coil, kx, ky, coil, kx, ky) onto the patches that the calibration holds."""
    patches = sliding_window_view(calibration, width, axis=(1, 2))
    patches = np.moveaxis(patches, 0, 2).reshape(-1, len(calibration) * width[0] * width[1])
    values, vectors = np.linalg.eigh(patches.T @ patches.conj())
    signal = vectors[:, values > threshold**2 * values[-1]].astype(np.complex64)
    return (signal @ signal.conj().T).reshape(len(calibration), *width, len(calibration), *width)


def _by_shift(block):
    """Sums (2 wx - 1, 2 wy - 1) of a block (wx, wy, wx, wy) over all pairs of the same difference of positions."""
    wx, wy = block.shape[:2]
    sums = np.zeros((2 * wx - 1, 2 * wy - 1), block.dtype)
    for i in range(wx):
        for j in range(wy):
            sums[i : i + wx, j : j + wy] += block[i, j, ::-1, ::-1]
    return sums


@njit(cache=True, parallel=True, error_model='numpy', fastmath={'contract', 'reassoc', 'nsz'})
def _first_eigenvectors(operator, reference, n_iterations):
    nx, ny, n = operator.shape[:3]
    vectors = np.zeros((nx, ny, n), np.complex64)
    values = np.zeros((nx, ny), np.float32)
    for x in prange(nx):
        v, w = reference.copy(), np.empty(n, np.complex64)
        for y in range(ny):
            norm = np.float32(0)
            for _ in range(n_iterations):
                # The neighbour is the start; a little of the reference keeps it from being orthogonal.
                norm = np.float32(0)
                for i in range(n):
                    re, im = np.float32(0), np.float32(0)
                    for j in range(n):
                        re += operator[x, y, i, j].real * v[j].real - operator[x, y, i, j].imag * v[j].imag
                        im += operator[x, y, i, j].real * v[j].imag + operator[x, y, i, j].imag * v[j].real
                    w[i] = complex(re, im)
                    norm += re * re + im * im
                norm = np.sqrt(norm)
                if norm == 0:
                    break
                change = np.float32(0)
                for i in range(n):
                    new = w[i] / norm
                    change += (new.real - v[i].real) ** 2 + (new.imag - v[i].imag) ** 2
                    v[i] = new
                if change < 1e-10:
                    break
            values[x, y] = norm
            turn = np.complex64(0)
            for i in range(n):
                turn += v[i] * np.conj(reference[i])
            size = abs(turn)
            turn = np.conj(turn) / size if size > 0 else np.complex64(1)
            for i in range(n):
                vectors[x, y, i] = v[i] * turn
            if norm == 0:
                v[:] = reference
    return vectors, values
