"""Coarse slices as a scanner makes them, by cropping k-space, and their zero-filled interpolation.

A slice of n pixels seen with its m central spatial frequencies has m pixels over the same box: factors n / m need not
be whole, nor equal along the two axes. Everything is separable, hence two small matrices per slice axis instead of
Fourier transforms; pieces of a slice cost a piece of the time.

Coarse pixel j of m lies at ``(j + 1/2) n / m - 1/2`` on the fine grid, so that both grids fill the same box and the
coarse image has the affine that an acquisition with the same field of view would have.
"""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice


def coarse_side(n: int, factor: float) -> int:
    """Pixels of a side of ``n`` seen ``factor`` times as coarse, to the nearest whole number."""
    return max(1, min(n, round(n / factor)))


def band_limited(positions: np.ndarray, n: int, m: int, samples: int | None = None) -> np.ndarray:
    """(P, n) real matrix: the value at ``positions`` (P,) pixels of n periodic samples with the m central frequencies.

    Of an even m the lone Nyquist frequency, halved, stands on both ends, so that real images stay real.
    ``samples``: of the first so many samples alone.
    """
    columns = np.arange(n if samples is None else samples)
    angle = np.pi / n * (np.asarray(positions, np.float64)[:, None] - columns)
    sine = np.sin(angle)
    at_sample = np.abs(sine) < 1e-9
    sine[at_sample] = 1.0
    out = np.sin(m * angle) / sine
    if m % 2 == 0:
        out *= np.cos(angle)
    out[at_sample] = m
    return out / n


def cropped(positions: np.ndarray, n: int, m: int) -> np.ndarray:
    """(P, n) complex matrix as `band_limited`, but of the block -m/2 .. m/2 - 1 that a scanner has for an even m."""
    k = np.arange(-(m // 2), m - m // 2)
    apart = np.asarray(positions, np.float64)[:, None] - np.arange(n)
    return np.exp(2j * np.pi / n * k * apart[..., None]).sum(-1) / n


def in_plane_axes(slice_axis: int) -> tuple[int, int]:
    """The two array axes of a slice."""
    first, second = (axis for axis in range(3) if axis != slice_axis)
    return first, second


def coarse_lattice(lattice: Lattice, slice_axis: int, factors) -> Lattice:
    """Grid of the slices seen with k-space cropped by ``factors`` (number or one per in-plane axis): the same box."""
    shape = np.array(lattice.shape)
    step = np.eye(4)
    for axis, factor in zip(in_plane_axes(slice_axis), np.broadcast_to(factors, 2)):
        shape[axis] = coarse_side(lattice.shape[axis], float(factor))
        ratio = lattice.shape[axis] / shape[axis]
        step[axis, axis], step[axis, 3] = ratio, (ratio - 1) / 2
    return Lattice(tuple(shape), lattice.affine @ step)


def crop_kspace(image: np.ndarray, lattice: Lattice, slice_axis: int, factors) -> tuple[np.ndarray, Lattice]:
    """Slices of ``image`` (X, Y, Z) acquired ``factors`` times as coarse in plane: magnitude image and its grid.

    Parameters
    ----------
    factors
        Number, or one per in-plane axis in array order; sides are rounded to whole pixels.

    Raises
    ------
    ValueError
        A factor below 1.
    """
    if np.min(factors) < 1:
        raise ValueError(f'k-space can only be cropped by factors of 1 and more, not {factors}')
    coarse = coarse_lattice(lattice, slice_axis, factors)
    out = np.asarray(image, np.float32)
    for axis in in_plane_axes(slice_axis):
        n, m = lattice.shape[axis], coarse.shape[axis]
        if m < n:
            positions = (np.arange(m) + 0.5) * n / m - 0.5
            out = _along(cropped(positions, n, m).astype(np.complex64), out, axis)
    return np.abs(out).astype(np.float32), coarse


def zero_filled(
    image: np.ndarray, lattice: Lattice, fine: Lattice, slice_axis: int, *, magnitude: bool = True
) -> np.ndarray:
    """A coarse image (i, j, k) at the voxels of ``fine``, its k-space padded with zeros.

    The grids share directions and slices; where the coarse voxels lie on the fine grid is read from the affines. Images
    are periodic, as k-space has them.

    Raises
    ------
    ValueError
        Grids that differ by more than in-plane steps and origin, or a ``fine`` grid that is the coarser one.
    """
    out = np.asarray(image, np.float32)
    matrix = lattice.world_to_voxel @ fine.affine
    offs = matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))
    if np.abs(offs @ np.array(fine.shape)).max() > 0.1 or np.diag(matrix[:3, :3]).min() <= 0:
        raise ValueError('the grids differ in the direction of their axes')
    if abs(matrix[slice_axis, 3]) > 0.05 or lattice.shape[slice_axis] != fine.shape[slice_axis]:
        raise ValueError('the grids differ in their slices')
    for axis in in_plane_axes(slice_axis):
        step, start = matrix[axis, axis], matrix[axis, 3]
        if step > 1 + 1e-3:
            raise ValueError('the fine grid is coarser than the image in plane')
        positions = start + step * np.arange(fine.shape[axis])
        m = lattice.shape[axis]
        if not (m == fine.shape[axis] and np.abs(positions - np.arange(m)).max() < 1e-3):
            out = _along(band_limited(positions, m, m).astype(np.float32), out, axis)
    return np.abs(out) if magnitude else out


def replace_measured(
    image: np.ndarray, coarse: np.ndarray, lattice: Lattice, fine: Lattice, slice_axis: int
) -> np.ndarray:
    """``image`` (X, Y, Z) on ``fine`` changed in the band of ``coarse`` on ``lattice`` so that it would be acquired as that.

    Hard data consistency with a magnitude image: where its own low-pass is negative (it rings around bright edges), the
    coarse image has lost the sign, which is taken from ``image``.
    """
    acquired = np.asarray(image, np.float32)
    matrix = fine.world_to_voxel @ lattice.affine
    for axis in in_plane_axes(slice_axis):
        n, m = fine.shape[axis], lattice.shape[axis]
        if m < n:
            positions = matrix[axis, 3] + matrix[axis, axis] * np.arange(m)
            acquired = _along(band_limited(positions, n, m).astype(np.float32), acquired, axis)
    missing = np.where(acquired < 0, -coarse, coarse) - acquired
    return image + zero_filled(missing, lattice, fine, slice_axis, magnitude=False)


def _along(matrix: np.ndarray, image: np.ndarray, axis: int) -> np.ndarray:
    """``matrix`` (P, n) applied to one axis of ``image``."""
    return np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis)
