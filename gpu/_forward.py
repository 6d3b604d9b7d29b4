"""Scatter: every Gaussian adds its weights, and weights times amplitudes, to the volume.

The volume is a flat float32 array in the order [z][y][S0, S1, ...][x, padded]: what one voxel row needs lies
together. *Box walk*: exp(-q / 2) over the whole box of a Gaussian by recurrences along y and z, eight or
sixteen lanes along x: three vector exponentials per lane group, then two products per row. *Row walk*: for
Gaussians that are long, oblique or large, the exact interval of every row and one exponential per lane group.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from bids_gsrecon.gpu import _simd as v
from bids_gsrecon.gpu._simd import leaf

HALF_LOG2E = 0.5 / math.log(2.0)
ROW_LANES = 16


@njit(cache=True, inline='always')
def unpack_box(narrow, bits, j, layout):
    """Where the box begins in the volume, lanes to skip, its size, its offset from the centre, and H."""
    x0, y0, z0 = bits[j, 0] & 0xFFFF, bits[j, 1] & 0xFFFF, bits[j, 2] & 0xFFFF
    n_x, n_y, n_z = bits[j, 0] >> 16, bits[j, 1] >> 16, bits[j, 2] >> 16
    # Start on a multiple of eight voxels where that costs no further lanes: memory accesses that meet two
    # cache lines cost twice.
    skip = x0 & 7
    if (n_x + skip + 7) // 8 > (n_x + 7) // 8:
        skip = 0
    first = z0 * layout[2] + y0 * layout[1] + x0 - skip
    offset = np.float64(narrow[j, 3]) - skip, np.float64(narrow[j, 4]), np.float64(narrow[j, 5])
    h = (
        np.float64(narrow[j, 6]), np.float64(narrow[j, 7]), np.float64(narrow[j, 8]),
        np.float64(narrow[j, 9]), np.float64(narrow[j, 10]), np.float64(narrow[j, 11]),
    )  # fmt: skip
    return first, skip, (n_x + skip, n_y, n_z), offset, h


@njit(cache=True, inline='always')
def block_size(n):
    """Rows that one recurrence runs over: rounding errors grow with the square, so about 16 at most."""
    n_blocks = (n + 15) // 16
    return (n + n_blocks - 1) // n_blocks


@njit(cache=True, inline='always')
def start_values(h, x, y, z, skip, n_x, lanes):
    """exp(-q / 2) at offsets (x + lanes, y, z) and its first ratios along y and z; zero outside the box.

    Exponents are polynomials of the x offset; lanes outside the box could leave float32's range.
    """
    hxx, hxy, hxz, hyy, hyz, hzz = h
    at = v.add(v.iota(np.float64(0), lanes), x)
    lane = v.iota(np.float32(0), lanes)
    inside = v.keep_above(v.keep_above(1.0, n_x - 0.5, lane), lane, skip - 0.5)
    e = v.fma(v.fma(hxx, at, 2.0 * (hxy * y + hxz * z)), at, y * (hyy * y + 2.0 * hyz * z) + hzz * z * z)
    u_y = v.fma(2.0 * hxy, at, (2.0 * y + 1.0) * hyy + 2.0 * hyz * z)
    u_z = v.fma(2.0 * hxz, at, (2.0 * z + 1.0) * hzz + 2.0 * hyz * y)
    return (
        v.keep_above(v.exp2(e), inside, 0.5),
        v.keep_above(v.exp2(u_y), inside, 0.5),
        v.keep_above(v.exp2(u_z), inside, 0.5),
    )


def _make_add_block(lanes):
    @leaf
    def add_block(narrow, j, start, n_y, n_z, amplitudes, level, volume, first, layout):
        """Add one lane group of a block of n_y rows and n_z planes."""
        pitch, row, plane = layout
        e_z, u_y, u_z = start
        vyy, vyz, vzz, k = narrow[j, 12], narrow[j, 13], narrow[j, 14], narrow[j, 15]
        n_channels = amplitudes.shape[1]
        k0 = v.full(k, lanes)
        k1 = v.full(k * amplitudes[j, 0] if n_channels > 0 else k, lanes)
        cut = v.full(level, lanes)
        for z in range(n_z):
            p = first + z * plane
            e = e_z
            u = u_y
            if n_channels == 1:
                for _ in range(n_y):
                    w = v.maximum(v.sub(e, cut), 0.0)
                    v.store(volume, p, v.fma(w, k0, v.load(volume, p, lanes)))
                    v.store(volume, p + pitch, v.fma(w, k1, v.load(volume, p + pitch, lanes)))
                    e = v.mul(e, u)
                    u = v.mul(u, vyy)
                    p += row
            else:
                for _ in range(n_y):
                    w = v.mul(v.maximum(v.sub(e, cut), 0.0), k0)
                    v.store(volume, p, v.add(w, v.load(volume, p, lanes)))
                    for c in range(n_channels):
                        q = p + (1 + c) * pitch
                        v.store(volume, q, v.fma(w, amplitudes[j, c], v.load(volume, q, lanes)))
                    e = v.mul(e, u)
                    u = v.mul(u, vyy)
                    p += row
            e_z = v.mul(e_z, u_z)
            u_z = v.mul(u_z, vzz)
            u_y = v.mul(u_y, vyz)

    return add_block


_add_block_8 = _make_add_block(8)
_add_block_16 = _make_add_block(16)


@leaf
def box_walk(narrow, bits, j, amplitudes, level, volume, layout):
    """Add Gaussian j; ``layout``: floats per channel row, voxel row (all channels), plane."""
    first, skip, size, offset, h = unpack_box(narrow, bits, j, layout)
    n_x, n_y, n_z = size
    step_y, step_z = block_size(n_y), block_size(n_z)
    for z in range(0, n_z, step_z):
        for y in range(0, n_y, step_y):
            m_y, m_z = min(step_y, n_y - y), min(step_z, n_z - z)
            dy, dz = offset[1] + y, offset[2] + z
            p = first + z * layout[2] + y * layout[1]
            x = 0
            while x < n_x:
                if n_x - x <= 8:
                    start = start_values(h, offset[0] + x, dy, dz, skip - x, n_x - x, 8)
                    _add_block_8(narrow, j, start, m_y, m_z, amplitudes, level, volume, p + x, layout)
                    x += 8
                else:
                    start = start_values(h, offset[0] + x, dy, dz, skip - x, n_x - x, 16)
                    _add_block_16(narrow, j, start, m_y, m_z, amplitudes, level, volume, p + x, layout)
                    x += 16


@njit(cache=True, inline='always', error_model='numpy')
def interval(centre, half, low, high):
    """First and last integer of [centre - half, centre + half] within [low, high] (empty: last < first)."""
    first = max(math.ceil(centre - half), float(low))
    last = min(math.floor(centre + half), float(high))
    if last < first:
        return 0, -1
    return int(first), int(last)


@leaf
def row_walk(wide, k, j, amplitudes, cutoff, level, volume, layout, n_x, y_low, y_high, z_low, z_high):
    """Add the wide Gaussian k (amplitudes in row j) to the rows y_low..y_high of planes z_low..z_high."""
    pitch, row, plane = layout
    b, var_y, inv_y = wide[k, 4], wide[k, 5], wide[k, 6]
    c, a, var_x, inv_x = wide[k, 7], wide[k, 8], wide[k, 9], wide[k, 10]
    weight = np.float32(wide[k, 11])
    n_channels = amplitudes.shape[1]
    r2 = cutoff * cutoff
    h = np.float32(-HALF_LOG2E * inv_x)
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
                w = v.mul(v.maximum(v.sub(e, level), 0.0), weight)
                v.store(volume, p + x, v.add(w, v.load(volume, p + x, ROW_LANES)))
                for channel in range(n_channels):
                    q = p + x + (1 + channel) * pitch
                    v.store(volume, q, v.fma(w, amplitudes[j, channel], v.load(volume, q, ROW_LANES)))


@leaf
def _add_task(narrow, bits, wide, tasks, task, amplitudes, cutoff, level, volume, layout, n_x):
    """Add a range of Gaussians; those of the row walk only inside the task's part of the lattice."""
    for j in range(tasks[task, 0], tasks[task, 1]):
        if bits[j, 0] >> 16 == 0:
            row_walk(
                wide, bits[j, 3], j, amplitudes, cutoff, level, volume, layout,
                n_x, tasks[task, 2], tasks[task, 3], tasks[task, 4], tasks[task, 5],
            )  # fmt: skip
        else:
            box_walk(narrow, bits, j, amplitudes, level, volume, layout)


@njit(cache=True, parallel=True, error_model='numpy')
def scatter(narrow, bits, wide, amplitudes, cutoff, volume, layout, n_x, tasks, rounds, n_threads):
    """Add all Gaussians; ``amplitudes`` (n, C) float32 in the order of the records."""
    level = np.float32(math.exp(-0.5 * cutoff * cutoff))
    counters = rounds.copy()
    for stage in range(len(rounds) - 1):
        for _ in prange(n_threads):
            while True:
                task = v.fetch_add(counters, stage)
                if task >= rounds[stage + 1]:
                    break
                _add_task(narrow, bits, wide, tasks, task, amplitudes, cutoff, level, volume, layout, n_x)
