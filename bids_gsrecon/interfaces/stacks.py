"""Reading stacks of slices: every bad file ends in one clear sentence, every guess in a remark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.stacks import SliceStack, as_stored, named_order, timed_order
from bids_gsrecon.interfaces.headers import (
    CLEARLY_COARSER,
    Header,
    check_stack,
    slice_axis,
    slice_thickness_mm,
)
from bids_gsrecon.interfaces.io import load_array

TRIVIAL = 1e-4  # share of pixels that is not worth a word
MOST_SPACINGS = 4.0  # thickness beyond which a number given by hand is a slip


@dataclass(frozen=True, eq=False)
class StackFile:
    """One stack as its file stores it.

    Attributes
    ----------
    path
        The file.
    number
        Its place among the stacks given, from 1: the name of its outputs.
    data
        (i, j, k) float32, finite, not negative.
    finite
        (i, j, k) bool: pixels whose value the file knows.
    lattice
        As stored.
    axis
        Stored axis across the slices.
    thickness_mm, order
        Of the slices (see `SliceStack`).
    thickness_source, order_source
        Where they come from.
    remarks
        What a user should know about how the file was understood.
    """

    path: Path
    number: int
    data: np.ndarray = field(repr=False)
    finite: np.ndarray = field(repr=False)
    lattice: Lattice
    axis: int
    thickness_mm: float
    thickness_source: str
    order: tuple[int, ...]
    order_source: str
    remarks: tuple[str, ...] = ()

    @property
    def n_slices(self) -> int:
        return self.data.shape[self.axis]

    @property
    def spacing_mm(self) -> float:
        """Distance of neighbouring slices."""
        return float(self.lattice.voxel_sizes_mm[self.axis])

    @property
    def is_void(self) -> bool:
        """Whether no slice shows anything."""
        return bool(self.data.min() == self.data.max())

    def stack(self, mask: np.ndarray) -> SliceStack:
        """The stack for the method; ``mask`` (i, j, k) bool as stored."""
        return SliceStack.along(
            self.data, self.lattice, mask & self.finite, self.axis, self.thickness_mm, order=self.order
        )

    def as_stored(self, data: np.ndarray) -> np.ndarray:
        """(i, j, slice) data of `stack`, in the order of the file."""
        return as_stored(data, self.axis)


def read_stack(
    path,
    number: int,
    *,
    metadata: dict | None = None,
    axis: int | None = None,
    thickness_mm: float | None = None,
    slice_order: str | None = None,
) -> StackFile:
    """Read one stack.

    Parameters
    ----------
    number
        Its place among the stacks given, from 1.
    metadata
        Its BIDS metadata: ``SliceThickness``, ``SpacingBetweenSlices``, ``SliceTiming``,
        ``SliceEncodingDirection`` count.
    axis
        Stored axis across the slices; default: the clearly coarsest, else the third.
    thickness_mm
        Of a slice; default: ``SliceThickness`` where credible, else the spacing.
    slice_order
        One of `SLICE_ORDERS`; default: by ``SliceTiming``, else interleaved.

    Raises
    ------
    InputError
        A file that cannot be read (see `load_array`), without a finite value, of a single slice along an
        axis; a thickness of more than four spacings.
    """
    path = Path(path)
    metadata = metadata or {}
    data, lattice = load_array(path)
    check_stack(path, data.shape)
    remarks: list[str] = []
    finite = np.isfinite(data)
    if not finite.any():
        raise InputError(f'{path} holds NaN or infinite values only: convert it again.')
    lost, negative = 1 - finite.mean(), float((data < 0).mean())
    if lost:
        data = np.where(finite, data, np.float32(0))
    if negative:
        data = np.maximum(data, np.float32(0))
    if lost > TRIVIAL:
        remarks.append(f'{lost:.2%} of its values are not finite: taken for 0 and left out of the mask')
    if negative > TRIVIAL:
        remarks.append(f'{negative:.2%} of its values are negative: taken for 0')
    if axis is None:
        axis, remark = _slice_axis(lattice, metadata)
        remarks += [remark] if remark else []
    spacing = float(lattice.voxel_sizes_mm[axis])
    thickness_mm, source, remark = _thickness(path, spacing, metadata, thickness_mm)
    remarks += [remark] if remark else []
    order, order_source, remark = _order(metadata, data.shape[axis], slice_order)
    remarks += [remark] if remark else []
    return StackFile(
        path, number, data, finite, lattice, axis, thickness_mm, source, order, order_source, tuple(remarks)
    )  # fmt: skip


def _slice_axis(lattice: Lattice, metadata: dict) -> tuple[int, str]:
    """The clearly coarsest axis; of nearly isotropic stacks the one the sidecar names, else the third."""
    sizes = lattice.voxel_sizes_mm
    if sizes.max() > CLEARLY_COARSER * np.median(sizes):
        return slice_axis(Header(lattice.shape, sizes, lattice.affine), metadata)
    named = 'ijk'.find(str(metadata.get('SliceEncodingDirection', '-'))[:1])
    return (named if named >= 0 else 2), ''


def _thickness(path, spacing_mm: float, metadata: dict, given: float | None) -> tuple[float, str, str]:
    """Thickness in mm, where it comes from, and a remark."""
    if given is not None:
        if given > MOST_SPACINGS * spacing_mm:
            raise InputError(
                f'{path} has slices every {spacing_mm:g} mm, which cannot be {given:g} mm thick: '
                'correct --thickness, or name the slice axis (--slice-axis).'
            )
        metadata = {name: value for name, value in metadata.items() if name != 'SliceThickness'}
        return float(given), 'given', slice_thickness_mm(spacing_mm, metadata)[1]
    thickness, remark = slice_thickness_mm(spacing_mm, metadata)
    is_stated = 'SliceThickness' in metadata and 'does not fit' not in remark
    return float(thickness), 'SliceThickness' if is_stated else 'slice spacing', remark


def _order(metadata: dict, n_slices: int, name: str | None) -> tuple[tuple[int, ...], str, str]:
    """Order of acquisition, where it comes from, and a remark."""
    if name is not None:
        return named_order(name, n_slices), name, ''
    default = named_order('interleaved', n_slices), 'interleaved (assumed)'
    times = metadata.get('SliceTiming')
    if times is None:
        return *default, ''
    from_last = str(metadata.get('SliceEncodingDirection', '')).endswith('-')
    if not isinstance(times, Sequence) or isinstance(times, str) or len(times) != n_slices:
        return *default, f'SliceTiming does not have one time for each of {n_slices} slices: not used'
    try:
        return timed_order(times, from_last=from_last), 'SliceTiming', ''
    except (ValueError, TypeError):
        return *default, 'SliceTiming tells no order: not used'
