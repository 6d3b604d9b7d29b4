"""Sums that give the same bits at any number of threads: fixed chunks, double accumulators."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

_CHUNK = 1 << 16


@njit(parallel=True, cache=True)
def _dot(a, b):
    n = a.size
    n_chunks = (n + _CHUNK - 1) // _CHUNK
    partial = np.zeros(n_chunks)
    for chunk in prange(n_chunks):
        total = 0.0
        for i in range(chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)):
            total += np.float64(a[i]) * np.float64(b[i])
        partial[chunk] = total
    return partial.sum()


@njit(parallel=True, cache=True)
def _step(x, r, p, hp, scale, alpha):
    n = x.size
    n_chunks = (n + _CHUNK - 1) // _CHUNK
    partial = np.zeros(n_chunks)
    for chunk in prange(n_chunks):
        total = 0.0
        for i in range(chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)):
            x[i] += alpha * p[i]
            r[i] -= alpha * hp[i]
            total += np.float64(r[i]) * np.float64(scale[i] * r[i])
        partial[chunk] = total
    return partial.sum()


@njit(parallel=True, cache=True)
def _direction(p, r, scale, beta):
    for chunk in prange((p.size + _CHUNK - 1) // _CHUNK):
        for i in range(chunk * _CHUNK, min(p.size, (chunk + 1) * _CHUNK)):
            p[i] = scale[i] * r[i] + beta * p[i]


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product in double precision, bitwise independent of the number of threads."""
    return float(_dot(np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)))


def descend(x, r, p, hp, scale, alpha: float) -> float:
    """In place ``x += alpha p`` and ``r -= alpha hp``; returns the inner product of ``r`` with ``scale r``.

    All in one pass over contiguous float32 arrays of one size.
    """
    x, r, p, hp, scale = (a.reshape(-1) for a in (x, r, p, hp, scale))
    return float(_step(x, r, p, hp, scale, np.float32(alpha)))


def update_direction(p, r, scale, beta: float) -> None:
    """In place: ``p = scale r + beta p``."""
    _direction(p.reshape(-1), r.reshape(-1), scale.reshape(-1), np.float32(beta))


def median(values: np.ndarray) -> float:
    """`numpy.median` of all of an array without NaN, to the bit.

    Numpy asks for several ranks at once, one of them to find NaN, which takes much longer than asking for one.
    """
    values = np.asarray(values).reshape(-1)
    half = len(values) // 2
    halves = np.partition(values, half)
    middle = halves[half : half + 1]
    return float(np.mean(middle if len(values) % 2 else np.append(halves[:half].max(), middle)))
