"""Kernels of frozen geometry: fill the stored weights once, then multiply with them.

Stored weights are uint16 fractions of the largest weight of their Gaussian, box after box in the
schedule's order, each box packed as [slice][y][x] without gaps (a load at the end of a row therefore
reads into the next row, and those lanes are set to zero).
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from bids_gsrecon.gpu import _simd as v
from bids_gsrecon.gpu._forward import HALF_LOG2E, ROW_LANES
from bids_gsrecon.gpu._records import factors
from bids_gsrecon.gpu._simd import leaf

_FULL_SCALE = 65535.0
_BLOCK = 256
_AHEAD = 8


@njit(cache=True, parallel=True)
def slice_boxes(box, first_slice, last_slice, out):
    """Boxes on the slice lattice from boxes on the fine one; -> bounds of the slices per fine plane."""
    for i in prange(len(box)):
        for k in range(4):
            out[i, k] = box[i, k]
        low, high = np.int32(1 << 30), np.int32(-1)
        for f in range(box[i, 4], box[i, 5] + 1):
            low = min(low, first_slice[f])
            high = max(high, last_slice[f])
        out[i, 4] = low if high >= 0 else 0
        out[i, 5] = high


@leaf
def _fill_one(
    scratch, means, cov, log_weight, i, level, box, sbox, profile, first_slice, last_slice, inverse, layout
):
    """Averaged weights of Gaussian i into scratch [slice][y][x]; returns their largest."""
    szz, b, var_y, c, a, var_x = factors(cov, i)
    weight = np.float32(np.exp(np.float64(log_weight)))
    x0, n_x = sbox[i, 0], sbox[i, 1] - sbox[i, 0] + 1
    y0, n_y = sbox[i, 2], sbox[i, 3] - sbox[i, 2] + 1
    # Whole vectors: rows that overlap would make every load wait for the store before it.
    pitch = (n_x + ROW_LANES - 1) // ROW_LANES * ROW_LANES
    size = pitch * n_y * (sbox[i, 5] - sbox[i, 4] + 1)
    zero = v.full(np.float32(0), ROW_LANES)
    for p in range(0, size, ROW_LANES):
        v.store(scratch, p, zero)
    row, plane = layout
    h = np.float32(-HALF_LOG2E / var_x)
    h_y, h_z = -HALF_LOG2E / var_y, -HALF_LOG2E / szz
    ramp = v.iota(np.float32(0), ROW_LANES)
    for f in range(box[i, 4], box[i, 5] + 1):
        dz = f - np.float64(means[i, 2])
        for y in range(n_y):
            u = y0 + y - np.float64(means[i, 1]) - b * dz
            centre = np.float64(means[i, 0]) + c * dz + a * u
            h0 = np.float32(dz * dz * h_z + u * u * h_y)
            for x in range(0, n_x, ROW_LANES):
                at = v.add(ramp, np.float32(x0 + x - centre))
                w = v.maximum(v.sub(v.exp2(v.fma(v.mul(at, h), at, h0)), level), 0.0)
                w = v.keep_above(v.mul(w, weight), n_x - x - 0.5, ramp)
                if len(inverse) > 1:
                    w = v.mul(w, v.load(inverse, f * plane + (y0 + y) * row + x0 + x, ROW_LANES))
                for s in range(first_slice[f], last_slice[f] + 1):
                    p = ((s - sbox[i, 4]) * n_y + y) * pitch + x
                    part = profile[f, s - first_slice[f]]
                    v.store(scratch, p, v.fma(w, part, v.load(scratch, p, ROW_LANES)))
    lanes = zero
    for p in range(0, size, ROW_LANES):
        lanes = v.maximum(v.load(scratch, p, ROW_LANES), lanes)
    v.store(scratch, size, lanes)
    largest = np.float32(0)
    for p in range(size, size + ROW_LANES):
        largest = max(largest, scratch[p])
    return largest


@leaf
def _fill_range(
    first, last, means, cov, log_weights, level, box, sbox, profile, first_slice, last_slice, inverse, layout,
    order, starts, weights, scales, scratch,
):  # fmt: skip
    for j in range(first, last):
        i = order[j]
        ahead = np.int64(order[min(j + 2, last - 1)])  # the order of the inputs is random for us
        v.prefetch(means, 3 * ahead)
        v.prefetch(cov, 6 * ahead)
        v.prefetch(cov, 6 * ahead + 5)
        v.prefetch(box, 6 * ahead)
        v.prefetch(sbox, 6 * ahead)
        largest = _fill_one(
            scratch, means, cov, log_weights[i], i, level, box, sbox, profile, first_slice, last_slice,
            inverse, layout,
        )  # fmt: skip
        scales[j] = largest / np.float32(_FULL_SCALE)
        up = np.float32(_FULL_SCALE) / largest if largest > 0 else np.float32(0)
        n_x = sbox[i, 1] - sbox[i, 0] + 1
        pitch = (n_x + ROW_LANES - 1) // ROW_LANES * ROW_LANES
        source = 0
        for target in range(starts[j], starts[j + 1], n_x):
            for x in range(n_x):
                weights[target + x] = np.uint16(np.int32(scratch[source + x] * up + np.float32(0.5)))
            source += pitch


@njit(cache=True, parallel=True, error_model='numpy')
def fill(
    means, cov, log_weights, level, box, sbox, profile, first_slice, last_slice, inverse, layout,
    order, starts, largest_box, weights, scales, n_threads,
):  # fmt: skip
    """Fill ``weights`` (uint16) and ``scales`` (float32, one per sorted Gaussian)."""
    n = len(scales)
    n_blocks = (n + _BLOCK - 1) // _BLOCK
    counter = np.zeros(1, np.int64)
    for _ in prange(n_threads):
        scratch = np.empty(largest_box + 4 * ROW_LANES, np.float32)
        while True:
            block = v.fetch_add(counter, 0)
            if block >= n_blocks:
                break
            _fill_range(
                block * _BLOCK, min(n, (block + 1) * _BLOCK), means, cov, log_weights, level, box, sbox,
                profile, first_slice, last_slice, inverse, layout, order, starts, weights, scales, scratch,
            )  # fmt: skip


def _make_add(lanes):
    @leaf
    def add_rows(
        weights, start, step, left, n_y, y_low, y_high, s_low, s_high, amplitude, image, first, row, plane
    ):
        """image += amplitude * weights for a lane group of rows y_low..y_high of slices s_low..s_high."""
        lane = v.iota(np.float32(0), lanes)
        keep = v.full(np.float32(left - 0.5), lanes)
        for s in range(s_low, s_high + 1):
            source = start + (s * n_y + y_low) * step
            target = first + s * plane + y_low * row
            for _ in range(y_high - y_low + 1):
                w = v.keep_above(v.load_u16(weights, source, lanes), keep, lane)
                v.store(image, target, v.fma(w, amplitude, v.load(image, target, lanes)))
                source += step
                target += row

    return add_rows


def _make_dot(lanes):
    @leaf
    def dot_rows(weights, start, step, left, n_y, n_s, image, first, row, plane, squared):
        """Sum of weights (or of their squares) times image over a lane group."""
        lane = v.iota(np.float32(0), lanes)
        keep = v.full(np.float32(left - 0.5), lanes)
        part = v.full(np.float32(0), lanes)
        source = start
        for s in range(n_s):
            target = first + s * plane
            if squared:
                for _ in range(n_y):
                    w = v.keep_above(v.load_u16(weights, source, lanes), keep, lane)
                    part = v.fma(v.mul(w, w), v.load(image, target, lanes), part)
                    source += step
                    target += row
            else:
                for _ in range(n_y):
                    w = v.keep_above(v.load_u16(weights, source, lanes), keep, lane)
                    part = v.fma(w, v.load(image, target, lanes), part)
                    source += step
                    target += row
        return np.float64(v.total(part))

    return dot_rows


_add_8, _add_16 = _make_add(8), _make_add(16)
_dot_8, _dot_16 = _make_dot(8), _make_dot(16)


@leaf
def _add_task(weights, starts, small, scales, order, tasks, task, amplitudes, image, layout):
    """Add a range of Gaussians inside the task's part of the lattice."""
    row, plane = layout
    for j in range(tasks[task, 0], tasks[task, 1]):
        # The amplitudes' order is random for us.
        v.prefetch(amplitudes, np.int64(order[min(j + _AHEAD, len(order) - 1)]))
        amplitude = amplitudes[order[j]] * scales[j]
        x0, y0, s0 = np.int64(small[j, 0]), np.int64(small[j, 2]), np.int64(small[j, 4])
        n_x, n_y, n_s = small[j, 1] - x0 + 1, small[j, 3] - y0 + 1, small[j, 5] - s0 + 1
        y_low, y_high = max(tasks[task, 2] - y0, 0), min(tasks[task, 3] - y0, n_y - 1)
        s_low, s_high = max(tasks[task, 4] - s0, 0), min(tasks[task, 5] - s0, n_s - 1)
        place = s0 * plane + y0 * row + x0
        source = starts[j]
        x = 0
        while x < n_x:
            if n_x - x <= 8:
                _add_8(
                    weights, source + x, n_x, n_x - x, n_y, y_low, y_high, s_low, s_high, amplitude, image,
                    place + x, row, plane,
                )  # fmt: skip
                x += 8
            else:
                _add_16(
                    weights, source + x, n_x, n_x - x, n_y, y_low, y_high, s_low, s_high, amplitude, image,
                    place + x, row, plane,
                )  # fmt: skip
                x += 16


