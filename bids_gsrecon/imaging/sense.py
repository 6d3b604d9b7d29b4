"""Multi-coil Cartesian encoding of a series of images, in hybrid space (readout in image space, phase encoding in k-space).

Only the acquired lines of a frame are computed, by a matrix product along y: there is no fast Fourier transform.
Transforms are unitary and centred: sample n // 2 is the centre, of k-space and of the image.
"""

from __future__ import annotations

import copy

import numpy as np
from numba import njit, prange


def centred_fft(data: np.ndarray, axis: int) -> np.ndarray:
    """Unitary centred Fourier transform along one axis, image to k-space."""
    shifted = np.fft.ifftshift(data, axes=axis)
    return np.fft.fftshift(np.fft.fft(shifted, axis=axis, norm='ortho'), axes=axis)


def centred_ifft(data: np.ndarray, axis: int) -> np.ndarray:
    """Unitary centred inverse Fourier transform along one axis, k-space to image."""
    shifted = np.fft.ifftshift(data, axes=axis)
    return np.fft.fftshift(np.fft.ifft(shifted, axis=axis, norm='ortho'), axes=axis)


class SenseSeries:
    """Encoding ``E_t = W_t F_t S`` of frames t = 0..T-1, and their data.

    Parameters
    ----------
    maps
        (coil, x, y) complex sensitivities.
    hybrid
        (T, coil, x, ky) complex data; values of lines that were not acquired are never read.
    weights
        (T, ky) float: 0 for lines that were not acquired, else one over the standard deviation of a line (real and
        imaginary part each), in any unit. Data and encoding are multiplied by it.
    """

    def __init__(self, maps, hybrid, weights):
        weights = np.asarray(weights, dtype=np.float32)
        n_frames, n_coils, nx, ny = hybrid.shape
        if maps.shape != (n_coils, nx, ny) or weights.shape != (n_frames, ny):
            raise ValueError(
                f'maps {maps.shape} and weights {weights.shape} do not fit data {hybrid.shape} (T, coil, x, ky)'
            )
        self.shape, self.n_frames, self.n_coils = (nx, ny), n_frames, n_coils
        self.lines = [np.flatnonzero(w) for w in weights]
        n_lines = max(1, max(len(lines) for lines in self.lines))
        fourier = centred_fft(np.eye(ny, dtype=np.complex128), 0)
        # Frames with fewer lines are filled up with zeros: one rectangular array for all.
        self.fourier = np.zeros((n_frames, ny, n_lines), np.complex64)
        self.data = np.zeros((n_frames, nx * n_coils, n_lines), np.complex64)
        for t, lines in enumerate(self.lines):
            scale = weights[t, lines]
            self.fourier[t, :, : len(lines)] = fourier[lines].T * scale
            measured = np.moveaxis(hybrid[t][:, :, lines], 0, 1) * scale
            self.data[t, :, : len(lines)] = measured.reshape(nx * n_coils, -1)
        self.adjoint_fourier = np.ascontiguousarray(self.fourier.conj().transpose(0, 2, 1))
        self.maps = np.ascontiguousarray(np.moveaxis(maps, 0, 1), dtype=np.complex64)  # (x, coil, y)
        self.left_out = np.zeros(n_frames)  # power of the virtual coils that were left out
        self.n_samples = 2 * nx * n_coils * sum(len(lines) for lines in self.lines)

    def of_frames(self, frames: slice) -> SenseSeries:
        """Encoding and data of some of the frames."""
        some = copy.copy(self)
        some.lines = self.lines[frames]
        some.n_frames = len(some.lines)
        for name in ('fourier', 'adjoint_fourier', 'data', 'left_out'):
            setattr(some, name, np.ascontiguousarray(getattr(self, name)[frames]))
        some.n_samples = self.n_samples // max(1, _count(self.lines)) * _count(some.lines)
        return some

    def split(self, held: list[int]) -> tuple[SenseSeries, SenseSeries]:
        """The same without one line of every frame, number ``held[t]`` of `lines` (-1: none), and these alone."""
        rest, alone = copy.copy(self), copy.copy(self)
        frames = np.flatnonzero(np.asarray(held) >= 0)
        number = np.asarray(held)[frames]
        one = np.where(np.asarray(held) >= 0, held, 0)[:, None, None]
        for name, axis in (('fourier', 2), ('adjoint_fourier', 1), ('data', 2)):
            whole = getattr(self, name)
            single = np.take_along_axis(whole, np.moveaxis(one, 2, axis), axis)
            single[np.asarray(held) < 0] = 0
            setattr(alone, name, single)
            whole = whole.copy()
            np.moveaxis(whole, axis, 2)[frames, :, number] = 0
            setattr(rest, name, whole)
        share = len(frames) / max(1, _count(self.lines))
        alone.n_samples = 2 * self.shape[0] * self.n_coils * len(frames)
        alone.left_out = np.zeros(self.n_frames)
        rest.n_samples, rest.left_out = round(self.n_samples * (1 - share)), self.left_out * (1 - share)
        return rest, alone

    def with_fewer_coils(self) -> SenseSeries:
        """The same encoding and data in fewer virtual coils, those of every row of its own.

        Along one row of an image the sensitivities span far less than over the whole of it (geometric coil
        compression, Zhang et al., MRM 2013): the principal components of a row's samples that rise above the noise,
        whose variance must be 1 (real and imaginary part each). The turn is unitary: noise stays white. What is left
        out still counts in the residual, as noise that no image explains.
        """
        nx, count = self.shape[0], max(1, _count(self.lines))
        rows = self.data.reshape(self.n_frames, nx, self.n_coils, -1)
        power = np.einsum('txcl,txdl->xcd', rows, rows.conj(), optimize=True) / (2.0 * count)
        values, vectors = np.linalg.eigh(power)
        # The largest eigenvalue that noise alone reaches with so few samples (Marchenko and Pastur).
        floor = (1.0 + np.sqrt(self.n_coils / count)) ** 2
        n_coils = max(1, int((values > floor).sum(1).max()))
        if n_coils == self.n_coils:
            return self
        turn = np.ascontiguousarray(vectors[:, :, -n_coils:].conj().transpose(0, 2, 1), dtype=np.complex64)
        fewer = copy.copy(self)
        fewer.n_coils, fewer.maps = n_coils, turn @ self.maps
        fewer.data = (turn @ rows).reshape(self.n_frames, nx * n_coils, -1)
        fewer.left_out = self.left_out + _power(self.data) - _power(fewer.data)
        return fewer

    def forward(self, images: np.ndarray) -> np.ndarray:
        """Weighted samples (T, x * coil, lines) of images (T, x, y) complex."""
        images = np.ascontiguousarray(images, dtype=np.complex64)
        out = np.empty_like(self.data)
        _forward(images, self.maps, self.fourier, out)
        return out

    def adjoint(self, samples: np.ndarray) -> np.ndarray:
        """Images (T, x, y) complex of weighted samples (T, x * coil, lines)."""
        out = np.empty((self.n_frames, *self.shape), np.complex64)
        _adjoint(np.ascontiguousarray(samples, dtype=np.complex64), self.maps, self.adjoint_fourier, out)
        return out

    def adjoint_of_data(self) -> np.ndarray:
        """``E^H y`` (T, x, y): the zero-filled images."""
        return self.adjoint(self.data)

    def normal(self, images: np.ndarray) -> np.ndarray:
        """``E^H E images`` (T, x, y)."""
        return self._gradient(images, False)[0]

    def gradient(self, images: np.ndarray) -> tuple[np.ndarray, float]:
        """``E^H (E images - y)`` (T, x, y) and ``sum |E images - y|^2``.

        ``images`` are complex (T, x, y) or planes (T, 2, x, y) of real and imaginary parts.
        """
        return self._gradient(images, True)

    def residual_power(self, images: np.ndarray) -> list[np.ndarray]:
        """Per frame (coil, line): the mean over x of ``|E images - y|^2``, in the order of `lines`."""
        residual = self.forward(images) - self.data
        power = (np.abs(residual) ** 2).reshape(self.n_frames, self.shape[0], self.n_coils, -1).mean(1)
        return [p[:, : len(lines)] for p, lines in zip(power, self.lines)]

    def _gradient(self, images, subtract):
        if images.ndim == 4:
            planes, images = images, np.empty((self.n_frames, *self.shape), np.complex64)
            images.real, images.imag = planes[:, 0], planes[:, 1]
        images = np.ascontiguousarray(images, dtype=np.complex64)
        out = np.empty_like(images)
        sums = np.zeros(self.n_frames)
        _gradient(images, self.maps, self.fourier, self.adjoint_fourier, self.data, subtract, out, sums)
        return out, float((sums + self.left_out).sum())


