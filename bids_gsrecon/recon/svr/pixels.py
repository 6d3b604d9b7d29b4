"""The pixels of all slices of all stacks, where the scanner believed they were."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numba import njit, prange
from scipy import ndimage

from bids_gsrecon.imaging.stacks import SliceStack

RING_MM = 4.0  # of zeros about the mask, that hold the anatomy's outline in place
_OF_PIXELS = ('points_mm', 'values', 'in_mask')
_OF_SLICES = ('stack_of', 'index', 'rank', 'axes', 'psf_variance_mm2', 'size_mm')


@dataclass(eq=False)
class Pixels:
    """Pixels of slices in nominal world coordinates, slice after slice.

    Attributes
    ----------
    points_mm
        (N, 3) where the scanner believes the pixels are, world RAS mm.
    values
        (N,) float32, bright tissue about 1; zero in the ring.
    in_mask
        (N,) bool: not of the ring of zeros.
    slice_of
        (N,) slice index, over all stacks; ascending.
    stack_of, index
        (M,) stack of each slice, and stored slice in it.
    rank
        (M,) position of each slice in its stack's acquisition order.
    axes
        (M, 3, 3) unit columns: two in plane, slice normal, world.
    psf_variance_mm2
        (M, 3) along these axes.
    size_mm
        (M, 3) in-plane pixel sizes and slice thickness.
    """

    points_mm: np.ndarray
    values: np.ndarray
    in_mask: np.ndarray
    slice_of: np.ndarray
    stack_of: np.ndarray
    index: np.ndarray
    rank: np.ndarray
    axes: np.ndarray
    psf_variance_mm2: np.ndarray
    size_mm: np.ndarray

    @property
    def n_slices(self) -> int:
        return len(self.stack_of)

    @property
    def n_stacks(self) -> int:
        return int(self.stack_of.max()) + 1

    @cached_property
    def starts(self) -> np.ndarray:
        """(M + 1,) first pixel of every slice."""
        return np.searchsorted(self.slice_of, np.arange(self.n_slices + 1))

    @property
    def n_masked(self) -> np.ndarray:
        """(M,) pixels of every slice inside its mask."""
        return np.bincount(self.slice_of[self.in_mask], minlength=self.n_slices)

    def selected(self, keep: np.ndarray | slice) -> Pixels:
        """Some of the pixels (a range, indices, or bool of all), all slices."""
        parts = {name: getattr(self, name) for name in (*_OF_PIXELS, 'slice_of')}
        if isinstance(keep, slice):
            return replace(self, **{name: part[keep] for name, part in parts.items()})
        keep = np.flatnonzero(keep) if keep.dtype == bool else keep
        return replace(self, **{name: part.take(keep, 0) for name, part in parts.items()})

    def repeated(self, slices: np.ndarray, times: int) -> Pixels:
        """Some slices (ascending) with their pixels, over and over: copy c of the i-th is ``c * len(slices) + i``."""
        keep = np.flatnonzero(np.isin(self.slice_of, slices))
        number = np.searchsorted(slices, self.slice_of[keep])
        copies = np.arange(times)[:, None] * len(slices)
        rows = {name: np.tile(slices, times) for name in _OF_SLICES} | {
            name: np.tile(keep, times) for name in _OF_PIXELS
        }
        parts = {name: getattr(self, name)[row] for name, row in rows.items()}
        return Pixels(**parts, slice_of=(number + copies).ravel())

    def residual(self, predicted: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """(N,) what a prediction (N,) times the gains of its slices (M,) does not explain."""
        return self.values - gains[self.slice_of] * predicted

    def of_stack(self, stack: int) -> np.ndarray:
        """(N,) bool."""
        return self.stack_of[self.slice_of] == stack

    def placed(self, motions: np.ndarray) -> np.ndarray:
        """(N, 3) points after the affine motion (M, 4, 4) of their slice."""
        out = np.empty_like(self.points_mm)
        _place(self.points_mm, self.slice_of, motions, out)
        return out

    def thinned(self, share: float) -> Pixels:
        """A deterministic share of the pixels."""
        if share >= 0.9:
            return self
        where = np.arange(0, len(self.values), round(1.0 / share, 6)).astype(int)
        return self.selected(where[where < len(self.values)])  # arange may reach its end by rounding


@njit(parallel=True, cache=True)
def _place(points, slice_of, motions, out):
    for i in prange(len(points)):
        m = motions[slice_of[i]]
        x, y, z = points[i]
        for k in range(3):
            out[i, k] = m[k, 0] * x + m[k, 1] * y + m[k, 2] * z + m[k, 3]


def collect_pixels(stacks: list[SliceStack], *, point_spread: bool = True) -> Pixels:
    """Masked pixels of every slice that has any, and a ring of zeros around them in plane.

    Every stack has signal in its mask.
    """
    parts: dict[str, list] = {name: [] for name in ('points', 'values', 'in_mask', 'slice_of')}
    slices: dict[str, list] = {name: [] for name in ('stack', 'index', 'rank', 'axes', 'psf', 'size')}
    for number, stack in enumerate(stacks):
        sizes = stack.lattice.voxel_sizes_mm
        scale = brightness(stack)
        width = np.ceil(RING_MM / sizes[:2]).astype(int)
        x, y = np.ogrid[-width[0] : width[0] + 1, -width[1] : width[1] + 1]
        disc = np.hypot(x * sizes[0], y * sizes[1]) <= RING_MM * (1 + 1e-6)  # whatever the rounding of sizes
        variance = stack.psf_variance_mm2()
        if not point_spread:
            variance[2] = variance[:2].mean()
        order = stack.acquisition_rank()
        for k in np.flatnonzero(stack.mask.any((0, 1))):
            mask = stack.mask[:, :, k]
            near = ndimage.binary_dilation(mask, disc)
            where = np.argwhere(near)
            inside = mask[near]
            parts['points'].append(stack.lattice.to_world(np.c_[where, np.full(len(where), k)]))
            parts['values'].append(np.where(inside, stack.data[:, :, k][near] / scale, 0).astype(np.float32))
            parts['in_mask'].append(inside)
            parts['slice_of'].append(np.full(len(where), len(slices['stack'])))
            slices['stack'].append(number)
            slices['index'].append(k)
            slices['rank'].append(order[k])
            slices['axes'].append(stack.lattice.affine[:3, :3] / sizes)
            slices['psf'].append(variance)
            slices['size'].append([*sizes[:2], stack.thickness_mm])
    joined = [np.concatenate(part) for part in parts.values()]
    return Pixels(*joined, *(np.array(part) for part in slices.values()))


def brightness(stack: SliceStack) -> float:
    """What counts as bright in a stack: the 99th percentile inside its mask."""
    return float(np.percentile(stack.data[stack.mask], 99)) if stack.mask.any() else 0.0
