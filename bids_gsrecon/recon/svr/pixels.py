"""The pixels of all slices of all stacks, where they lie for given poses, and what they see of a volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.gpu.slices import CUTOFF, PixelWeights, variance_ratio
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.stacks import SliceStack

GRID_SIGMA = 0.7  # standard deviation of a grid Gaussian, of the grid spacing
_SIX = [0, 1, 2, 4, 5, 8]


@dataclass(eq=False)
class Pixels:
    """Pixels of slices in nominal world coordinates.

    Attributes
    ----------
    points_mm
        (N, 3) where the scanner believes the pixels are, world RAS mm.
    values
        (N,) float32, bright tissue about 1; zero in the ring.
    in_mask
        (N,) bool: not of the ring of zeros.
    slice_of
        (N,) slice index, over all stacks.
    stack_of
        (M,) stack of each slice.
    rank
        (M,) position of each slice in its stack's acquisition order.
    axes
        (M, 3, 3) unit columns: two in plane, slice normal, world.
    psf_variance_mm2
        (M, 3) along these axes.
    spacing_mm
        (M,) smallest in-plane pixel size.
    """

    points_mm: np.ndarray
    values: np.ndarray
    in_mask: np.ndarray
    slice_of: np.ndarray
    stack_of: np.ndarray
    rank: np.ndarray
    axes: np.ndarray
    psf_variance_mm2: np.ndarray
    spacing_mm: np.ndarray

    @property
    def n_slices(self) -> int:
        return len(self.stack_of)

    def selected(self, keep: np.ndarray) -> Pixels:
        """Some of the pixels, all slices."""
        parts = (getattr(self, name)[keep] for name in ('points_mm', 'values', 'in_mask', 'slice_of'))
        return Pixels(*parts, self.stack_of, self.rank, self.axes, self.psf_variance_mm2, self.spacing_mm)


def collect_pixels(stacks: list[SliceStack], ring_mm: float = 4.0) -> Pixels:
    """Masked pixels of every slice that has any, and a ring of zeros around them in plane."""
    parts: dict[str, list] = {name: [] for name in ('points', 'values', 'in_mask', 'slice_of')}
    slices: dict[str, list] = {name: [] for name in ('stack', 'rank', 'axes', 'psf', 'spacing')}
    for number, stack in enumerate(stacks):
        sizes = stack.lattice.voxel_sizes_mm
        axes = stack.lattice.affine[:3, :3] / sizes
        scale = float(np.percentile(stack.data[stack.mask], 99))
        if not scale > 0:
            raise ValueError(f'stack {number + 1} has no signal inside its mask: leave it out')
        width = np.ceil(ring_mm / sizes[:2]).astype(int)
        disc = np.hypot(*np.ogrid[-width[0] : width[0] + 1, -width[1] : width[1] + 1]) * sizes[0] <= ring_mm
        order = stack.acquisition_rank()
        for k in range(stack.data.shape[2]):
            mask = stack.mask[:, :, k]
            if not mask.any():
                continue
            near = ndimage.binary_dilation(mask, disc)
            where = np.argwhere(near)
            inside = mask[near]
            parts['points'].append(stack.lattice.to_world(np.c_[where, np.full(len(where), k)]))
            parts['values'].append(np.where(inside, stack.data[:, :, k][near] / scale, 0).astype(np.float32))
            parts['in_mask'].append(inside)
            parts['slice_of'].append(np.full(len(where), len(slices['stack'])))
            slices['stack'].append(number)
            slices['rank'].append(order[k])
            slices['axes'].append(axes)
            slices['psf'].append(stack.psf_variance_mm2())
            slices['spacing'].append(sizes[:2].min())
    joined = [np.concatenate(part) for part in parts.values()]
    return Pixels(*joined, *(np.array(part) for part in slices.values()))


@dataclass(eq=False)
class View:
    """Pixels seen through poses on one grid: weights ready for products.

    Attributes
    ----------
    placed_mm
        (N, 3) pixel centres in the anatomy's world.
    """

    pixels: Pixels
    lattice: Lattice
    poses: np.ndarray
    placed_mm: np.ndarray
    weights: PixelWeights
    psf_mm2: np.ndarray  # (M, 3, 3), turned with the slices

    @classmethod
    def make(cls, pixels: Pixels, lattice: Lattice, poses: np.ndarray) -> View:
        """``poses`` (M, 4, 4): slice as stored to anatomy. The lattice is isotropic."""
        h = float(lattice.voxel_sizes_mm[0])
        p = poses[pixels.slice_of]
        placed = np.einsum('nij,nj->ni', p[:, :3, :3], pixels.points_mm) + p[:, :3, 3]
        turned = poses[:, :3, :3] @ pixels.axes
        psf = np.einsum('mik,mk,mjk->mij', turned, pixels.psf_variance_mm2, turned)
        inverse = lattice.world_to_voxel[:3, :3]
        total = psf + (GRID_SIGMA * h) ** 2 * np.eye(3)
        covariances = (inverse @ total @ inverse.T).reshape(-1, 9)[:, _SIX]
        weights = PixelWeights(lattice.to_index(placed), pixels.slice_of, covariances, lattice.shape)
        return cls(pixels, lattice, poses, placed, weights, psf)

    def jacobian(self, image: np.ndarray, centre_mm: np.ndarray, arm_mm: float) -> np.ndarray:
        """(N, 6) derivatives of the pixel values in a motion of their slice: ``arm_mm`` x rotation, translation.

        A motion turns the anatomy's world about ``centre_mm`` and shifts it; the point spread turns too.
        """
        first, second = self.weights.moments(image)
        inverse = np.ascontiguousarray(self.lattice.world_to_voxel[:3, :3])
        out = np.empty((len(first), 6))
        _motion_jacobian(
            first,
            second,
            inverse,
            self.psf_mm2 / variance_ratio(CUTOFF),
            self.pixels.slice_of,
            self.placed_mm,
            centre_mm,
            arm_mm,
            out,
        )
        return out


@njit(parallel=True, cache=True)
def _motion_jacobian(first, second, inverse, psf, slice_of, placed, centre, arm, out):
    for i in prange(len(first)):
        s = psf[slice_of[i]]
        m = second[i]
        # U = inverse^T (sum a w u u^T) inverse, in world; U psf = sum a w u (S_D u)^T.
        full = np.empty((3, 3))
        for r in range(3):
            a = m[0] * inverse[0, r] + m[1] * inverse[1, r] + m[2] * inverse[2, r]
            b = m[1] * inverse[0, r] + m[3] * inverse[1, r] + m[4] * inverse[2, r]
            c = m[2] * inverse[0, r] + m[4] * inverse[1, r] + m[5] * inverse[2, r]
            for t in range(3):
                full[r, t] = a * inverse[0, t] + b * inverse[1, t] + c * inverse[2, t]
        g0, g1, g2 = 0.0, 0.0, 0.0
        for r in range(3):
            g0 -= first[i, r] * inverse[r, 0]
            g1 -= first[i, r] * inverse[r, 1]
            g2 -= first[i, r] * inverse[r, 2]
        t21 = full[2, 0] * s[0, 1] + full[2, 1] * s[1, 1] + full[2, 2] * s[2, 1]
        t12 = full[1, 0] * s[0, 2] + full[1, 1] * s[1, 2] + full[1, 2] * s[2, 2]
        t02 = full[0, 0] * s[0, 2] + full[0, 1] * s[1, 2] + full[0, 2] * s[2, 2]
        t20 = full[2, 0] * s[0, 0] + full[2, 1] * s[1, 0] + full[2, 2] * s[2, 0]
        t10 = full[1, 0] * s[0, 0] + full[1, 1] * s[1, 0] + full[1, 2] * s[2, 0]
        t01 = full[0, 0] * s[0, 1] + full[0, 1] * s[1, 1] + full[0, 2] * s[2, 1]
        x, y, z = placed[i, 0] - centre[0], placed[i, 1] - centre[1], placed[i, 2] - centre[2]
        out[i, 0] = (y * g2 - z * g1 + t21 - t12) / arm
        out[i, 1] = (z * g0 - x * g2 + t02 - t20) / arm
        out[i, 2] = (x * g1 - y * g0 + t10 - t01) / arm
        out[i, 3], out[i, 4], out[i, 5] = g0, g1, g2


def motion(parameters: np.ndarray, centre_mm: np.ndarray, arm_mm: float) -> np.ndarray:
    """World motions (M, 4, 4) of parameters (M, 6) as in `View.jacobian`."""
    parameters = np.atleast_2d(parameters)
    out = np.tile(np.eye(4), (len(parameters), 1, 1))
    out[:, :3, :3] = Rotation.from_rotvec(parameters[:, :3] / arm_mm).as_matrix()
    out[:, :3, 3] = parameters[:, 3:] + centre_mm - out[:, :3, :3] @ centre_mm
    return out


def motion_parameters(motions: np.ndarray, centre_mm: np.ndarray, arm_mm: float) -> np.ndarray:
    """The inverse of `motion`."""
    rotation = Rotation.from_matrix(motions[:, :3, :3]).as_rotvec()
    shift = motions[:, :3, 3] - centre_mm + motions[:, :3, :3] @ centre_mm
    return np.concatenate([rotation * arm_mm, shift], 1)
