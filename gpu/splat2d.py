"""Complex 2D Gaussians on many frames at once: images and gradients, on the CPU.

`splat2d` and `splat2d_gradient` of every backend compute the same for torch tensors, on the CPU with this module.

On frames of shape ``(nx, ny)``, in pixels (centres at whole numbers), a Gaussian adds to its frame::

    (re + i im) (exp(-|z|^2 / 2) - exp(-R^2 / 2))_+,   L z = x - mu,   L = [[l11, 0], [l21, l22]]

so that its covariance is ``L L^T``; R is the cut, as for the 3D Gaussians of `bids_gsrecon.gpu.backend`. The
seven parameters of a Gaussian stand in the order of `PARAMETERS`. Real and imaginary parts are planes of one
float32 array ``(T, 2, nx, ny)``.

Rows along y are walked over their exact interval of the ellipse, eight pixels at a time. Frames (forward) and
Gaussians (gradient) are independent tasks that run in a fixed order inside: any number of threads gives the same
bits.
"""

from __future__ import annotations

import math

import numpy as np
from numba import get_num_threads, njit, prange

from bids_gsrecon.gpu import _simd as v
from bids_gsrecon.gpu._simd import leaf

PARAMETERS = ('mu_x', 'mu_y', 'l11', 'l21', 'l22', 're', 'im')
DEFAULT_CUTOFF = 3.0
LANES = 8
_TO_EXP2 = np.float32(-0.5 / math.log(2.0))


def frame_planes(n_frames: int, shape) -> np.ndarray:
    """Zeros (T, 2, nx, ny) with room behind every row for the lanes of the kernels: a view, y contiguous."""
    nx, ny = shape
    return np.zeros((n_frames, 2, nx, ny + LANES), np.float32)[..., :ny]


