"""What cine by Gaussians is compared with: zero-filled, view sharing, low rank plus sparse, subspace-SENSE.

All use the same coil maps, encoding and data (in units of the noise) as the Gaussians.
"""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.sense import centred_ifft
from bids_gsrecon.recon.cine.prepare import Prepared
from bids_gsrecon.recon.cine.subspace import fourier_basis, subspace_sense

LPS_GRID = ((0.01, 0.01), (0.003, 0.01), (0.003, 0.003), (0.001, 0.01), (0.01, 0.003))


def zero_filled(ready: Prepared) -> np.ndarray:
    """(T, x, y) ``E^H y``; its size is not that of the image (the score allows one gain)."""
    return ready.series.adjoint_of_data()


def view_sharing(ready: Prepared) -> np.ndarray:
    """(T, x, y): lines that a frame lacks are those of the temporal average."""
    kspace = ready.kspace
    filled = np.where(kspace.mask[:, None, None], kspace.hybrid, kspace.temporal_average()[None])
    maps = ready.coils.maps * kspace.file_norm(ready.coils.maps)
    return np.einsum('tcxy,cxy->txy', centred_ifft(filled, 3), maps.conj(), optimize=True)


def subspace(ready: Prepared, n_harmonics: int = 2) -> np.ndarray:
    """(T, x, y): mean and Fourier modes, ridge on the modes."""
    basis = fourier_basis(ready.series.n_frames, n_harmonics)
    images = subspace_sense(ready.series, basis)
    return images[0] + np.tensordot(basis, images[1:], (1, 0))


def low_rank_plus_sparse(
    ready: Prepared, low_rank: float, sparse: float, *, n_iterations: int = 150, tolerance: float = 1e-4
) -> np.ndarray:
    """(T, x, y): L+S (Otazo et al. 2015), temporal Fourier sparsity, by FISTA from the temporal average until the
    change is below ``tolerance``; strengths as shares of the first singular value and of the largest pixel."""
    series = ready.series
    start = view_sharing(ready).mean(0)
    scale = float(np.abs(start).max())
    n_frames = series.n_frames
    l = np.repeat(start.reshape(1, -1), n_frames, 0).astype(np.complex64)
    first = float(np.linalg.norm(l))
    s = np.zeros_like(l)
    l_ahead, s_ahead, momentum = l, s, 1.0
    for _ in range(n_iterations):
        images = (l_ahead + s_ahead).reshape(n_frames, *series.shape)
        gradient = 0.5 * series.gradient(images)[0].reshape(n_frames, -1)
        candidate = l_ahead - gradient
        squares, vectors = np.linalg.eigh(candidate @ candidate.conj().T)
        values = np.sqrt(np.maximum(squares, 0.0))
        shrunk = np.maximum(values - 0.5 * low_rank * first, 0.0) / np.maximum(values, 1e-12 * first)
        l_new = ((vectors * shrunk) @ (vectors.conj().T @ candidate)).astype(np.complex64)
        spectrum = np.fft.fft(s_ahead - gradient, axis=0, norm='ortho')
        size = np.abs(spectrum)
        spectrum *= np.maximum(size - 0.5 * sparse * scale, 0.0) / np.maximum(size, 1e-12 * scale)
        s_new = np.fft.ifft(spectrum, axis=0, norm='ortho').astype(np.complex64)
        ahead = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        pull = np.float32((momentum - 1.0) / ahead)
        momentum = ahead
        change = np.linalg.norm(l_new + s_new - l - s) / np.linalg.norm(l + s)
        l_ahead, s_ahead = l_new + pull * (l_new - l), s_new + pull * (s_new - s)
        l, s = l_new, s_new
        if change < tolerance:
            break
    return (l + s).reshape(n_frames, *series.shape)
