"""What can be said about stacks before they are reconstructed together; no nipype here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.foreground import bounding_box
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.stack_contrast import stack_correlations, unlike_stacks
from bids_gsrecon.interfaces.stack_masks import masks_of_stacks
from bids_gsrecon.interfaces.stacks import StackFile

PARALLEL_DEG = 15.0
OVERLAP_STEP_MM = 8.0  # between points at which fields of view are compared
# Measured peaks: 0.59 GB for 0.16 M pixels and 0.7 M voxels, 1.69 GB for 1.2 M and 5.4 M; a tenth is added.
PIXEL_BYTES, VOXEL_BYTES, PROGRAM_GB = 500, 160, 0.5


class Placed(Protocol):
    """What its header tells about a stack: file, stored axis across the slices, grid."""

    path: Path
    axis: int
    lattice: Lattice


@dataclass(frozen=True, eq=False)
class CheckedStacks:
    """Stacks that can be reconstructed together, and how their masks were found.

    Attributes
    ----------
    files
        The stacks that show something.
    masks
        (i, j, k) bool each, as stored.
    mask_sources
        How each mask was obtained.
    left_out
        Stacks that show nothing.
    warnings
        Sentences for the user, files named.
    """

    files: list[StackFile]
    masks: list[np.ndarray]
    mask_sources: list[str]
    left_out: list[StackFile]
    warnings: list[str]


def checked_stacks(files: Sequence[StackFile], mask_names: Sequence[str | Path | None]) -> CheckedStacks:
    """Leave void stacks out, find the masks, look for everything that speaks against the rest.

    Parameters
    ----------
    files
        The stacks given, numbered from 1.
    mask_names
        The mask file of every stack given, or nothing where it lacks one.

    Raises
    ------
    InputError
        Fewer than two stacks, no overlap, a bad mask, another contrast.
    """
    warnings = [f'{file.path}: {remark}.' for file in files for remark in file.remarks]
    kept, left_out, remarks = without_void_stacks(files)
    check_overlap(kept)
    masks, sources, notes = masks_of_stacks(kept, [mask_names[file.number - 1] for file in kept])
    check_overlap(kept, masks)
    parallel = parallel_warning(kept)
    warnings += [*remarks, *notes, *([parallel] if parallel else []), *contrast_warnings(kept, masks)]
    return CheckedStacks(kept, masks, sources, left_out, warnings)


def without_void_stacks(files: Sequence[StackFile]) -> tuple[list[StackFile], list[StackFile], list[str]]:
    """The stacks that show something, those that do not, and a sentence about each of the latter.

    Raises
    ------
    InputError
        Fewer than two remain.
    """
    void = [file for file in files if file.is_void]
    kept = [file for file in files if not file.is_void]
    warnings = [
        f'{file.path} shows nothing (all its values are {file.data.flat[0]:g}): left out.' for file in void
    ]
    if len(files) < 2:
        raise InputError(
            f'{files[0].path} is the only stack and two are needed, in different directions: '
            'add another, or use gsrecon superres for a single one.'
        )
    if len(kept) < 2:
        names = ', '.join(str(file.path) for file in void)
        raise InputError(
            f'{names}: nothing to see (all values are equal), and fewer than two stacks remain: add others.'
        )
    return kept, void, warnings


def check_overlap(files: Sequence[Placed], masks: Sequence[np.ndarray] | None = None) -> None:
    """Raise `InputError` where one stack (the anatomy in it) lies outside the field of view of another."""
    for number, first in enumerate(files):
        step = np.maximum(OVERLAP_STEP_MM // first.lattice.voxel_sizes_mm, 1).astype(int)
        if masks is None:
            index = np.stack(
                np.meshgrid(*[np.arange(0, n, k) for n, k in zip(first.lattice.shape, step)]), -1
            )
        else:
            index = np.argwhere(masks[number])
            index = index[:: max(1, len(index) // 5000)]
        points = first.lattice.to_world(index.reshape(-1, 3))
        for second in files:
            if second is first:
                continue
            index = second.lattice.to_index(points)
            inside = ((index > -0.5) & (index < np.array(second.lattice.shape) - 0.5)).all(1)
            if not inside.any():
                raise InputError(
                    f'{first.path} and {second.path} do not overlap: by their headers they show different '
                    'places; repair the headers, or leave one out.'
                )


def are_parallel(files: Sequence[Placed]) -> bool:
    """Whether all stacks are cut in one direction."""
    normals = []
    for file in files:
        column = file.lattice.affine[:3, file.axis]
        normals.append(column / np.linalg.norm(column))
    cosines = np.abs(np.array(normals) @ np.array(normals).T)
    return bool(cosines.min() >= np.cos(np.radians(PARALLEL_DEG)))


def parallel_warning(files: Sequence[Placed]) -> str:
    """A sentence where all stacks are cut in one direction, else nothing."""
    if not are_parallel(files):
        return ''
    names = ', '.join(str(file.path) for file in files)
    return (
        f'{names} are cut in the same direction (within {PARALLEL_DEG:g} degrees): detail across the slices '
        'cannot be recovered; add a stack in another direction.'
    )


def contrast_warnings(files: Sequence[StackFile], masks: Sequence[np.ndarray]) -> list[str]:
    """Sentences about stacks that look unlike the others, or whose BIDS suffix is another.

    Raises
    ------
    InputError
        A stack that does both.
    """
    suffixes = [bids_suffix(file.path) for file in files]
    commonest = Counter(suffixes).most_common(1)[0][0]
    volumes = [Volume(file.data, file.lattice) for file in files]
    unlike = unlike_stacks(stack_correlations(volumes, masks))
    warnings = []
    for index, file in enumerate(files):
        is_named_otherwise = suffixes[index] != commonest
        if index in unlike and is_named_otherwise:
            raise InputError(
                f'{file.path} shows another contrast than the other stacks ({suffixes[index] or "no suffix"}, '
                f'not {commonest or "without suffix"}): reconstruct each contrast by itself.'
            )
        if index in unlike:
            warnings.append(
                f'{file.path} looks unlike the other stacks (another contrast, or it lies elsewhere): if the '
                'volume is poor, leave it out.'
            )
        elif is_named_otherwise:
            warnings.append(
                f'{file.path} has another suffix ({suffixes[index] or "none"}) than the other stacks '
                f'({commonest or "none"}): only stacks of one contrast belong together.'
            )
    return warnings


def bids_suffix(path) -> str:
    """``T2w`` of ``sub-01_run-1_T2w.nii.gz``; nothing for other names."""
    stem = Path(path).name.split('.')[0]
    return stem.rpartition('_')[2] if stem.startswith('sub-') and '_' in stem else ''


def needed_memory_gb(n_pixels: int, n_voxels: int) -> float:
    """Peak memory in GB of a reconstruction of ``n_voxels`` from ``n_pixels`` inside the masks."""
    return PROGRAM_GB + (PIXEL_BYTES * n_pixels + VOXEL_BYTES * n_voxels) / 1024**3


def check_memory(
    files: Sequence[StackFile], masks: Sequence[np.ndarray], resolution_mm: float, limit_gb: float
) -> None:
    """Raise `InputError` where the volume would need more memory than there is.

    Parameters
    ----------
    limit_gb
        What may be used; 0: not known.
    """
    n_pixels = int(sum(mask.sum() for mask in masks))
    corners = np.concatenate([_box_corners(file.lattice, mask) for file, mask in zip(files, masks)])
    n_voxels = float(np.prod(np.ptp(corners, axis=0) / resolution_mm + 1))
    need = needed_memory_gb(n_pixels, n_voxels)
    if 0 < limit_gb < need:
        raise InputError(
            f'{files[0].path} and the other stacks: a volume of {resolution_mm:g} mm needs about {need:.1f} GB '
            f'of memory and the limit here is {limit_gb:.1f} GB: ask for larger voxels (--resolution), or give '
            'masks of the anatomy alone.'
        )


def _box_corners(lattice: Lattice, mask: np.ndarray) -> np.ndarray:
    """(8, 3) world corners of the box of a mask."""
    start, stop = bounding_box(mask)
    ends = np.array(np.meshgrid(*zip(start, stop - 1))).reshape(3, -1).T
    return lattice.to_world(ends)
