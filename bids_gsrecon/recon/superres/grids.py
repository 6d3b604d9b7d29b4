"""Which grid to work on, and how the voxels of an image came about."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.profile import SliceProfile

PROFILES = ('auto', 'cell', 'box', 'gaussian', 'point')
CLEARLY_COARSER = 1.3
LARGER = 1.3  # cells to a rendered point: output voxels below 1.95 cells show the field at their centre
SLACK = 0.25  # an output a quarter finer than a whole factor of the input needs no finer cells


def is_through_plane(lattice: Lattice, axis: int) -> bool:
    """Whether steps along ``axis`` are clearly larger than in plane."""
    sizes = lattice.voxel_sizes_mm
    return bool(sizes[axis] > CLEARLY_COARSER * np.delete(sizes, axis).max())


def voxel_profiles(
    lattice: Lattice, kind: str = 'auto', *, slice_axis: int | None = None, thickness_mm: float | None = None
) -> tuple[SliceProfile, SliceProfile, SliceProfile]:
    """How a voxel of ``lattice`` averages the tissue along its three stored axes.

    Parameters
    ----------
    kind
        ``cell`` (and ``auto``): the mean over the voxel; ``box``, ``gaussian``: that profile across the slices
        (full width, or full width at half maximum: the thickness), the mean over the pixel in plane; ``point``:
        the value at the voxel's centre.
    slice_axis
        Stored axis across the slices; the coarsest if absent.
    thickness_mm
        Slice thickness where it is not the spacing (gap or overlap); not for ``point``.
    """
    if kind not in PROFILES:
        raise ValueError(f'unknown voxel profile {kind!r}: one of {", ".join(PROFILES)}')
    axis = lattice.coarsest_axis if slice_axis is None else slice_axis
    profiles = []
    for a, size in enumerate(lattice.voxel_sizes_mm):
        if kind == 'point':
            profiles.append(SliceProfile('point', float(size), a))
        elif a == axis:
            shape = 'gaussian' if kind == 'gaussian' else 'box'
            profiles.append(SliceProfile(shape, float(thickness_mm or size), a))
        else:
            profiles.append(SliceProfile('box', float(size), a))
    return tuple(profiles)


def output_lattice(lattice: Lattice, *, zooms_mm=None, shape=None) -> Lattice:
    """A grid over the same box with these voxel sizes (3,), mm, or this shape (3,)."""
    if (zooms_mm is None) == (shape is None):
        raise ValueError('give either the voxel sizes or the shape of the output')
    if zooms_mm is not None:
        return lattice.resampled(zooms_mm)
    shape = np.asarray(shape, dtype=int)
    if shape.shape != (3,) or (shape < 1).any():
        raise ValueError(f'a shape is three positive numbers, not {shape.tolist()}')
    ratio = np.array(lattice.shape) / shape
    scale = np.diag([*ratio, 1.0])
    scale[:3, 3] = (ratio - 1.0) / 2.0
    return Lattice(tuple(shape), lattice.affine @ scale)


def upsampling_factors(image: Lattice, output: Lattice) -> np.ndarray:
    """How many output voxels there are to one voxel of the image along its stored axes, (3,) float."""
    steps = np.abs((image.world_to_voxel @ output.affine)[:3, :3])
    return 1.0 / steps.max(1)


def cell_factors(image: Lattice, output: Lattice) -> tuple[int, int, int]:
    """Cells into which the voxels of ``image`` are cut, so that they are about as fine as the output."""
    factors = np.ceil(upsampling_factors(image, output) - SLACK)
    return tuple(int(f) for f in np.maximum(factors, 1))


def points_per_voxel(cells: Lattice, output: Lattice) -> tuple[int, int, int]:
    """At how many points along its stored axes a voxel of ``output`` is rendered; their mean is its value."""
    steps = np.linalg.norm((cells.world_to_voxel @ output.affine)[:3, :3], axis=0)  # cells to a voxel
    return tuple(int(n) for n in np.maximum(np.round(steps / LARGER), 1))


def check_finer(image: Lattice, output: Lattice) -> None:
    """ValueError where the output is nowhere finer than the image: there is nothing to do."""
    if max(cell_factors(image, output)) == 1:
        have = ' x '.join(f'{s:.3g}' for s in image.voxel_sizes_mm)
        want = ' x '.join(f'{s:.3g}' for s in output.voxel_sizes_mm)
        raise ValueError(
            f'its voxels ({have} mm) are as fine as the output ({want} mm) already: ask for smaller voxels'
        )
