"""The working grid of one target: aligned with its slices, as fine as the reference.

On this grid the slices are exact weighted means of whole planes, whatever the orientation of the stack, and
both in-plane axes of the target are stored axes. Arrays are (z, y, x): z across the slices, x fastest in
memory; the lattice lists the same axes as (x, y, z).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.resample import resample
from bids_gsrecon.recon.harmonize.slabs import SlabMean
from bids_gsrecon.recon.harmonize.types import Target

IN_PLANE_MARGIN = 4  # fine voxels beyond the mask


@dataclass(eq=False)
class SliceFrame:
    """A target cut to the mask, and the fine grid its slices are averages of.

    Attributes
    ----------
    lattice
        Fine grid in the reference's world, index order (x, y, z).
    slabs
        Fine grid (nz, ny, nx) to slices (ns, py, px).
    slices
        (ns, py, px) target intensities.
    mask
        (nz, ny, nx) the reconstruction mask on the fine grid.
    phases
        (nz,) position of each fine plane within its slice spacing.
    factor
        Fine planes per slice spacing.
    """

    lattice: Lattice
    slabs: SlabMean
    slices: np.ndarray
    mask: np.ndarray
    phases: np.ndarray
    factor: int
    start: np.ndarray
    order: tuple[int, int, int]
    bins: tuple[int, int, int]

    @property
    def spacing_mm(self) -> np.ndarray:
        """Fine voxel sizes (z, y, x), mm."""
        return self.lattice.voxel_sizes_mm[::-1]

    def from_volume(self, volume: Volume, order: int = 3) -> np.ndarray:
        """A volume of the reference's world sampled on the fine grid, (nz, ny, nx) float32."""
        matrix = volume.lattice.world_to_voxel @ self.lattice.affine
        return np.ascontiguousarray(
            resample(volume.data, matrix, self.lattice.shape, order).transpose(2, 1, 0)
        )

    def to_target(self, slices: np.ndarray, target: Target) -> np.ndarray:
        """Slices (ns, py, px) put back on the target's own grid; zero where the frame does not reach."""
        full = np.zeros(target.volume.lattice.shape, np.float32)
        block = slices.transpose(2, 1, 0)
        for axis, n in enumerate(self.bins):
            block = np.repeat(block, n, axis=axis)
        view = full.transpose(self.order)
        view[tuple(slice(s, s + n) for s, n in zip(self.start, block.shape))] = block
        return full


def make_frame(target: Target, mask: np.ndarray, mask_lattice: Lattice) -> SliceFrame:
    """The frame of a target for a mask (i, j, k) on the reference's grid.

    Raises
    ------
    ValueError
        The target does not see the mask, or has a single slice.
    """
    profile, volume = target.profile, target.volume
    spacing_mm = float(np.cbrt(np.prod(mask_lattice.voxel_sizes_mm)))
    in_plane = [a for a in range(3) if a != profile.axis]
    order = (*in_plane, profile.axis)
    if volume.data.shape[profile.axis] < 2:
        raise ValueError('the target has a single slice: at least two are needed')
    affine = volume.affine.copy()
    affine[:, :3] = affine[:, list(order)]
    lattice = Lattice(tuple(volume.data.shape[a] for a in order), target.target_to_reference @ affine)
    data = volume.data.transpose(order)
    sizes = lattice.voxel_sizes_mm
    # In plane: finer than the reference is binned (its detail cannot be used), coarser is cut into cells.
    ratio = spacing_mm / sizes
    bins = np.where(ratio >= 1.6, np.round(ratio), 1).astype(int)
    bins[2] = 1
    factors = np.maximum(1, np.round(sizes * bins / spacing_mm)).astype(int)
    start, stop = _crop_to_mask(lattice, mask, mask_lattice, bins)
    data = data[tuple(slice(a, b) for a, b in zip(start, stop))]
    lattice = lattice.cropped(start, stop)
    shape = np.array(data.shape) // bins
    data = data.reshape(shape[0], bins[0], shape[1], bins[1], shape[2]).mean((1, 3))
    coarse = np.diag([*bins.astype(float), 1.0])
    coarse[:3, 3] = (bins - 1) / 2.0
    lattice = Lattice(tuple(shape), lattice.affine @ coarse)
    cell = lattice.voxel_sizes_mm[2] / factors[2]
    margin = max(0, int(np.ceil((profile.half_width_mm - lattice.voxel_sizes_mm[2] / 2) / cell - 1e-6)))
    weights = profile.cell_weights(int(shape[2]), float(lattice.voxel_sizes_mm[2]), int(factors[2]), margin)
    fine = lattice.refined(factors)
    fine = fine.cropped([0, 0, -margin], [*fine.shape[:2], fine.shape[2] + margin])
    matrix = mask_lattice.world_to_voxel @ fine.affine
    fine_mask = resample(mask.astype(np.float32), matrix, fine.shape, 1) > 0.5
    return SliceFrame(
        lattice=fine,
        slabs=SlabMean(weights, (int(factors[1]), int(factors[0]))),
        slices=np.ascontiguousarray(data.transpose(2, 1, 0)),
        mask=np.ascontiguousarray(fine_mask.transpose(2, 1, 0)),
        phases=(np.arange(fine.shape[2]) - margin) % int(factors[2]),
        factor=int(factors[2]),
        start=start,
        order=order,
        bins=tuple(int(b) for b in bins),
    )


def _crop_to_mask(lattice, mask, mask_lattice, bins):
    """Index box of the target that covers the mask with a margin, whole bins long."""
    where = np.argwhere(mask)
    points = lattice.to_index(mask_lattice.to_world(where[:: max(1, len(where) // 200_000)]))
    margin = np.array([IN_PLANE_MARGIN, IN_PLANE_MARGIN, 0]) * np.maximum(
        mask_lattice.voxel_sizes_mm.min() / lattice.voxel_sizes_mm, 1.0
    )
    margin[2] = 1.0
    start = np.maximum(np.floor(points.min(0) - margin), 0).astype(int)
    stop = np.minimum(np.ceil(points.max(0) + margin) + 1, lattice.shape).astype(int)
    if (stop - start < 2).any():
        raise ValueError('the target and the mask of the reference do not overlap')
    return start, start + (stop - start) // bins * bins
