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
def _step(x, r, p, hp, alpha):
    """x += alpha p; r -= alpha hp, in one pass."""
    for chunk in prange((x.size + _CHUNK - 1) // _CHUNK):
        for i in range(chunk * _CHUNK, min(x.size, (chunk + 1) * _CHUNK)):
            x[i] += alpha * p[i]
            r[i] -= alpha * hp[i]


@njit(parallel=True, cache=True)
def _direction(p, z, beta):
    """p = z + beta p."""
    for chunk in prange((p.size + _CHUNK - 1) // _CHUNK):
        for i in range(chunk * _CHUNK, min(p.size, (chunk + 1) * _CHUNK)):
            p[i] = z[i] + beta * p[i]


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product in double precision, bitwise independent of the number of threads."""
    return float(_dot(np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)))


def axpy_pair(x, r, p, hp, alpha: float) -> None:
    """In place: ``x += alpha p`` and ``r -= alpha hp`` (contiguous float32 arrays of one size)."""
    _step(x.reshape(-1), r.reshape(-1), p.reshape(-1), hp.reshape(-1), np.float32(alpha))


def update_direction(p, z, beta: float) -> None:
    """In place: ``p = z + beta p``."""
    _direction(p.reshape(-1), z.reshape(-1), np.float32(beta))
