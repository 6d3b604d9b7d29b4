"""Sorting boxes into bricks, so that threads can scatter without meeting each other.

A *box* is the (clipped, inclusive) range of voxels that one Gaussian touches: x0, x1, y0, y1, z0, z1. A
*brick* is a column of the lattice that is ``side`` voxels wide in y and z and as long as the lattice in x. A
box belongs to the brick that holds its middle. If no box is wider than ``side`` in y or z, boxes of two
bricks that are an even number of bricks apart never touch a common voxel: bricks are therefore worked on
in four rounds (colours), in parallel within a round, with neither locks nor atomics, and every voxel
receives its summands in the same order whatever the number of threads.

Boxes are divided into size classes with bricks of their own; the few that are too large for any class are
*giants*, which all threads visit and of which each takes only its own rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

BRICK_SIDES = (16, 32)
# A lattice that has few bricks of 16 gets bricks of 8 too: one brick of each colour keeps one thread busy.
SMALL_SIDE = 8
_FEW_BRICKS = 64
CELL_SIDE = 8
_SORT_CHUNKS = 8
_N_SLABS = 32


class Schedule(NamedTuple):
    """Who is worked on when.

    Attributes
    ----------
    order
        (N,) original index of every box, sorted: classes, bricks, cells; then giants; then empty boxes.
    tasks
        (n, 6): a range (first, last + 1) of ``order``, and the part of the lattice, y0, y1, z0, z1
        (inclusive), to which a large Gaussian is confined. One task per brick that holds anything, in the
        whole lattice; then all giants once for each of about 32 disjoint slabs.
    rounds
        Ranges of the tasks; those of one round do not touch each other's voxels.
    giants
        (first, last + 1) of the giants in ``order``.
    n_used
        Boxes that are not empty: a prefix of ``order``.
    """

    order: np.ndarray
    tasks: np.ndarray
    rounds: np.ndarray
    giants: tuple[int, int]
    n_used: int


@njit(cache=True, inline='always')
def _key(box, i, sides, cell_side, offsets, bricks_y, cells_x):
    if box[i, 1] < box[i, 0] or box[i, 3] < box[i, 2] or box[i, 5] < box[i, 4]:
        return offsets[-1] + 1
    extent = max(box[i, 3] - box[i, 2], box[i, 5] - box[i, 4]) + 1
    x, y, z = (box[i, 0] + box[i, 1]) // 2, (box[i, 2] + box[i, 3]) // 2, (box[i, 4] + box[i, 5]) // 2
    for k in range(len(sides)):
        side = sides[k]
        if extent <= side:
            per_side = side // cell_side
            brick = (z // side) * bricks_y[k] + y // side
            cell = ((z % side) // cell_side) * per_side + (y % side) // cell_side
            return offsets[k] + (brick * cells_x + x // cell_side) * per_side * per_side + cell
    return offsets[-1]


@njit(cache=True, parallel=True)
def _sort(box, sides, cell_side, offsets, bricks_y, cells_x):
    """Stable counting sort; returns the order and the first position of every key."""
    n = len(box)
    n_keys = offsets[-1] + 2
    keys = np.empty(n, np.int32)
    counts = np.zeros((_SORT_CHUNKS, n_keys), np.int32)
    step = (n + _SORT_CHUNKS - 1) // _SORT_CHUNKS
    for chunk in prange(_SORT_CHUNKS):
        for i in range(chunk * step, min(n, (chunk + 1) * step)):
            key = _key(box, i, sides, cell_side, offsets, bricks_y, cells_x)
            keys[i] = key
            counts[chunk, key] += 1
    firsts = np.empty(n_keys + 1, np.int64)
    position = 0
    for key in range(n_keys):
        firsts[key] = position
        for chunk in range(_SORT_CHUNKS):
            count = counts[chunk, key]
            counts[chunk, key] = position
            position += count
    firsts[n_keys] = position
    order = np.empty(n, np.int32)
    for chunk in prange(_SORT_CHUNKS):
        for i in range(chunk * step, min(n, (chunk + 1) * step)):
            key = keys[i]
            order[counts[chunk, key]] = i
            counts[chunk, key] += 1
    return order, firsts


@njit(cache=True)
def _brick_tasks(firsts, offsets, bricks_y, per_brick, ny, nz):
    """Tasks of the bricks that hold anything, and where each class and colour ends; in a round the long ones first."""
    n_most = 0
    for k in range(len(bricks_y)):
        n_most += (offsets[k + 1] - offsets[k]) // per_brick[k]
    tasks, ends = np.empty((n_most, 6), np.int64), np.empty(4 * len(bricks_y), np.int64)
    mine, sizes = np.empty(n_most, np.int64), np.empty(n_most, np.int64)
    n = 0
    for k in range(len(bricks_y)):
        for colour in range(4):
            m = 0
            for brick in range((offsets[k + 1] - offsets[k]) // per_brick[k]):
                first = offsets[k] + brick * per_brick[k]
                size = firsts[first + per_brick[k]] - firsts[first]
                z, y = brick // bricks_y[k], brick % bricks_y[k]
                if size > 0 and z % 2 * 2 + y % 2 == colour:
                    mine[m], sizes[m] = first, -size
                    m += 1
            for j in np.argsort(sizes[:m], kind='mergesort'):
                tasks[n] = firsts[mine[j]], firsts[mine[j] + per_brick[k]], 0, ny - 1, 0, nz - 1
                n += 1
            ends[4 * k + colour] = n
    return tasks[:n], ends


def _slabs(shape) -> np.ndarray:
    """Cut a lattice along z, and along y where z is short, into about 32 parts."""
    _, ny, nz = shape
    parts_z = min(nz, _N_SLABS)
    parts_y = min(ny, -(-_N_SLABS // parts_z))
    z = np.linspace(0, nz, parts_z + 1).astype(np.int64)
    y = np.linspace(0, ny, parts_y + 1).astype(np.int64)
    return np.array(
        [(y[j], y[j + 1] - 1, z[k], z[k + 1] - 1) for k in range(parts_z) for j in range(parts_y)], np.int64
    )


def brick_sides(shape: tuple[int, int, int]) -> np.ndarray:
    """Of the size classes of a lattice; the same whatever the number of threads."""
    side = BRICK_SIDES[0]
    few = -(-shape[1] // side) * -(-shape[2] // side) < _FEW_BRICKS
    return np.array((SMALL_SIDE, *BRICK_SIDES) if few else BRICK_SIDES, np.int64)


def make_schedule(box: np.ndarray, shape: tuple[int, int, int], cell_side: int = CELL_SIDE) -> Schedule:
    """Sort boxes (N, 6) int32 on a lattice of that shape; cells only order what a brick holds."""
    nx, ny, nz = shape
    cells_x = nx // cell_side + 1
    sides = brick_sides(shape)
    bricks_y, bricks_z = -(-ny // sides), -(-nz // sides)
    per_brick = cells_x * (sides // cell_side) ** 2
    offsets = np.concatenate([[0], np.cumsum(bricks_y * bricks_z * per_brick)])
    if len(box) >= 2**31 - 1:
        raise ValueError(f'{len(box)} Gaussians are too many for one lattice (2^31 - 2 at most)')
    order, firsts = _sort(box, sides, cell_side, offsets, bricks_y, cells_x)
    tasks, ends = _brick_tasks(firsts, offsets, bricks_y, per_brick, ny, nz)
    giants = firsts[offsets[-1] : offsets[-1] + 2]
    if giants[1] > giants[0]:
        slabs = _slabs(shape)
        tasks = np.concatenate([tasks, np.concatenate([np.tile(giants, (len(slabs), 1)), slabs], 1)])
    return Schedule(
        order=order,
        tasks=tasks,
        rounds=np.concatenate([[0], ends, [len(tasks)]]),
        giants=(int(giants[0]), int(giants[1])),
        n_used=int(giants[1]),
    )