def _count(lines):
    return sum(map(len, lines))


def _power(samples):
    """(T,) sums of squared magnitudes."""
    flat = samples.reshape(len(samples), -1)
    return np.einsum('ti,ti->t', flat, flat.conj(), dtype=np.complex128).real


@njit(cache=True, inline='always')
def _to_coils(image, maps, coils):
    nx, n_coils, ny = maps.shape
    for x in range(nx):
        for c in range(n_coils):
            for y in range(ny):
                coils[x * n_coils + c, y] = maps[x, c, y] * image[x, y]


@njit(cache=True, inline='always')
def _combine(coils, maps, image):
    nx, n_coils, ny = maps.shape
    for x in range(nx):
        for y in range(ny):
            image[x, y] = 0
        for c in range(n_coils):
            for y in range(ny):
                s, d = maps[x, c, y], coils[x * n_coils + c, y]
                image[x, y] += complex(s.real * d.real + s.imag * d.imag, s.real * d.imag - s.imag * d.real)


_FAST = {'contract', 'reassoc', 'nsz', 'nnan', 'ninf'}


@njit(cache=True, parallel=True, error_model='numpy', fastmath=_FAST)
def _forward(images, maps, fourier, out):
    nx, n_coils, ny = maps.shape
    for t in prange(len(images)):
        coils = np.empty((nx * n_coils, ny), np.complex64)
        _to_coils(images[t], maps, coils)
        np.dot(coils, fourier[t], out[t])