def splat(parameters: np.ndarray, shape, *, out=None, cutoff: float = DEFAULT_CUTOFF) -> np.ndarray:
    """Frames (T, 2, nx, ny) float32 of T sets of M Gaussians.

    Parameters
    ----------
    parameters
        (T, M, 7), see `PARAMETERS`; l11 and l22 must be positive.
    shape
        (nx, ny).
    out
        From `frame_planes`: the Gaussians are added to it.

    Raises
    ------
    ValueError
        Shapes that do not fit, parameters that are not finite, widths that are not positive.
    """
    parameters = _checked(parameters)
    if out is None:
        out = frame_planes(len(parameters), shape)
    padded = _padded(out, (len(parameters), 2, *shape))
    # Few frames are cut into bands of rows that keep all threads busy; every pixel's sum has the same order.
    n_bands = max(1, min(-(-get_num_threads() // max(1, len(parameters))), shape[0]))
    _splat(
        parameters, padded.reshape(-1), np.int64(shape[0]), np.int64(shape[1]), np.float32(cutoff), n_bands
    )
    return out


def splat_gradient(
    parameters: np.ndarray, gradient: np.ndarray, *, cutoff: float = DEFAULT_CUTOFF
) -> np.ndarray:
    """Gradient (T, M, 7) of ``(gradient * splat(parameters)).sum()``.

    ``gradient`` (T, 2, nx, ny); from `frame_planes` (with untouched zeros behind its rows) it is not copied.
    """
    parameters = _checked(parameters)
    shape = gradient.shape[2:]
    if gradient.shape[:2] != (len(parameters), 2) or len(shape) != 2:
        raise ValueError(f'gradient must be ({len(parameters)}, 2, nx, ny), not {gradient.shape}')
    try:
        padded = _padded(gradient, gradient.shape)
    except ValueError:
        planes = frame_planes(len(parameters), shape)
        planes[...] = gradient
        padded = planes.base
    out = np.zeros(parameters.shape, np.float32)
    _gather(parameters, padded.reshape(-1), np.int64(shape[0]), np.int64(shape[1]), np.float32(cutoff), out)
    return out


def count_evaluations(parameters: np.ndarray, shape, *, cutoff: float = DEFAULT_CUTOFF) -> int:
    """Pixels whose weight `splat` computes: what its time grows with."""
    return int(_count(_checked(parameters), np.int64(shape[0]), np.int64(shape[1]), np.float32(cutoff)))


def _checked(parameters) -> np.ndarray:
    parameters = np.ascontiguousarray(parameters, dtype=np.float32)
    if parameters.ndim != 3 or parameters.shape[2] != len(PARAMETERS):
        raise ValueError(f'parameters must be (T, M, {len(PARAMETERS)}), not {parameters.shape}')
    if parameters.size and not _usable(parameters):
        raise ValueError('a Gaussian is not finite or one of its widths (l11, l22) is not positive')
    return parameters


def _padded(planes: np.ndarray, shape) -> np.ndarray:
    """The array behind a view that `frame_planes` made."""
    base = planes.base
    if (
        planes.shape != tuple(shape)
        or planes.dtype != np.float32
        or base is None
        or base.shape != (*planes.shape[:3], planes.shape[3] + LANES)
        or not base.flags.c_contiguous
    ):
        raise ValueError(f'planes must come from frame_planes and be {tuple(shape)}, not {planes.shape}')
    return base


@njit(cache=True, error_model='numpy')
def _usable(parameters):
    for t in range(parameters.shape[0]):
        for m in range(parameters.shape[1]):
            total = np.float32(0)
            for k in range(7):
                total += abs(parameters[t, m, k])
            if not (total < 1e30 and parameters[t, m, 2] > 0 and parameters[t, m, 4] > 0):
                return False
    return True


@njit(cache=True, inline='always')
def _factors(p, t, m):
    """Centre and inverse factor: z1 = a dx, z2 = b dx + c dy."""
    a, c = np.float32(1) / p[t, m, 2], np.float32(1) / p[t, m, 4]
    return p[t, m, 0], p[t, m, 1], a, -p[t, m, 3] * a * c, c


@njit(cache=True, inline='always')
def _rows(mu_x, a, low, high, cutoff):
    """First and last + 1 row that the ellipse meets."""
    reach = np.float64(cutoff / a)
    return max(low, math.ceil(mu_x - reach)), min(high, math.floor(mu_x + reach) + 1)


@njit(cache=True, inline='always')
def _interval(p, t, m, z1, ny, cutoff):
    """First and last + 1 pixel of a row inside the ellipse."""
    half = math.sqrt(max(cutoff * cutoff - z1 * z1, np.float32(0))) * p[t, m, 4]
    middle = np.float64(p[t, m, 1]) + np.float64(p[t, m, 3] * z1)
    return max(0, math.ceil(middle - half)), min(ny, math.floor(middle + half) + 1)


@leaf
def _add_one(p, t, m, flat, base, low, high, nx, ny, cutoff):
    pitch = ny + LANES
    plane = nx * pitch
    mu_x, mu_y, a, b, c = _factors(p, t, m)
    level = np.float32(math.exp(-0.5 * cutoff * cutoff))
    re, im = v.full(p[t, m, 5], LANES), v.full(p[t, m, 6], LANES)
    first, last = _rows(mu_x, a, low, high, cutoff)
    step = v.mul(v.iota(np.float32(0), LANES), c)
    for x in range(first, last):
        dx = np.float32(x) - mu_x
        z1 = a * dx
        start, stop = _interval(p, t, m, z1, ny, cutoff)
        z1 = z1 * z1
        for y in range(start, stop, LANES):
            z2 = v.add(step, b * dx + c * (np.float32(y) - mu_y))
            q = v.fma(z2, z2, v.full(z1, LANES))
            w = v.maximum(v.sub(v.exp2(v.mul(q, _TO_EXP2)), level), np.float32(0))
            i = base + x * pitch + y
            v.store(flat, i, v.fma(w, re, v.load(flat, i, LANES)))
            v.store(flat, i + plane, v.fma(w, im, v.load(flat, i + plane, LANES)))


@njit(cache=True, parallel=True, error_model='numpy')
def _splat(p, flat, nx, ny, cutoff, n_bands):
    n_frames = p.shape[0]
    size = 2 * nx * (ny + LANES)
    for task in prange(n_frames * n_bands):
        t, band = task // n_bands, task % n_bands
        low, high = band * nx // n_bands, (band + 1) * nx // n_bands
        for m in range(p.shape[1]):
            _add_one(p, t, m, flat, t * size, low, high, nx, ny, cutoff)


@leaf
def _gather_one(p, t, m, flat, base, nx, ny, cutoff, totals, place, out):
    pitch = ny + LANES
    plane = nx * pitch
    mu_x, mu_y, a, b, c = _factors(p, t, m)
    level = np.float32(math.exp(-0.5 * cutoff * cutoff))
    re, im = v.full(p[t, m, 5], LANES), v.full(p[t, m, 6], LANES)
    first, last = _rows(mu_x, a, 0, nx, cutoff)
    step = v.mul(v.iota(np.float32(0), LANES), c)
    zero = v.full(np.float32(0), LANES)
    s_re, s_im, s_x, s_xx, s_z, s_zx, s_zz = zero, zero, zero, zero, zero, zero, zero
    for x in range(first, last):
        dx = np.float32(x) - mu_x
        z1 = a * dx
        start, stop = _interval(p, t, m, z1, ny, cutoff)
        z1 = z1 * z1
        for y in range(start, stop, LANES):
            z2 = v.add(step, b * dx + c * (np.float32(y) - mu_y))
            q = v.fma(z2, z2, v.full(z1, LANES))
            e = v.exp2(v.mul(q, _TO_EXP2))
            i = base + x * pitch + y
            g_re, g_im = v.load(flat, i, LANES), v.load(flat, i + plane, LANES)
            w = v.maximum(v.sub(e, level), np.float32(0))
            s_re, s_im = v.fma(w, g_re, s_re), v.fma(w, g_im, s_im)
            # Minus twice the derivative by q; nothing beyond the cut.
            d = v.mul(v.keep_above(e, e, level), v.fma(g_re, re, v.mul(g_im, im)))
            dz = v.mul(d, z2)
            s_x, s_xx = v.fma(d, dx, s_x), v.fma(d, dx * dx, s_xx)
            s_z, s_zx, s_zz = v.add(s_z, dz), v.fma(dz, dx, s_zx), v.fma(dz, z2, s_zz)
    v.store_totals(totals, place, (s_re, s_im, s_x, s_xx, s_z, s_zx, s_zz))
    d_a = -a * totals[place + 3]
    d_b = -totals[place + 5]
    d_c = -(totals[place + 6] - b * totals[place + 5]) / c
    out[t, m, 0] = a * a * totals[place + 2] + b * totals[place + 4]
    out[t, m, 1] = c * totals[place + 4]
    out[t, m, 2] = -a * (a * d_a + b * d_b)
    out[t, m, 3] = -a * c * d_b
    out[t, m, 4] = -c * (c * d_c + b * d_b)
    out[t, m, 5] = totals[place]
    out[t, m, 6] = totals[place + 1]


@njit(cache=True, parallel=True, error_model='numpy')
def _gather(p, flat, nx, ny, cutoff, out):
    n_frames, n = p.shape[:2]
    size = 2 * nx * (ny + LANES)
    chunk = 64
    n_chunks = (n + chunk - 1) // chunk
    totals = np.empty(n_frames * n_chunks * 16, np.float32)
    for task in prange(n_frames * n_chunks):
        t, first = task // n_chunks, (task % n_chunks) * chunk
        for m in range(first, min(first + chunk, n)):
            _gather_one(p, t, m, flat, t * size, nx, ny, cutoff, totals, task * 16, out)


@njit(cache=True, error_model='numpy')
def _count(p, nx, ny, cutoff):
    total = 0
    for t in range(p.shape[0]):
        for m in range(p.shape[1]):
            mu_x, _, a, _, _ = _factors(p, t, m)
            first, last = _rows(mu_x, a, 0, nx, cutoff)
            for x in range(first, last):
                dx = np.float32(x) - mu_x
                start, stop = _interval(p, t, m, a * dx, ny, cutoff)
                total += max(0, (stop - start + LANES - 1) // LANES * LANES)
    return total
