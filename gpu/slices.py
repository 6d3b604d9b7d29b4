"""Pixels of slices that see a grid of equal Gaussians, each slice from its own pose.

A pixel at ``p`` sees ``v = sum_k a_k w_k``, ``w_k = c (E_k - exp(-R^2 / 2))_+``, ``E_k = exp(-u_k^T S u_k / 2)`` with
``u_k = S^-1 (p - k)``: S is the
covariance of the grid's Gaussians plus that of the slice's point spread, turned with the slice (one per slice), k the
nodes of a regular grid at integers, c such that a constant image stays constant. All in index space of the grid.
Weights end at Mahalanobis R = 3, continuously, so that derivatives are exact; they are kept (they change only when
poses move), in runs along the first axis.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange
from scipy import stats

CUTOFF = 3.0
_CHUNKS = 8  # private images of the adjoint: a fixed number, so that sums do not depend on the threads


@njit(cache=True, inline='always', error_model='numpy')
def _interval(centre, half, n):
    """First node and number of nodes within [centre - half, centre + half] of 0..n-1."""
    first = max(math.ceil(centre - half), 0.0)
    last = min(math.floor(centre + half), n - 1.0)
    if last < first:
        return 0, 0
    return int(first), int(last - first) + 1


@njit(cache=True, inline='always')
def _factors(cov, i):
    """The factors from the last axis inwards: see `bids_gsrecon.gpu._records`."""
    sxx, sxy, sxz, syy, syz, szz = cov[i, 0], cov[i, 1], cov[i, 2], cov[i, 3], cov[i, 4], cov[i, 5]
    b, c = syz / szz, sxz / szz
    var_y = syy - syz * b
    rest = sxy - sxz * b
    a = rest / var_y
    return szz, b, var_y, c, a, sxx - sxz * c - rest * a


@njit(cache=True, parallel=True, error_model='numpy')
def _count(points, owner, factors, shape, cutoff, n_runs, n_weights):
    nx, ny, nz = shape
    for i in prange(len(points)):
        szz, b, var_y, c, a, var_x = factors[owner[i]]
        px, py, pz = points[i]
        r2 = cutoff * cutoff
        runs, weights = 0, 0
        z0, mz = _interval(pz, cutoff * math.sqrt(szz), nz)
        for z in range(z0, z0 + mz):
            dz = z - pz
            left_z = r2 - dz * dz / szz
            y0, my = _interval(py + b * dz, math.sqrt(max(left_z, 0.0) * var_y), ny)
            for y in range(y0, y0 + my):
                v = y - py - b * dz
                left = max(left_z - v * v / var_y, 0.0)
                _, mx = _interval(px + c * dz + a * v, math.sqrt(left * var_x), nx)
                if mx > 0:
                    runs += 1
                    weights += mx
        n_runs[i], n_weights[i] = runs, weights


@njit(cache=True, parallel=True, error_model='numpy')
def _fill(points, owner, factors, scales, shape, cutoff, run_start, weight_start, first, length, weights):
    nx, ny, nz = shape
    level = math.exp(-0.5 * cutoff * cutoff)
    for i in prange(len(points)):
        szz, b, var_y, c, a, var_x = factors[owner[i]]
        px, py, pz = points[i]
        r2 = cutoff * cutoff
        run, place = run_start[i], weight_start[i]
        step = math.exp(-1.0 / var_x)
        z0, mz = _interval(pz, cutoff * math.sqrt(szz), nz)
        for z in range(z0, z0 + mz):
            dz = z - pz
            left_z = r2 - dz * dz / szz
            y0, my = _interval(py + b * dz, math.sqrt(max(left_z, 0.0) * var_y), ny)
            for y in range(y0, y0 + my):
                v = y - py - b * dz
                left = max(left_z - v * v / var_y, 0.0)
                centre = px + c * dz + a * v
                x0, mx = _interval(centre, math.sqrt(left * var_x), nx)
                if mx == 0:
                    continue
                first[run] = (z * ny + y) * nx + x0
                length[run] = mx
                run += 1
                # exp(-(x - centre)^2 / 2 var) along the run by its ratios: two exponentials a run.
                t = x0 - centre
                scale = scales[owner[i]]
                w = math.exp(-0.5 * (r2 - left + t * t / var_x))
                ratio = math.exp(-(t + 0.5) / var_x)
                for _ in range(mx):
                    weights[place] = scale * max(w - level, 0.0)
                    place += 1
                    w *= ratio
                    ratio *= step


@njit(cache=True, parallel=True)
def _multiply(image, run_start, weight_start, first, length, weights, out):
    for i in prange(len(out)):
        place = weight_start[i]
        total = 0.0
        for run in range(run_start[i], run_start[i + 1]):
            part = np.float32(0)
            node = first[run]
            for m in range(length[run]):
                part += weights[place + m] * image[node + m]
            total += part
            place += length[run]
        out[i] = total


@njit(cache=True, parallel=True)
def _multiply_transposed(values, run_start, weight_start, first, length, weights, squared, private):
    n_chunks = len(private)
    size = (len(values) + n_chunks - 1) // n_chunks
    for chunk in prange(n_chunks):
        image = private[chunk]
        for i in range(chunk * size, min(len(values), (chunk + 1) * size)):
            value = values[i]
            if value == 0:
                continue
            place = weight_start[i]
            for run in range(run_start[i], run_start[i + 1]):
                node = first[run]
                for m in range(length[run]):
                    w = weights[place + m]
                    image[node + m] += value * (w * w if squared else w)
                place += length[run]


@njit(cache=True, parallel=True)
def _sum_chunks(private, out):
    for k in prange(len(out)):
        total = 0.0
        for chunk in range(len(private)):
            total += private[chunk, k]
        out[k] = total


@njit(cache=True, parallel=True, error_model='numpy')
def _moments(
    image,
    points,
    owner,
    precisions,
    levels,
    shape,
    run_start,
    weight_start,
    first,
    length,
    weights,
    out_first,
    out_second,
):
    nx, ny, _ = shape
    for i in prange(len(points)):
        pxx, pxy, pxz, pyy, pyz, pzz = precisions[owner[i]]
        level = levels[owner[i]]
        place = weight_start[i]
        m1, m2, m3 = 0.0, 0.0, 0.0
        m11, m12, m13, m22, m23, m33 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for run in range(run_start[i], run_start[i + 1]):
            node = first[run]
            s0, s1, s2 = 0.0, 0.0, 0.0
            for m in range(length[run]):
                t = (weights[place + m] + level) * image[node + m]  # c E
                s0 += t
                s1 += t * m
                s2 += t * m * m
            place += length[run]
            x = points[i, 0] - node % nx
            y = points[i, 1] - (node // nx) % ny
            z = points[i, 2] - node // (nx * ny)
            # u = u0 - m p along the run, p the first column of the precision.
            u1, u2, u3 = pxx * x + pxy * y + pxz * z, pxy * x + pyy * y + pyz * z, pxz * x + pyz * y + pzz * z
            m1 += u1 * s0 - pxx * s1
            m2 += u2 * s0 - pxy * s1
            m3 += u3 * s0 - pxz * s1
            m11 += u1 * u1 * s0 - 2.0 * u1 * pxx * s1 + pxx * pxx * s2
            m12 += u1 * u2 * s0 - (u1 * pxy + u2 * pxx) * s1 + pxx * pxy * s2
            m13 += u1 * u3 * s0 - (u1 * pxz + u3 * pxx) * s1 + pxx * pxz * s2
            m22 += u2 * u2 * s0 - 2.0 * u2 * pxy * s1 + pxy * pxy * s2
            m23 += u2 * u3 * s0 - (u2 * pxz + u3 * pxy) * s1 + pxy * pxz * s2
            m33 += u3 * u3 * s0 - 2.0 * u3 * pxz * s1 + pxz * pxz * s2
        out_first[i, 0], out_first[i, 1], out_first[i, 2] = m1, m2, m3
        out_second[i, 0], out_second[i, 1], out_second[i, 2] = m11, m12, m13
        out_second[i, 3], out_second[i, 4], out_second[i, 5] = m22, m23, m33


def unit_mass(cutoff: float) -> float:
    """Integral of ``(exp(-q / 2) - exp(-R^2 / 2))_+`` for unit covariance."""
    gaussian = (2 * math.pi) ** 1.5 * float(stats.chi2.cdf(cutoff**2, 3))
    return gaussian - math.exp(-0.5 * cutoff**2) * 4.0 / 3.0 * math.pi * cutoff**3


def variance_ratio(cutoff: float) -> float:
    """Variance of the cut Gaussian over that of the whole one; `PixelWeights` widens its Gaussians by the inverse."""
    gaussian = 3 * (2 * math.pi) ** 1.5 * float(stats.chi2.cdf(cutoff**2, 5))
    level = math.exp(-0.5 * cutoff**2) * 4.0 / 5.0 * math.pi * cutoff**5
    return (gaussian - level) / 3.0 / unit_mass(cutoff)


def _checked(points, owner, covariances, shape):
    points = np.ascontiguousarray(points, dtype=np.float64)
    owner = np.ascontiguousarray(owner, dtype=np.int64)
    covariances = np.ascontiguousarray(covariances, dtype=np.float64)
    shape = tuple(int(n) for n in shape)
    if points.ndim != 2 or points.shape[1] != 3 or owner.shape != (len(points),):
        raise ValueError(f'points must be (N, 3) and owner (N,), not {points.shape} and {owner.shape}')
    if covariances.ndim != 2 or covariances.shape[1] != 6:
        raise ValueError(f'covariances must be (M, 6), not {covariances.shape}')
    if len(owner) and not (owner.min() >= 0 and owner.max() < len(covariances)):
        raise ValueError('an owner has no covariance')
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f'a grid has three positive sizes, not {shape}')
    if not np.isfinite(points).all():
        raise ValueError('points must be finite')
    return points, owner, covariances, shape


class PixelWeights:
    """The operator from a grid of amplitudes to pixel values, for given poses.

    Attributes
    ----------
    shape
        (nx, ny, nz) of the grid; images are arrays of that shape, first axis fastest in memory when returned.
    n_pixels
        Number of pixels.
    """

    def __init__(self, points, owner, covariances, shape, *, cutoff: float = CUTOFF):
        """Compute and keep the weights.

        Parameters
        ----------
        points
            (N, 3) pixel centres in index space of the grid.
        owner
            (N,) which covariance (slice) a pixel has.
        covariances
            (M, 6) covariance of what each slice's pixels weigh (S is a little wider, as it is cut), xx, xy, xz, yy, yz, zz, in voxels^2.

        Raises
        ------
        ValueError
            Shapes that do not fit, values that are not finite, covariances that are not positive definite.
        """
        points, owner, covariances, shape = _checked(points, owner, covariances, shape)
        covariances = covariances / variance_ratio(cutoff)
        full = covariances[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
        if not np.isfinite(full).all() or (np.linalg.eigvalsh(full) <= 0).any():
            raise ValueError('a covariance is not positive definite')
        factors = np.array([_factors(covariances, i) for i in range(len(covariances))]).reshape(-1, 6)
        self._precisions = np.linalg.inv(full).reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]].copy()
        scales = 1.0 / (unit_mass(cutoff) * np.sqrt(np.prod(factors[:, [0, 2, 5]], axis=1)))
        self._levels = scales * math.exp(-0.5 * cutoff**2)
        n = len(points)
        n_runs, n_weights = np.empty(n, np.int64), np.empty(n, np.int64)
        _count(points, owner, factors, shape, float(cutoff), n_runs, n_weights)
        self._run_start = np.concatenate([[0], np.cumsum(n_runs)])
        self._weight_start = np.concatenate([[0], np.cumsum(n_weights)])
        self._first = np.empty(self._run_start[-1], np.int64)
        self._length = np.empty(self._run_start[-1], np.int32)
        self._weights = np.empty(self._weight_start[-1], np.float32)
        _fill(
            points, owner, factors, scales, shape, float(cutoff), self._run_start, self._weight_start,
            self._first, self._length, self._weights,
        )  # fmt: skip
        self._points, self._owner = points, owner
        self.shape, self.n_pixels = shape, n

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        arrays = (self._first, self._length, self._weights, self._run_start, self._weight_start, self._points)
        return sum(a.nbytes for a in arrays)

    @property
    def _runs(self):
        return self._run_start, self._weight_start, self._first, self._length, self._weights

    def _flat(self, image) -> np.ndarray:
        image = np.asarray(image, dtype=np.float32)
        if image.shape != self.shape:
            raise ValueError(f'the image must be {self.shape}, not {image.shape}')
        return np.ascontiguousarray(image.transpose(2, 1, 0)).reshape(-1)

    def forward(self, image) -> np.ndarray:
        """Pixel values (N,) float32 of amplitudes (nx, ny, nz)."""
        out = np.empty(self.n_pixels, np.float32)
        _multiply(self._flat(image), *self._runs, out)
        return out

    def adjoint(self, values) -> np.ndarray:
        """The transpose of `forward`, (nx, ny, nz) float32."""
        return self._scatter(values, False)

    def squares(self, weights) -> np.ndarray:
        """Diagonal of ``A^T diag(weights) A``, (nx, ny, nz) float32."""
        return self._scatter(weights, True)

    def _scatter(self, values, squared: bool) -> np.ndarray:
        values = np.ascontiguousarray(values, dtype=np.float32)
        if values.shape != (self.n_pixels,):
            raise ValueError(f'values must be ({self.n_pixels},), not {values.shape}')
        private = np.zeros((_CHUNKS, int(np.prod(self.shape))), np.float32)
        _multiply_transposed(values, *self._runs, squared, private)
        out = np.empty(private.shape[1], np.float32)
        _sum_chunks(private, out)
        return out.reshape(self.shape[::-1]).transpose(2, 1, 0)

    def moments(self, image) -> tuple[np.ndarray, np.ndarray]:
        """``c sum_k a_k E_k u_k`` (N, 3) and ``c sum_k a_k E_k u_k u_k^T`` (N, 6) inside the cut, float64.

        The value's gradient in the pixel's position is minus the first; its gradient in S is half the second
        minus ``S^-1`` times half the value, of which a rotation of S sees only the second.
        """
        first, second = np.empty((self.n_pixels, 3)), np.empty((self.n_pixels, 6))
        _moments(
            self._flat(image),
            self._points,
            self._owner,
            self._precisions,
            self._levels,
            self.shape,
            *self._runs,
            first,
            second,
        )
        return first, second
