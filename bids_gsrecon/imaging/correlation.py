"""Squared correlation of two blurred, masked volumes under a rigid or affine motion, climbed by Gauss-Newton.

Outside of its mask a volume is zero, so the outlines count. Everything is deterministic: the samples are a regular grid.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.mutual_information import rigid_from_parameters
from bids_gsrecon.imaging.resample import resample

MOST_STRETCH = 1.5  # of an affine motion, along any direction and either way
INNER = 0.8  # of a blurred mask: well inside
EMPTY = 0.02  # of the bright tissue


class Correlation:
    """How well ``moving`` follows ``fixed`` (squared correlation, 0 to 1), as a function of the motion.

    Parameters
    ----------
    fixed, moving
        The volumes.
    fixed_mask, moving_mask
        (i, j, k) bool: the anatomy in each; the rest is zero.
    voxel_mm
        Distance of the samples.
    blur_mm
        Standard deviation of the blur of both.
    """

    def __init__(
        self,
        fixed: Volume,
        fixed_mask: np.ndarray,
        moving: Volume,
        moving_mask: np.ndarray,
        *,
        voxel_mm: float,
        blur_mm: float,
    ):
        self._fixed = _coarse(fixed.data, fixed_mask, fixed.lattice, voxel_mm, blur_mm)
        self._fixed_inside = _coarse(None, fixed_mask, fixed.lattice, voxel_mm, blur_mm)
        self._slopes = np.gradient(self._fixed.data, voxel_mm)
        moving_coarse = _coarse(moving.data, moving_mask, moving.lattice, voxel_mm, blur_mm)
        samples = np.argwhere(np.ones(moving_coarse.data.shape, bool))
        self._points = moving_coarse.lattice.to_world(samples)
        self._values = moving_coarse.data.ravel().astype(np.float64)
        self._inside = _coarse(None, moving_mask, moving.lattice, voxel_mm, blur_mm).data.ravel()
        centred = moving.lattice.to_world(np.argwhere(moving_mask))
        self.centre_mm = centred.mean(0)
        self._arm = float(np.sqrt(((centred - self.centre_mm) ** 2).sum(1).mean()))

    def __call__(self, motion: np.ndarray) -> float:
        """The squared correlation at a (4, 4) motion, moving world to fixed world."""
        return self._at(motion)[0]

    def inner(self, motion: np.ndarray) -> float:
        """Correlation (-1 to 1) well inside both masks: what lies within, without the outlines."""
        index = self._index(self._fixed_inside, motion)
        inside = ndimage.map_coordinates(self._fixed_inside.data, index, order=1)
        use = (inside > INNER) & (self._inside > INNER)
        x = ndimage.map_coordinates(self._fixed.data, self._index(self._fixed, motion)[:, use], order=1)
        y = self._values[use]
        if use.sum() < 30 or x.std() == 0 or y.std() == 0:
            return 0.0
        return float(np.corrcoef(x, y)[0, 1])

    def optimise(
        self, motion: np.ndarray, *, affine: bool = False, n_steps: int = 25, tolerance_mm: float = 0.1
    ) -> tuple[np.ndarray, float]:
        """Climb from ``motion``: rigid (it stays what it is but for a rigid motion), or affine.

        Returns
        -------
        (motion, squared correlation)
        """
        score, jacobian, residual = self._at(motion, affine)
        damping = 1e-2
        for _ in range(n_steps):
            normal = jacobian.T @ jacobian
            lifted = (
                normal + damping * np.diag(np.diag(normal)) + 1e-12 * np.trace(normal) * np.eye(len(normal))
            )
            step = np.linalg.solve(lifted, jacobian.T @ residual)
            size = float(np.abs(step).max())
            step *= min(1.0, 0.4 * self._arm / max(size, 1e-9))
            candidate = self._moved(motion, step)
            stretch = np.linalg.svd(candidate[:3, :3], compute_uv=False)
            if stretch.max() < MOST_STRETCH and stretch.min() > 1 / MOST_STRETCH:
                found = self._at(candidate, affine)
                if found[0] > score:
                    motion, (score, jacobian, residual) = candidate, found
                    damping = max(damping / 4, 1e-4)
                    if size < tolerance_mm:
                        break
                    continue
            damping *= 8
            if damping > 1e4:
                break
        return motion, score

    def rigid_part(self, motion: np.ndarray) -> np.ndarray:
        """The rigid motion nearest to an affine one at the middle of the anatomy; never a reflection."""
        rigid = np.eye(4)
        rigid[:3, :3] = nearest_rotation(motion)
        rigid[:3, 3] = motion[:3, :3] @ self.centre_mm + motion[:3, 3] - rigid[:3, :3] @ self.centre_mm
        return rigid

    def _index(self, volume: Volume, motion: np.ndarray) -> np.ndarray:
        matrix = volume.lattice.world_to_voxel @ motion
        return (self._points @ matrix[:3, :3].T + matrix[:3, 3]).T

    def _at(self, motion: np.ndarray, affine: bool | None = None):
        """Squared correlation; with ``affine`` yes or no also Jacobian (n, 6 or 12) and residual (n,)."""
        index = self._index(self._fixed, motion)
        values = ndimage.map_coordinates(self._fixed.data, index, order=1).astype(np.float64)
        use = (values > EMPTY) | (self._values > EMPTY)
        x, y = values[use], self._values[use]
        if len(x) < 30 or x.std() == 0:
            return 0.0, np.zeros((1, 12 if affine else 6)), np.zeros(1)
        centred = x - x.mean()
        slope = (centred @ y) / (centred @ centred)
        residual = y - y.mean() - slope * centred
        score = 1.0 - (residual @ residual) / max((y - y.mean()) @ (y - y.mean()), 1e-30)
        if affine is None:
            return score, None, None
        gradient = slope * np.stack(
            [ndimage.map_coordinates(g, index[:, use], order=1) for g in self._slopes], axis=1
        )
        arms = (self._points[use] - self.centre_mm) @ motion[:3, :3].T / self._arm
        if affine:
            turning = (gradient[:, :, None] * arms[:, None, :]).reshape(-1, 9)
        else:
            turning = np.cross(arms, gradient)
        return score, np.concatenate([turning, gradient], axis=1), residual

    def _moved(self, motion: np.ndarray, step: np.ndarray) -> np.ndarray:
        """``motion`` and then a small one about the middle of the anatomy, (6,) or (12,) as in `_at`, in mm."""
        centre = motion[:3, :3] @ self.centre_mm + motion[:3, 3]
        if len(step) == 6:
            return rigid_from_parameters(np.r_[step[:3] / self._arm, step[3:]], centre) @ motion
        small = np.eye(4)
        small[:3, :3] += step[:9].reshape(3, 3) / self._arm
        small[:3, 3] = step[9:] + centre - small[:3, :3] @ centre
        return small @ motion


def nearest_rotation(motion: np.ndarray) -> np.ndarray:
    """(3, 3) rotation nearest to the linear part of an affine motion; never a reflection."""
    u, _, vt = np.linalg.svd(motion[:3, :3])
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt


def _coarse(data, mask, lattice: Lattice, voxel_mm: float, blur_mm: float) -> Volume:
    """``data`` (None: the mask itself) inside a mask, blurred, along the world's axes with room around it."""
    points = lattice.to_world(np.argwhere(mask))
    low, high = points.min(0) - 2.5 * blur_mm, points.max(0) + 2.5 * blur_mm
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = low
    coarse = Lattice(tuple(np.ceil((high - low) / voxel_mm).astype(int) + 1), affine)
    values = mask.astype(np.float32) if data is None else np.where(mask, data, np.float32(0))
    blurred = ndimage.gaussian_filter(values, blur_mm / lattice.voxel_sizes_mm, mode='constant')
    # The image may end at the anatomy; its blur does not.
    out = resample(blurred, lattice.world_to_voxel @ affine, coarse.shape, 1)
    if data is not None:
        bright = float(np.percentile(np.abs(out[np.abs(out) > 0.1 * np.abs(out).max()]), 95))
        out = out / max(bright, 1e-30)
    return Volume(out, coarse)
