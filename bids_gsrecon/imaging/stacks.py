"""Stacks of thick slices, each of which may have moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.profile import FWHM_TO_SIGMA

# Names of orders of acquisition, first to last stored slice; in brackets the NIfTI slice code.
SLICE_ORDERS = {
    'interleaved': 'first, third, ..., then second, fourth, ... (alt+z)',
    'interleaved-second': 'second, fourth, ..., then first, third, ... (alt+z2)',
    'interleaved-reversed': 'as interleaved, from the last slice (alt-z)',
    'ascending': 'as stored (seq+)',
    'descending': 'from the last slice (seq-)',
}


@dataclass(frozen=True, eq=False)
class SliceStack:
    """One stack; its third stored axis runs across the slices.

    Attributes
    ----------
    data
        (i, j, slice) float32.
    lattice
        Where the scanner believes the pixels are; steps along the third axis are the slice spacing.
    mask
        (i, j, slice) bool: pixels of the anatomy.
    thickness_mm
        Of a slice; less than the spacing where there is a gap, more where slices overlap.
    order
        Slices in the order they were acquired; every second one first if absent.
    profile
        ``gaussian`` (FWHM = thickness) or ``box``; in plane a Gaussian of 1.2 pixels FWHM either way.
    """

    data: np.ndarray
    lattice: Lattice
    mask: np.ndarray
    thickness_mm: float
    order: tuple[int, ...] = ()
    profile: str = 'gaussian'

    def __post_init__(self):
        if self.data.shape != self.lattice.shape or self.mask.shape != self.lattice.shape:
            raise ValueError('data, mask and lattice of a stack differ in shape')
        if self.data.shape[2] < 2:
            raise ValueError('a stack has two slices at least')
        if not self.thickness_mm > 0:
            raise ValueError(f'slice thickness must be positive, not {self.thickness_mm}')
        if self.order and sorted(self.order) != list(range(self.data.shape[2])):
            raise ValueError('the acquisition order must name every slice once')
        if self.profile not in ('gaussian', 'box'):
            raise ValueError(f'unknown slice profile {self.profile!r}: gaussian or box')

    @classmethod
    def along(cls, data, lattice: Lattice, mask, axis: int, thickness_mm: float, **options) -> SliceStack:
        """A stack whose slices lie along any stored axis: that axis becomes the third, nothing moves in world."""
        order = _slices_last(axis)
        affine = lattice.affine.copy()
        affine[:, :3] = affine[:, order]
        moved = Lattice(tuple(lattice.shape[a] for a in order), affine)
        return cls(data.transpose(order), moved, mask.transpose(order), thickness_mm, **options)

    def acquisition_rank(self) -> np.ndarray:
        """(n_slices,) when each slice was acquired: 0 first."""
        n = self.data.shape[2]
        order = self.order or named_order('interleaved', n)
        rank = np.empty(n, int)
        rank[list(order)] = np.arange(n)
        return rank

    def psf_variance_mm2(self) -> np.ndarray:
        """(3,) variances of the point spread along the stored axes; a box's is that of a uniform slab."""
        sizes = self.lattice.voxel_sizes_mm
        in_plane = (1.2 * sizes[:2] * FWHM_TO_SIGMA) ** 2
        across = (
            (self.thickness_mm * FWHM_TO_SIGMA) ** 2
            if self.profile == 'gaussian'
            else self.thickness_mm**2 / 12.0
        )
        return np.array([*in_plane, across])


def as_stored(data: np.ndarray, axis: int) -> np.ndarray:
    """(i, j, slice) data of a stack made by `SliceStack.along` ``axis``, back in the order of its file."""
    return data.transpose(np.argsort(_slices_last(axis)))


def named_order(name: str, n_slices: int) -> tuple[int, ...]:
    """Stored slices in the order they were acquired, by one of ``SLICE_ORDERS``.

    Raises
    ------
    ValueError
        Unknown name.
    """
    if name not in SLICE_ORDERS:
        raise ValueError(f'unknown slice order {name!r}: {", ".join(SLICE_ORDERS)}')
    stored = tuple(range(n_slices))
    if name in ('descending', 'interleaved-reversed'):
        stored = stored[::-1]
    if not name.startswith('interleaved'):
        return stored
    parts = (stored[1::2], stored[::2]) if name == 'interleaved-second' else (stored[::2], stored[1::2])
    return parts[0] + parts[1]


def timed_order(times_s, *, from_last: bool = False) -> tuple[int, ...]:
    """Stored slices in the order of their times (n_slices,) in seconds; of equal times the lower one first.

    Parameters
    ----------
    from_last
        The first time is that of the last stored slice (BIDS: ``SliceEncodingDirection`` ends in a minus).

    Raises
    ------
    ValueError
        Times that are not finite, or all the same: they tell no order.
    """
    times = np.asarray(times_s, dtype=np.float64).ravel()
    if not np.isfinite(times).all() or np.ptp(times) == 0:
        raise ValueError('times must be finite, and not all the same')
    if from_last:
        times = times[::-1]
    return tuple(int(k) for k in np.argsort(times, kind='stable'))


def _slices_last(axis: int) -> list[int]:
    return [a for a in range(3) if a != axis] + [axis]