@njit(cache=True, parallel=True, error_model='numpy', fastmath=_FAST)
def _adjoint(samples, maps, adjoint_fourier, out):
    nx, n_coils, ny = maps.shape
    for t in prange(len(samples)):
        coils = np.empty((nx * n_coils, ny), np.complex64)
        np.dot(samples[t], adjoint_fourier[t], coils)
        _combine(coils, maps, out[t])


@njit(cache=True, parallel=True, error_model='numpy', fastmath=_FAST)
def _gradient(images, maps, fourier, adjoint_fourier, data, subtract, out, sums):
    nx, n_coils, ny = maps.shape
    n_lines = fourier.shape[2]
    for t in prange(len(images)):
        coils = np.empty((nx * n_coils, ny), np.complex64)
        samples = np.empty((nx * n_coils, n_lines), np.complex64)
        _to_coils(images[t], maps, coils)
        np.dot(coils, fourier[t], samples)
        if subtract:
            total = 0.0
            for i in range(nx * n_coils):
                row = np.float32(0)
                for l in range(n_lines):
                    d = samples[i, l] - data[t, i, l]
                    samples[i, l] = d
                    row += d.real * d.real + d.imag * d.imag
                total += row
            sums[t] = total
        np.dot(samples, adjoint_fourier[t], coils)
        _combine(coils, maps, out[t])
