"""From means and covariances to what the kernels read: boxes and packed records.

Records of the *box walk* are 16 float32 (one cache line)::

    0-2    first voxel | number of voxels << 16 in x, y, z (the bits of an int32)
    3-5    first voxel minus centre
    6-11   H = -log2(e) / 2 * precision: xx, xy, xz, yy, yz, zz, so that exp(-q / 2) = 2^(d^T H d)
    12-14  the recurrences' second differences 2^(2 H) of yy, yz, zz
    15     exp(log_weight)

A Gaussian that the box walk cannot do (its recurrence would leave float32's range, or the box is larger
than the classes of `bids_gsrecon.gpu._binning`) has 0 voxels in word 0 and, in word 3, the row of its *wide*
record, 16 float64 that hold the factors of ``precision = L D L^T`` from the outermost axis inwards::

    0-2  centre
    3    1 / Szz          4  b  = Syz / Szz               (y | z:    mean b dz, variance 5)
    5    Syy - Syz b      6  1 / that
    7    c  = Sxz / Szz   8  a  = (Sxy - Sxz b) / that    (x | y, z: mean a (dy - b dz) + c dz, variance 9)
    9    Sxx - Sxz c - (Sxy - Sxz b) a                   10 1 / that
    11   exp(log_weight)
    12   Szz
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from bids_gsrecon.gpu import _simd as v
from bids_gsrecon.gpu._binning import BRICK_SIDES, Schedule, make_schedule

# Beyond this squared Mahalanobis distance at a corner of its box a Gaussian takes the row walk:
# exp(-170 / 2) = 1e-37 is where float32 ends, and what is lost to cancellation grows with it.
MAX_CORNER = 120.0
_MAX_BOX = max(BRICK_SIDES)
_AHEAD = 12
_HALF_LOG2E = 0.5 / math.log(2.0)


class Records(NamedTuple):
    """Packed Gaussians in the schedule's order; see the module's text."""

    narrow: np.ndarray
    wide: np.ndarray
    box: np.ndarray
    schedule: Schedule


@njit(cache=True, inline='always')
def factors(cov, i):
    sxx, sxy, sxz = np.float64(cov[i, 0]), np.float64(cov[i, 1]), np.float64(cov[i, 2])
    syy, syz, szz = np.float64(cov[i, 3]), np.float64(cov[i, 4]), np.float64(cov[i, 5])
    b, c = syz / szz, sxz / szz
    var_y = syy - syz * b
    rest = sxy - sxz * b
    a = rest / var_y
    var_x = sxx - sxz * c - rest * a
    return szz, b, var_y, c, a, var_x


@njit(cache=True, inline='always')
def _clip(value, low, high):
    return int(min(max(value, low), high))


@njit(cache=True, parallel=True, error_model='numpy')
def find_boxes(means, cov, log_weights, nx, ny, nz, cutoff, box):
    """Fill boxes (N, 6); return the number of Gaussians that are not finite or not positive definite."""
    bad = 0
    for i in prange(len(means)):
        szz, _, var_y, _, _, var_x = factors(cov, i)
        fine = szz > 0 and var_y > 0 and var_x > 0
        fine = fine and math.isfinite(cov[i, 0] + cov[i, 3] + szz)
        fine = fine and math.isfinite(means[i, 0] + means[i, 1] + means[i, 2] + log_weights[i])
        if not fine:
            bad += 1
        else:
            for k in range(3):
                r = cutoff * math.sqrt(np.float64(cov[i, (0, 3, 5)[k]]))
                n = np.float64((nx, ny, nz)[k])
                box[i, 2 * k] = _clip(math.ceil(means[i, k] - r), 0.0, n)
                box[i, 2 * k + 1] = _clip(math.floor(means[i, k] + r), -1.0, n - 1.0)
    return bad


@njit(cache=True, parallel=True, error_model='numpy')
def _fill(means, cov, log_weights, cutoff, box, order, n_used, narrow, bits, is_wide):
    for j in prange(n_used):
        i = order[j]
        # The order of the inputs is random for us: ask for what comes later now.
        ahead = np.int64(order[min(j + _AHEAD, n_used - 1)])
        v.prefetch(means, 3 * ahead)
        v.prefetch(cov, 6 * ahead)
        v.prefetch(cov, 6 * ahead + 5)
        v.prefetch(box, 6 * ahead)
        v.prefetch(box, 6 * ahead + 5)
        v.prefetch(log_weights, ahead)
        szz, b, var_y, c, a, var_x = factors(cov, i)
        pxx, dyy, dzz = 1.0 / var_x, 1.0 / var_y, 1.0 / szz
        g = c - a * b
        pxy, pxz = -a * pxx, -g * pxx
        pyy = a * a * pxx + dyy
        pyz = a * g * pxx - b * dyy
        pzz = g * g * pxx + b * b * dyy + dzz
        rx, ry, rz = cutoff * math.sqrt(cov[i, 0]), cutoff * math.sqrt(cov[i, 3]), cutoff * math.sqrt(szz)
        xy, xz, yz = pxy * rx * ry, pxz * rx * rz, pyz * ry * rz
        cross = max(max(xy + xz + yz, xy - xz - yz), max(-xy + xz - yz, -xy - xz + yz))
        corner = pxx * rx * rx + pyy * ry * ry + pzz * rz * rz + 2.0 * cross
        tall = max(box[i, 3] - box[i, 2], box[i, 5] - box[i, 4]) >= _MAX_BOX
        is_wide[j] = tall or not corner <= MAX_CORNER
        for k in range(3):
            first = box[i, 2 * k]
            bits[j, k] = first | ((box[i, 2 * k + 1] - first + 1) << 16)
            narrow[j, 3 + k] = first - np.float64(means[i, k])
        if is_wide[j]:
            bits[j, 0] = box[i, 0]
        s = -_HALF_LOG2E
        narrow[j, 6], narrow[j, 7], narrow[j, 8] = s * pxx, s * pxy, s * pxz
        narrow[j, 9], narrow[j, 10], narrow[j, 11] = s * pyy, s * pyz, s * pzz
        t = -2.0 * s * np.float64(log_weights[i])
        v.store(narrow, 16 * j + 12, v.exp2(v.pack4(2.0 * s * pyy, 2.0 * s * pyz, 2.0 * s * pzz, t)))


@njit(cache=True, parallel=True, error_model='numpy')
def _fill_wide(means, cov, log_weights, order, rows, bits, wide):
    for k in prange(len(rows)):
        j = rows[k]
        i = order[j]
        bits[j, 3] = k
        szz, b, var_y, c, a, var_x = factors(cov, i)
        wide[k, 0], wide[k, 1], wide[k, 2] = means[i, 0], means[i, 1], means[i, 2]
        wide[k, 3], wide[k, 4], wide[k, 5], wide[k, 6] = 1.0 / szz, b, var_y, 1.0 / var_y
        wide[k, 7], wide[k, 8], wide[k, 9], wide[k, 10] = c, a, var_x, 1.0 / var_x
        wide[k, 11] = math.exp(np.float64(log_weights[i]))
        wide[k, 12] = szz


def make_boxes(means, cov, log_weights, shape, cutoff) -> np.ndarray:
    """Boxes (N, 6) int32; ValueError where a Gaussian is not finite or not positive definite."""
    if max(shape) > 32767:
        raise ValueError(f'a lattice may have 32767 voxels along an axis at most, not {shape}')
    box = np.empty((len(means), 6), np.int32)
    bad = find_boxes(means, cov, log_weights, *shape, float(cutoff), box)
    if bad:
        raise ValueError(
            f'{bad} of {len(means)} Gaussians are not finite or their covariance is not positive definite'
        )
    return box


def make_records(means, cov, log_weights, shape, cutoff) -> Records:
    """Sort and pack Gaussians: arrays (N, 3), (N, 6), (N,), float32 or float64, C-contiguous."""
    box = make_boxes(means, cov, log_weights, shape, cutoff)
    schedule = make_schedule(box, shape)
    n_used = schedule.n_used
    narrow = np.empty((n_used, 16), np.float32)
    bits = narrow.view(np.int32)
    is_wide = np.empty(n_used, np.bool_)
    _fill(means, cov, log_weights, float(cutoff), box, schedule.order, n_used, narrow, bits, is_wide)
    rows = np.flatnonzero(is_wide)
    wide = np.empty((len(rows), 16))
    if len(rows):
        _fill_wide(means, cov, log_weights, schedule.order, rows, bits, wide)
    return Records(narrow, wide, box, schedule)