@njit(cache=True, parallel=True)
def multiply(weights, starts, small, scales, order, amplitudes, image, layout, tasks, rounds, n_threads):
    """image += A amplitudes; ``small``: boxes in the schedule's order, ``amplitudes`` in the original one."""
    counters = rounds.copy()
    for stage in range(len(rounds) - 1):
        for _ in prange(n_threads):
            while True:
                task = v.fetch_add(counters, stage)
                if task >= rounds[stage + 1]:
                    break
                _add_task(weights, starts, small, scales, order, tasks, task, amplitudes, image, layout)


@leaf
def _dot_range(weights, starts, small, scales, order, first, last, image, layout, squared, out):
    """Inner products of Gaussians first..last-1 with the image."""
    row, plane = layout
    for j in range(first, last):
        v.prefetch(out, np.int64(order[min(j + _AHEAD, len(order) - 1)]))
        x0, y0, s0 = np.int64(small[j, 0]), np.int64(small[j, 2]), np.int64(small[j, 4])
        n_x, n_y, n_s = small[j, 1] - x0 + 1, small[j, 3] - y0 + 1, small[j, 5] - s0 + 1
        place = s0 * plane + y0 * row + x0
        source = starts[j]
        result = 0.0
        x = 0
        while x < n_x:
            if n_x - x <= 8:
                result += _dot_8(
                    weights, source + x, n_x, n_x - x, n_y, n_s, image, place + x, row, plane, squared
                )
                x += 8
            else:
                result += _dot_16(
                    weights, source + x, n_x, n_x - x, n_y, n_s, image, place + x, row, plane, squared
                )
                x += 16
        scale = np.float64(scales[j])
        out[order[j]] = result * (scale * scale if squared else scale)


@njit(cache=True, parallel=True)
def multiply_transposed(weights, starts, small, scales, order, image, layout, squared, out, n_threads):
    """out[order] = A^T image, or the columns' sums of squares weighted with the image."""
    n = len(scales)
    n_blocks = (n + _BLOCK - 1) // _BLOCK
    counter = np.zeros(1, np.int64)
    for _ in prange(n_threads):
        while True:
            block = v.fetch_add(counter, 0)
            if block >= n_blocks:
                break
            _dot_range(
                weights, starts, small, scales, order, block * _BLOCK, min(n, (block + 1) * _BLOCK), image,
                layout, squared, out,
            )  # fmt: skip
