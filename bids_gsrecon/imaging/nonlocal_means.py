"""Non-local means in 3D: every voxel is helped by those whose surroundings look alike (Buades et al. 2005)."""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, prange
from scipy import ndimage

from bids_gsrecon.gpu import side_by_side
from bids_gsrecon.gpu._simd import fetch_add


def nonlocal_means(x: np.ndarray, inverse_h2: np.ndarray, search: int = 3) -> np.ndarray:
    """Every voxel replaced by the mean of its neighbours, weighted exp(-d / h^2) by patch.

    d is the mean squared difference of the two 3^3 patches; the voxel itself weighs as much as its most
    similar neighbour. ``inverse_h2`` (i, j, k) is 1 / h^2. exp(-t) is computed as (1 - t / 256)^256, within
    .02 of the true value for all t.
    """
    padded = np.pad(x, search + 1, mode='reflect' if min(x.shape) > search + 1 else 'edge')
    out = np.empty(x.shape, np.float32)
    tiles = _tiles(x.shape, depth=8, width=24)
    _nonlocal_means(padded.astype(np.float32), inverse_h2, out, search, tiles, get_num_threads())
    return out


def local_deviation(x: np.ndarray) -> np.ndarray:
    """Standard deviation over 3^3 voxels."""
    mean, square = side_by_side(lambda image: ndimage.uniform_filter(image, 3, mode='reflect'), (x, x * x))
    return np.sqrt(np.maximum(square - mean * mean, 0))


def _tiles(shape, depth: int, width: int) -> np.ndarray:
    """Rows (i0, i1, j0, j1) that cover the first two axes, at least a few per thread."""
    depth = max(1, min(depth, shape[0] // (2 * get_num_threads())))
    return np.array(
        [
            (i, min(i + depth, shape[0]), j, min(j + width, shape[1]))
            for i in range(0, shape[0], depth)
            for j in range(0, shape[1], width)
        ]
    )


@njit(cache=True, fastmath=True)
def _fill_tile(padded, inverse_h2, out, search, tile):
    n_k = out.shape[2]
    pad = search + 1
    i0, i1, j0, j1 = tile
    depth, width = i1 - i0, j1 - j0
    # rows[a, b] = squared differences of row (i0 - 1 + a, j0 - 1 + b), summed over three voxels along k
    rows = np.empty((depth + 2, width + 2, n_k), np.float32)
    square = np.empty(n_k + 2, np.float32)
    value = np.zeros((depth, width, n_k), np.float32)
    weight = np.zeros((depth, width, n_k), np.float32)
    best = np.zeros((depth, width, n_k), np.float32)
    for di in range(-search, search + 1):
        for dj in range(-search, search + 1):
            for dk in range(-search, search + 1):
                if di == 0 and dj == 0 and dk == 0:
                    continue
                for a in range(depth + 2):
                    for b in range(width + 2):
                        here = padded[i0 + a - 1 + pad, j0 + b - 1 + pad]
                        there = padded[i0 + a - 1 + pad + di, j0 + b - 1 + pad + dj]
                        for k in range(n_k + 2):
                            difference = here[k + pad - 1] - there[k + pad - 1 + dk]
                            square[k] = difference * difference
                        row = rows[a, b]
                        for k in range(n_k):
                            row[k] = square[k] + square[k + 1] + square[k + 2]
                for a in range(depth):
                    for b in range(width):
                        r00, r01, r02 = rows[a, b], rows[a, b + 1], rows[a, b + 2]
                        r10, r11, r12 = rows[a + 1, b], rows[a + 1, b + 1], rows[a + 1, b + 2]
                        r20, r21, r22 = rows[a + 2, b], rows[a + 2, b + 1], rows[a + 2, b + 2]
                        scale = inverse_h2[i0 + a, j0 + b]
                        there = padded[i0 + a + pad + di, j0 + b + pad + dj]
                        v, w, m = value[a, b], weight[a, b], best[a, b]
                        for k in range(n_k):
                            d = r00[k] + r01[k] + r02[k] + r10[k] + r11[k]
                            d += r12[k] + r20[k] + r21[k] + r22[k]
                            e = np.float32(1.0) - d * scale[k] * np.float32(1.0 / (27.0 * 256.0))
                            e = max(e, np.float32(0.0))
                            e *= e
                            e *= e
                            e *= e
                            e *= e
                            e *= e
                            e *= e
                            e *= e
                            e *= e
                            v[k] += e * there[k + pad + dk]
                            w[k] += e
                            m[k] = max(m[k], e)
    for a in range(depth):
        for b in range(width):
            here = padded[i0 + a + pad, j0 + b + pad]
            for k in range(n_k):
                own = max(best[a, b, k], np.float32(1e-20))
                total = weight[a, b, k] + own
                out[i0 + a, j0 + b, k] = (value[a, b, k] + own * here[k + pad]) / total


@njit(parallel=True, cache=True)
def _nonlocal_means(padded, inverse_h2, out, search, tiles, n_threads):
    counter = np.zeros(1, np.int64)
    for _ in prange(n_threads):
        while True:
            tile = fetch_add(counter, 0)
            if tile >= len(tiles):
                break
            _fill_tile(padded, inverse_h2, out, search, tiles[tile])
