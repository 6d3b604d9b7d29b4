"""Gather: every Gaussian collects its gradients from the volume; each has one owner, so nothing is shared.

With h = g_0 + sum_c a_c g_c (the gradient of the loss with respect to the weight w), E = exp(-q / 2) and the
cut level c, the sums below run over the voxels with E > c::

    d/d log_weight = k sum h (E - c)            d/d a_c = k sum g_c (E - c)
    d/d mu = k P sum h E d                      d/d Sigma = k/2 P (sum h E d d^T) P

``P`` is the precision, ``d`` the offset from the centre. Off-diagonal covariances stand for two entries of
the matrix and get twice the entry. The walks are those of `bids_gsrecon.gpu._forward`; moments are first
summed over y, then over z, and over the lanes at the end; those in y by running sums (three additions a row).
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
_AHEAD = 4
SUMS = 16  # floats at the beginning of the scratch memory for the totals of a block


@njit(cache=True, inline='always')
def load_doubles(a):
    """The first twelve elements as a tuple of float64."""
    return (
        np.float64(a[0]), np.float64(a[1]), np.float64(a[2]), np.float64(a[3]),
        np.float64(a[4]), np.float64(a[5]), np.float64(a[6]), np.float64(a[7]),
        np.float64(a[8]), np.float64(a[9]), np.float64(a[10]), np.float64(a[11]),
    )  # fmt: skip


def _make_gather_block(lanes):
    @leaf
    def gather_block(
        narrow, j, start, x, y, z, n_y, n_z, amplitudes, level, grad, first, layout, m, channel_sums, scratch
    ):
        """Moments of one lane group of a block; x, y, z: offsets of its first voxel from the centre."""
        pitch, row, plane = layout
        e_z, u_y, u_z = start
        vyy, vyz, vzz = narrow[j, 12], narrow[j, 13], narrow[j, 14]
        n_channels = amplitudes.shape[1]
        amplitude = v.full(amplitudes[j, 0] if n_channels > 0 else np.float32(0), lanes)
        cut = v.full(level, lanes)
        zero = v.full(np.float32(0), lanes)
        s0, s1 = zero, zero
        b00, b01, b02, b10, b11, b20 = zero, zero, zero, zero, zero, zero
        if n_channels > 1:
            for c in range(n_channels):
                v.store(scratch, SUMS + c * lanes, zero)
        z_offset = np.float32(z)
        for i_z in range(n_z):
            p = first + i_z * plane
            e = e_z
            u = u_y
            a0, a1, a2 = zero, zero, zero
            if n_channels == 1:
                for _ in range(n_y):
                    w = v.maximum(v.sub(e, cut), 0.0)
                    h = v.load(grad, p, lanes)
                    g = v.load(grad, p + pitch, lanes)
                    s0 = v.fma(h, w, s0)
                    s1 = v.fma(g, w, s1)
                    t = v.keep_above(v.mul(v.fma(g, amplitude, h), e), e, cut)
                    a0 = v.add(a0, t)
                    a1 = v.add(a1, a0)
                    a2 = v.add(a2, a1)
                    e = v.mul(e, u)
                    u = v.mul(u, vyy)
                    p += row
            else:
                for _ in range(n_y):
                    w = v.maximum(v.sub(e, cut), 0.0)
                    h = v.load(grad, p, lanes)
                    for c in range(n_channels):
                        g = v.load(grad, p + (1 + c) * pitch, lanes)
                        h = v.fma(g, amplitudes[j, c], h)
                        place = SUMS + c * lanes
                        v.store(scratch, place, v.fma(g, w, v.load(scratch, place, lanes)))
                    s0 = v.fma(h, w, s0)
                    t = v.keep_above(v.mul(h, e), e, cut)
                    a0 = v.add(a0, t)
                    a1 = v.add(a1, a0)
                    a2 = v.add(a2, a1)
                    e = v.mul(e, u)
                    u = v.mul(u, vyy)
                    p += row
            b00 = v.add(b00, a0)
            b01 = v.add(b01, a1)
            b02 = v.add(b02, a2)
            a0 = v.mul(a0, z_offset)
            b10 = v.add(b10, a0)
            b11 = v.fma(a1, z_offset, b11)
            b20 = v.fma(a0, z_offset, b20)
            z_offset += np.float32(1)
            e_z = v.mul(e_z, u_z)
            u_z = v.mul(u_z, vzz)
            u_y = v.mul(u_y, vyz)
        at = v.add(v.iota(np.float32(0), lanes), np.float32(x))
        b00x = v.mul(b00, at)
        sums = (
            s0, s1, b00, b00x, v.mul(b00x, at), b01, v.mul(b01, at), b02, b10, v.mul(b10, at), b11, b20,
        )  # fmt: skip
        v.store_totals(scratch, 0, sums)
        s_0, s_1, t_0, t_x, t_xx, t_1, t_1x, t_2, t_z, t_xz, t_1z, t_zz = load_doubles(scratch)
        # Row j of a block of n was added n - j times to the first running sum and (n - j)(n - j + 1) / 2
        # times to the second; with y_j = y + n - (n - j) these are the moments in y.
        end = np.float64(y) + n_y
        m[0] += s_0
        m[1] += t_x
        m[2] += end * t_0 - t_1
        m[3] += t_z
        m[4] += t_xx
        m[5] += end * t_x - t_1x
        m[6] += t_xz
        m[7] += end * (end * t_0 - 2.0 * t_1) + 2.0 * t_2 - t_1
        m[8] += end * t_z - t_1z
        m[9] += t_zz
        if n_channels == 1:
            channel_sums[0] += s_1
            m[0] += amplitudes[j, 0] * s_1
        else:
            for c in range(n_channels):
                channel_sums[c] += v.total(v.load(scratch, SUMS + c * lanes, lanes))

    return gather_block


_gather_block_8 = _make_gather_block(8)
_gather_block_16 = _make_gather_block(16)


@leaf
def box_gather(narrow, bits, j, amplitudes, level, grad, layout, m, channel_sums, scratch):
    """Moments of Gaussian j: ``m`` = sum of h (E - c), of h E d (3), of h E d d^T (6)."""
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
                dx = offset[0] + x
                if n_x - x <= 8:
                    _gather_block_8(
                        narrow, j, start_values(h, dx, dy, dz, skip - x, n_x - x, 8), dx, dy, dz, m_y, m_z,
                        amplitudes, level, grad, p + x, layout, m, channel_sums, scratch,
                    )  # fmt: skip
                    x += 8
                else:
                    _gather_block_16(
                        narrow, j, start_values(h, dx, dy, dz, skip - x, n_x - x, 16), dx, dy, dz, m_y, m_z,
                        amplitudes, level, grad, p + x, layout, m, channel_sums, scratch,
                    )  # fmt: skip
                    x += 16


@leaf
def row_gather(wide, k, j, amplitudes, cutoff, level, grad, layout, shape, m, channel_sums, scratch):
    """Moments of the wide Gaussian k in the coordinates in which its precision is diagonal.

    ``m`` as in `box_gather` with u = (x - centre of the row, dy - b dz, dz) in place of d.
    """
    pitch, row, plane = layout
    n_x, n_y, n_z = shape
    b, var_y, inv_y = wide[k, 4], wide[k, 5], wide[k, 6]
    c, a, var_x, inv_x = wide[k, 7], wide[k, 8], wide[k, 9], wide[k, 10]
    n_channels = amplitudes.shape[1]
    r2 = cutoff * cutoff
    curvature = np.float32(-HALF_LOG2E * inv_x)
    zero = v.full(np.float32(0), ROW_LANES)
    z_first, z_last = interval(wide[k, 2], cutoff * math.sqrt(wide[k, 12]), 0, n_z - 1)
    for z in range(z_first, z_last + 1):
        dz = z - wide[k, 2]
        q_z = dz * dz * wide[k, 3]
        y_first, y_last = interval(wide[k, 1] + b * dz, math.sqrt(max(r2 - q_z, 0.0) * var_y), 0, n_y - 1)
        for y in range(y_first, y_last + 1):
            u = y - wide[k, 1] - b * dz
            q_y = q_z + u * u * inv_y
            centre = wide[k, 0] + c * dz + a * u
            x_first, x_last = interval(centre, math.sqrt(max(r2 - q_y, 0.0) * var_x), 0, n_x - 1)
            if x_last < x_first:
                continue
            h0 = np.float32(-HALF_LOG2E * q_y)
            s0, t0, t1, t2 = zero, zero, zero, zero
            for channel in range(n_channels):
                v.store(scratch, channel * ROW_LANES, zero)
            for x in range(x_first, x_last + 1, ROW_LANES):
                at = v.add(v.iota(np.float32(0), ROW_LANES), np.float32(x - centre))
                e = v.exp2(v.fma(v.mul(at, curvature), at, h0))
                w = v.maximum(v.sub(e, level), 0.0)
                p = z * plane + y * row + x
                h = v.load(grad, p, ROW_LANES)
                for channel in range(n_channels):
                    g = v.load(grad, p + (1 + channel) * pitch, ROW_LANES)
                    h = v.fma(g, amplitudes[j, channel], h)
                    q = channel * ROW_LANES
                    v.store(scratch, q, v.fma(g, w, v.load(scratch, q, ROW_LANES)))
                s0 = v.fma(h, w, s0)
                t = v.keep_above(v.mul(h, e), e, level)
                t0 = v.add(t0, t)
                t = v.mul(t, at)
                t1 = v.add(t1, t)
                t2 = v.fma(t, at, t2)
            for channel in range(n_channels):
                channel_sums[channel] += v.total(v.load(scratch, channel * ROW_LANES, ROW_LANES))
            r0, r1 = np.float64(v.total(t0)), np.float64(v.total(t1))
            m[0] += v.total(s0)
            m[1] += r1
            m[2] += r0 * u
            m[3] += r0 * dz
            m[4] += v.total(t2)
            m[5] += r1 * u
            m[6] += r1 * dz
            m[7] += r0 * u * u
            m[8] += r0 * u * dz
            m[9] += r0 * dz * dz


@njit(cache=True, inline='always')
def _sandwich(p, s, m, k, g_cov, i):
    """g_cov[i] = k / 2 P M P (off-diagonals twice); P (xx..zz) scaled by s."""
    t00 = p[0] * m[4] + p[1] * m[5] + p[2] * m[6]
    t01 = p[0] * m[5] + p[1] * m[7] + p[2] * m[8]
    t02 = p[0] * m[6] + p[1] * m[8] + p[2] * m[9]
    t10 = p[1] * m[4] + p[3] * m[5] + p[4] * m[6]
    t11 = p[1] * m[5] + p[3] * m[7] + p[4] * m[8]
    t12 = p[1] * m[6] + p[3] * m[8] + p[4] * m[9]
    t20 = p[2] * m[4] + p[4] * m[5] + p[5] * m[6]
    t21 = p[2] * m[5] + p[4] * m[7] + p[5] * m[8]
    t22 = p[2] * m[6] + p[4] * m[8] + p[5] * m[9]
    half = 0.5 * k * s * s
    g_cov[i, 0] = half * (t00 * p[0] + t01 * p[1] + t02 * p[2])
    g_cov[i, 1] = 2.0 * half * (t00 * p[1] + t01 * p[3] + t02 * p[4])
    g_cov[i, 2] = 2.0 * half * (t00 * p[2] + t01 * p[4] + t02 * p[5])
    g_cov[i, 3] = half * (t10 * p[1] + t11 * p[3] + t12 * p[4])
    g_cov[i, 4] = 2.0 * half * (t10 * p[2] + t11 * p[4] + t12 * p[5])
    g_cov[i, 5] = half * (t20 * p[2] + t21 * p[4] + t22 * p[5])


@njit(cache=True, inline='always')
def _finish_narrow(narrow, j, m, g_means, g_cov, i):
    k = np.float64(narrow[j, 15])
    s = -1.0 / HALF_LOG2E
    p = (
        np.float64(narrow[j, 6]), np.float64(narrow[j, 7]), np.float64(narrow[j, 8]),
        np.float64(narrow[j, 9]), np.float64(narrow[j, 10]), np.float64(narrow[j, 11]),
    )  # fmt: skip
    g_means[i, 0] = k * s * (p[0] * m[1] + p[1] * m[2] + p[2] * m[3])
    g_means[i, 1] = k * s * (p[1] * m[1] + p[3] * m[2] + p[4] * m[3])
    g_means[i, 2] = k * s * (p[2] * m[1] + p[4] * m[2] + p[5] * m[3])
    _sandwich(p, s, m, k, g_cov, i)
    return k


@njit(cache=True, inline='always')
def _finish_wide(wide, k, m, g_means, g_cov, i):
    """P = L D L^T with columns (1, -a, -g), (0, 1, -b), (0, 0, 1) of L; moments in u = L^T d."""
    weight = wide[k, 11]
    b, a = wide[k, 4], wide[k, 8]
    g = wide[k, 7] - a * b
    d0, d1, d2 = wide[k, 10], wide[k, 6], wide[k, 3]
    v0, v1, v2 = d0 * m[1], d1 * m[2], d2 * m[3]
    g_means[i, 0] = weight * v0
    g_means[i, 1] = weight * (v1 - a * v0)
    g_means[i, 2] = weight * (v2 - b * v1 - g * v0)
    n00, n01, n02 = d0 * d0 * m[4], d0 * d1 * m[5], d0 * d2 * m[6]
    n11, n12, n22 = d1 * d1 * m[7], d1 * d2 * m[8], d2 * d2 * m[9]
    # Rows 1 and 2 of L times N; row 0 of L is (1, 0, 0).
    r10, r11 = n01 - a * n00, n11 - a * n01
    r20, r21, r22 = n02 - b * n01 - g * n00, n12 - b * n11 - g * n01, n22 - b * n12 - g * n02
    half = 0.5 * weight
    g_cov[i, 0] = half * n00
    g_cov[i, 1] = 2.0 * half * r10
    g_cov[i, 2] = 2.0 * half * r20
    g_cov[i, 3] = half * (r11 - a * r10)
    g_cov[i, 4] = 2.0 * half * (r21 - a * r20)
    g_cov[i, 5] = half * (r22 - b * r21 - g * r20)
    return weight


@leaf
def _gather_range(
    narrow, bits, wide, first, last, amplitudes, cutoff, level, grad, layout, shape, order,
    g_means, g_cov, g_log_weights, g_amplitudes, m, channel_sums, scratch,
):  # fmt: skip
    """Gradients of Gaussians first..last-1; ``m``, ``channel_sums``, ``scratch``: a thread's own memory."""
    n, n_channels = amplitudes.shape
    for j in range(first, last):
        i = order[j]
        ahead = np.int64(order[min(j + _AHEAD, n - 1)])  # random places of the outputs
        v.prefetch(g_means, 3 * ahead)
        v.prefetch(g_cov, 6 * ahead)
        v.prefetch(g_cov, 6 * ahead + 5)
        v.prefetch(g_log_weights, ahead)
        v.prefetch(g_amplitudes, n_channels * ahead)
        for c in range(10):
            m[c] = 0.0
        for c in range(n_channels):
            channel_sums[c] = 0.0
        if bits[j, 0] >> 16 == 0:
            row_gather(
                wide, bits[j, 3], j, amplitudes, cutoff, level, grad, layout, shape, m, channel_sums, scratch
            )
            k = _finish_wide(wide, bits[j, 3], m, g_means, g_cov, i)
        else:
            box_gather(narrow, bits, j, amplitudes, level, grad, layout, m, channel_sums, scratch)
            k = _finish_narrow(narrow, j, m, g_means, g_cov, i)
        g_log_weights[i] = k * m[0]
        for c in range(n_channels):
            g_amplitudes[i, c] = k * channel_sums[c]


@njit(cache=True, parallel=True, error_model='numpy')
def gather(
    narrow, bits, wide, amplitudes, cutoff, grad, layout, shape, order,
    g_means, g_cov, g_log_weights, g_amplitudes, n_threads,
):  # fmt: skip
    """Gradients of all Gaussians in the original order; ``amplitudes`` in the order of the records."""
    level = np.float32(math.exp(-0.5 * cutoff * cutoff))
    n, n_channels = amplitudes.shape
    n_blocks = (n + _BLOCK - 1) // _BLOCK
    counter = np.zeros(1, np.int64)
    for _ in prange(n_threads):
        m = np.zeros(16)
        channel_sums = np.zeros(n_channels + 16)
        scratch = np.zeros(SUMS + n_channels * ROW_LANES, np.float32)
        while True:
            block = v.fetch_add(counter, 0)
            if block >= n_blocks:
                break
            # Backwards: the giants come last in the order and should be begun first.
            _gather_range(
                narrow, bits, wide, max(0, n - (block + 1) * _BLOCK), n - block * _BLOCK, amplitudes, cutoff,
                level, grad, layout, shape, order, g_means, g_cov, g_log_weights, g_amplitudes, m,
                channel_sums, scratch,
            )  # fmt: skip
