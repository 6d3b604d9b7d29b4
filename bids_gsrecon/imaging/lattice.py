"""Affine voxel lattices in world (scanner RAS) millimetres."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Lattice:
    """A regular grid of voxel centres: index (i, j, k) sits at ``affine @ (i, j, k, 1)``.

    Attributes
    ----------
    shape
        Number of voxels along the three stored axes (i, j, k), as nibabel orders them.
    affine
        4x4, voxel index to world RAS mm, float64.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray = field(repr=False)

    def __post_init__(self):
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError('affine must be a finite 4x4 matrix')
        if abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError('affine is singular: a voxel has no volume')
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f'shape must be three positive numbers, not {self.shape}')
        object.__setattr__(self, 'affine', affine)
        object.__setattr__(self, 'shape', tuple(int(n) for n in self.shape))

    @property
    def voxel_sizes_mm(self) -> np.ndarray:
        """Length of one step along each stored axis (3,), mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def coarsest_axis(self) -> int:
        """Stored axis with the largest steps; of nearly equal ones that with the fewest voxels."""
        sizes = self.voxel_sizes_mm
        coarse = np.flatnonzero(sizes > 0.98 * sizes.max())
        return int(coarse[np.argmin(np.array(self.shape)[coarse])])

    @cached_property
    def world_to_voxel(self) -> np.ndarray:
        """4x4, world RAS mm to voxel index; not to be written to."""
        inverse = np.linalg.inv(self.affine)
        inverse.flags.writeable = False
        return inverse

    @property
    def n_voxels(self) -> int:
        return int(np.prod(self.shape))

    @property
    def centre_mm(self) -> np.ndarray:
        """World position of the middle of the grid (3,), mm."""
        return self.to_world((np.array(self.shape) - 1) / 2)

    def to_world(self, indices) -> np.ndarray:
        """World mm (..., 3) of (fractional) voxel indices (..., 3)."""
        return np.asarray(indices, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, points_mm) -> np.ndarray:
        """Fractional voxel indices (..., 3) of world points (..., 3) in mm."""
        inverse = self.world_to_voxel
        return np.asarray(points_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def moved(self, rigid) -> Lattice:
        """The same grid after a world-to-world motion: ``affine -> rigid @ affine``."""
        return Lattice(self.shape, np.asarray(rigid, dtype=np.float64) @ self.affine)

    def cropped(self, start, stop) -> Lattice:
        """The sub-grid of indices ``start <= (i, j, k) < stop``; may reach outside this grid."""
        start, stop = np.asarray(start, dtype=int), np.asarray(stop, dtype=int)
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(start)
        return Lattice(tuple(stop - start), affine)

    def refined(self, factors) -> Lattice:
        """Every voxel cut into ``factors`` (3,) equal cells; the cells fill the same box in world.

        The origin moves to the centre of the first cell: refining never shifts the image.
        """
        factors = np.asarray(factors, dtype=int)
        scale = np.diag([*(1.0 / factors), 1.0])
        scale[:3, 3] = (1.0 / factors - 1.0) / 2.0
        return Lattice(tuple(np.array(self.shape) * factors), self.affine @ scale)

    def resampled(self, voxel_sizes_mm) -> Lattice:
        """A grid over the same box and directions with other voxel sizes (scalar or (3,)), mm."""
        sizes = np.broadcast_to(np.asarray(voxel_sizes_mm, dtype=np.float64), 3)
        extent = np.array(self.shape) * self.voxel_sizes_mm
        shape = np.maximum(np.round(extent / sizes), 1).astype(int)
        directions = self.affine[:3, :3] / self.voxel_sizes_mm
        affine = np.eye(4)
        affine[:3, :3] = directions * sizes
        affine[:3, 3] = self.centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
        return Lattice(tuple(shape), affine)

    def metadata(self) -> dict:
        """What a saved field says about the grid it was made on; JSON-able."""
        return {'lattice_shape': list(self.shape), 'lattice_affine': self.affine.tolist()}

    def same_as(self, other: Lattice, tolerance_mm: float = 1e-3) -> bool:
        """Whether the two grids put every voxel centre at the same place within ``tolerance_mm``."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1).T
        return bool(np.abs(self.to_world(corners) - other.to_world(corners)).max() <= tolerance_mm)


@dataclass(frozen=True, eq=False)
class Volume:
    """A real image on a lattice: ``data`` (i, j, k) float32, no NaN."""

    data: np.ndarray = field(repr=False)
    lattice: Lattice

    def __post_init__(self):
        data = np.asarray(self.data, dtype=np.float32)
        if data.shape != self.lattice.shape:
            raise ValueError(f'data {data.shape} and lattice {self.lattice.shape} differ in shape')
        if not np.isfinite(data).all():
            raise ValueError('data hold NaN or infinite values')
        object.__setattr__(self, 'data', data)

    @classmethod
    def from_affine(cls, data, affine) -> Volume:
        data = np.asarray(data, dtype=np.float32)
        return cls(data, Lattice(data.shape, affine))

    @property
    def affine(self) -> np.ndarray:
        return self.lattice.affine
