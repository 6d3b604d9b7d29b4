"""One number per Gaussian: values scattered to a volume, and a volume gathered to values, each other's transpose.

The walks of `bids_gsrecon.gpu._forward`, without the sum of the weights beside the weighted sum and without the
moments that derivatives need: half the arithmetic, and half the memory.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from bids_gsrecon.gpu import _simd as v
from bids_gsrecon.gpu._forward import (
    HALF_LOG2E,
    ROW_LANES,
    block_size,
    interval,
    start_values,
    unpack_box,
)
from bids_gsrecon.gpu._simd import leaf

_BLOCK = 64
_CHUNK = 1 << 13
N_COPIES = 4  # whatever the number of threads: sums then have the same bits
_PARTS = 16  # of a copy: what a thread takes at a time


def _make_add_block(lanes):
    @leaf
    def add_block(narrow, j, start, n_y, n_z, value, level, volume, first, layout):
        """Add one lane group of a block of n_y rows and n_z planes."""
        _, row, plane = layout
        e_z, u_y, u_z = start
        vyy, vyz, vzz = narrow[j, 12], narrow[j, 13], narrow[j, 14]
        k = v.full(value, lanes)
        cut = v.full(level, lanes)
        for z in range(n_z):
            p = first + z * plane
            e = e_z
            u = u_y
            for _ in range(n_y):
                w = v.maximum(v.sub(e, cut), 0.0)
                v.store(volume, p, v.fma(w, k, v.load(volume, p, lanes)))
                e = v.mul(e, u)
                u = v.mul(u, vyy)
                p += row
            e_z = v.mul(e_z, u_z)
            u_z = v.mul(u_z, vzz)
            u_y = v.mul(u_y, vyz)

    return add_block


def _make_take_block(lanes):
    @leaf
    def take_block(narrow, j, start, n_y, n_z, level, volume, first, layout):
        """Sum over one lane group of a block."""
        _, row, plane = layout
        e_z, u_y, u_z = start
        vyy, vyz, vzz = narrow[j, 12], narrow[j, 13], narrow[j, 14]
        cut = v.full(level, lanes)
        total = v.full(np.float32(0), lanes)
        for z in range(n_z):
            p = first + z * plane
            e = e_z
            u = u_y
            for _ in range(n_y):
                w = v.maximum(v.sub(e, cut), 0.0)
                total = v.fma(w, v.load(volume, p, lanes), total)
                e = v.mul(e, u)
                u = v.mul(u, vyy)
                p += row
            e_z = v.mul(e_z, u_z)
            u_z = v.mul(u_z, vzz)
            u_y = v.mul(u_y, vyz)
        return v.total(total)

    return take_block


_add_block_8, _add_block_16 = _make_add_block(8), _make_add_block(16)
_take_block_8, _take_block_16 = _make_take_block(8), _make_take_block(16)


@leaf
def _box_walk(narrow, bits, j, value, level, volume, layout, add):
    """Gaussian j on its box: add ``value``, or return the sum."""
    first, skip, size, offset, h = unpack_box(narrow, bits, j, layout)
    n_x, n_y, n_z = size
    step_y, step_z = block_size(n_y), block_size(n_z)
    total = np.float32(0)
    for z in range(0, n_z, step_z):
        for y in range(0, n_y, step_y):
            m_y, m_z = min(step_y, n_y - y), min(step_z, n_z - z)
            dy, dz = offset[1] + y, offset[2] + z
            p = first + z * layout[2] + y * layout[1]
            x = 0
            while x < n_x:
                if n_x - x <= 8:
                    start = start_values(h, offset[0] + x, dy, dz, skip - x, n_x - x, 8)
                    if add:
                        _add_block_8(narrow, j, start, m_y, m_z, value, level, volume, p + x, layout)
                    else:
                        total += _take_block_8(narrow, j, start, m_y, m_z, level, volume, p + x, layout)
                    x += 8
                else:
                    start = start_values(h, offset[0] + x, dy, dz, skip - x, n_x - x, 16)
                    if add:
                        _add_block_16(narrow, j, start, m_y, m_z, value, level, volume, p + x, layout)
                    else:
                        total += _take_block_16(narrow, j, start, m_y, m_z, level, volume, p + x, layout)
                    x += 16
    return total


@leaf
def _row_walk(wide, k, value, cutoff, level, volume, layout, n_x, y_low, y_high, z_low, z_high, add):
    """The wide Gaussian k on the rows y_low..y_high of planes z_low..z_high: add ``value``, or return the sum."""
    _, row, plane = layout
    b, var_y, inv_y = wide[k, 4], wide[k, 5], wide[k, 6]
    c, a, var_x, inv_x = wide[k, 7], wide[k, 8], wide[k, 9], wide[k, 10]
    r2 = cutoff * cutoff
    h = np.float32(-HALF_LOG2E * inv_x)
    total = v.full(np.float32(0), ROW_LANES)
    z_first, z_last = interval(wide[k, 2], cutoff * math.sqrt(wide[k, 12]), z_low, z_high)
    for z in range(z_first, z_last + 1):
        dz = z - wide[k, 2]
        q_z = dz * dz * wide[k, 3]
        y_first, y_last = interval(wide[k, 1] + b * dz, math.sqrt(max(r2 - q_z, 0.0) * var_y), y_low, y_high)
        for y in range(y_first, y_last + 1):
            u = y - wide[k, 1] - b * dz
            q_y = q_z + u * u * inv_y
            centre = wide[k, 0] + c * dz + a * u
            x_first, x_last = interval(centre, math.sqrt(max(r2 - q_y, 0.0) * var_x), 0, n_x - 1)
            h0 = np.float32(-HALF_LOG2E * q_y)
            p = z * plane + y * row
            for x in range(x_first, x_last + 1, ROW_LANES):
                at = v.add(v.iota(np.float32(0), ROW_LANES), np.float32(x - centre))
                e = v.exp2(v.fma(v.mul(at, h), at, h0))
                w = v.maximum(v.sub(e, level), 0.0)
                here = v.load(volume, p + x, ROW_LANES)
                if add:
                    v.store(volume, p + x, v.fma(w, value, here))
                else:
                    total = v.fma(w, here, total)
    return v.total(total)


@leaf
def _scatter_range(
    narrow, bits, wide, first, last, values, order, cutoff, level, volume, layout, n_x, y_low, y_high, z_low, z_high
):  # fmt: skip
    for j in range(first, last):
        value = values[order[j]]
        if bits[j, 0] >> 16 == 0:
            k = bits[j, 3]
            _row_walk(
                wide, k, np.float32(value * wide[k, 11]), cutoff, level, volume, layout,
                n_x, y_low, y_high, z_low, z_high, True,
            )  # fmt: skip
        else:
            _box_walk(narrow, bits, j, value * narrow[j, 15], level, volume, layout, True)


@njit(cache=True, parallel=True, error_model='numpy')
def scatter(narrow, bits, wide, values, order, cutoff, volume, layout, n_x, tasks, rounds, n_threads):
    """Add ``values`` (N,) float32, in the original order, times the weights."""
    level = np.float32(math.exp(-0.5 * cutoff * cutoff))
    counters = rounds.copy()
    for stage in range(len(rounds) - 1):
        if rounds[stage] == rounds[stage + 1]:
            continue
        for _ in prange(n_threads):
            while True:
                task = v.fetch_add(counters, stage)
                if task >= rounds[stage + 1]:
                    break
                _scatter_range(
                    narrow, bits, wide, tasks[task, 0], tasks[task, 1], values, order, cutoff, level, volume,
                    layout, n_x, tasks[task, 2], tasks[task, 3], tasks[task, 4], tasks[task, 5],
                )  # fmt: skip


@njit(cache=True, parallel=True, error_model='numpy')
def scatter_in_copies(narrow, bits, wide, values, order, cutoff, volume, layout, shape, copies, n_threads):
    """`scatter` by adding to copies (`N_COPIES`, len(volume)) of the volume, which are summed at the end.

    A lattice of few bricks keeps few threads busy; its copies cost next to nothing. Each is made in parts, one
    after the other by whoever is free: cores are not equally fast.
    """
    level = np.float32(math.exp(-0.5 * cutoff * cutoff))
    n = len(narrow)
    n_rows = (n + N_COPIES * _BLOCK - 1) // (N_COPIES * _BLOCK)
    begun, done = np.zeros(1, np.int64), np.zeros(N_COPIES, np.int64)
    for _ in prange(min(n_threads, N_COPIES)):
        while True:
            step = v.fetch_add(begun, 0)
            if step >= N_COPIES * _PARTS:
                break
            c, part = step % N_COPIES, step // N_COPIES
            # The part before was begun N_COPIES steps ago, and has rarely not ended.
            while v.read_counter(done, c) < part:
                pass
            own = copies[c]
            if part == 0:
                for p in range(len(own)):
                    own[p] = 0
            for row in range(part * n_rows // _PARTS, (part + 1) * n_rows // _PARTS):
                first = (row * N_COPIES + c) * _BLOCK
                _scatter_range(
                    narrow, bits, wide, first, min(n, first + _BLOCK), values, order, cutoff, level, own,
                    layout, shape[0], 0, shape[1] - 1, 0, shape[2] - 1,
                )  # fmt: skip
            v.fetch_add(done, c)
    n_chunks = (len(volume) + _CHUNK - 1) // _CHUNK
    for chunk in prange(n_chunks):
        for p in range(chunk * _CHUNK, min(len(volume), (chunk + 1) * _CHUNK)):
            total = copies[0, p]
            for c in range(1, N_COPIES):
                total += copies[c, p]
            volume[p] = total


def few_bricks(n_gaussians: int, volume_size: int) -> bool:
    """Whether `scatter_in_copies` pays: a Gaussian costs as much as summing some 20 voxels at least."""
    return N_COPIES * volume_size < 20 * n_gaussians


@leaf
def _gather_range(narrow, bits, wide, first, last, cutoff, level, volume, layout, shape, order, out):
    for j in range(first, last):
        if bits[j, 0] >> 16 == 0:
            k = bits[j, 3]
            total = _row_walk(
                wide, k, np.float32(0), cutoff, level, volume, layout,
                shape[0], 0, shape[1] - 1, 0, shape[2] - 1, False,
            )  # fmt: skip
            out[order[j]] = wide[k, 11] * total
        else:
            total = _box_walk(narrow, bits, j, np.float32(0), level, volume, layout, False)
            out[order[j]] = narrow[j, 15] * total


@njit(cache=True, parallel=True, error_model='numpy')
def gather(narrow, bits, wide, cutoff, volume, layout, shape, order, out, n_threads):
    """Fill ``out`` (N,) float32, in the original order, with the sums of the volume times the weights."""
    level = np.float32(math.exp(-0.5 * cutoff * cutoff))
    n = len(narrow)
    n_blocks = (n + _BLOCK - 1) // _BLOCK
    counter = np.zeros(1, np.int64)
    for _ in prange(n_threads):
        while True:
            block = v.fetch_add(counter, 0)
            if block >= n_blocks:
                break
            # Backwards: the giants come last in the order and should be begun first.
            _gather_range(
                narrow, bits, wide, max(0, n - (block + 1) * _BLOCK), n - block * _BLOCK, cutoff, level,
                volume, layout, shape, order, out,
            )  # fmt: skip
