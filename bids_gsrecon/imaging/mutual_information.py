"""Normalised mutual information of two volumes under a rigid motion, for search from poor starts.

Studholme et al., Pattern Recognition 32 (1999): NMI = (H(a) + H(b)) / H(a, b), which unlike plain mutual
information does not reward a smaller overlap. Everything is deterministic: the sample is a regular grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize

from bids_gsrecon.imaging.foreground import dilated, foreground_threshold
from bids_gsrecon.imaging.lattice import Lattice, Volume

N_BINS = 32
RIM_MM = 8.0


def rigid_from_parameters(parameters, centre_mm) -> np.ndarray:
    """4x4 world motion: rotation vector (3, radians) about ``centre_mm``, then translation (3, mm)."""
    from scipy.spatial.transform import Rotation

    centre = np.asarray(centre_mm, dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.asarray(parameters[:3], dtype=np.float64)).as_matrix()
    matrix[:3, 3] = centre + np.asarray(parameters[3:6]) - matrix[:3, :3] @ centre
    return matrix


def box_downsampled(volume: Volume, voxel_mm: float) -> Volume:
    """Mean over whole blocks of voxels that come nearest to ``voxel_mm`` (never finer than stored)."""
    factors = np.maximum(np.floor(voxel_mm / volume.lattice.voxel_sizes_mm + 0.25), 1).astype(int)
    factors = np.minimum(factors, volume.data.shape)
    shape = np.array(volume.data.shape) // factors
    data = volume.data[tuple(slice(0, n) for n in shape * factors)]
    data = data.reshape(shape[0], factors[0], shape[1], factors[1], shape[2], factors[2]).mean((1, 3, 5))
    scale = np.diag([*factors.astype(float), 1.0])
    scale[:3, 3] = (factors - 1) / 2.0
    return Volume(data, Lattice(tuple(shape), volume.affine @ scale))


@dataclass(eq=False)
class MutualInformation:
    """NMI between ``fixed`` and ``moving`` sampled at moving voxels, as a function of the motion.

    Parameters
    ----------
    fixed
        Volume that is interpolated (linearly).
    moving
        Volume whose voxels are the samples.
    voxel_mm
        Both are averaged down to about this size first.
    moving_mask, fixed_mask
        Booleans on the volumes' own grids: where samples count.
    max_samples
        Samples are thinned regularly to at most this many.
    """

    fixed: Volume
    moving: Volume
    voxel_mm: float = 4.0
    moving_mask: np.ndarray | None = None
    fixed_mask: np.ndarray | None = None
    max_samples: int = 60_000

    def __post_init__(self):
        fixed = box_downsampled(self.fixed, self.voxel_mm)
        moving = box_downsampled(self.moving, self.voxel_mm)
        keep = dilated(moving.data > foreground_threshold(moving.data), moving.lattice, RIM_MM)
        if self.moving_mask is not None:
            keep &= _downsampled_mask(self.moving_mask, self.moving, self.voxel_mm)
        points = np.argwhere(keep)
        points = points[:: max(1, len(points) // self.max_samples)]
        self._points_mm = moving.lattice.to_world(points)
        self._moving_bins = _nearest_bin(moving.data[tuple(points.T)])
        self._fixed_bins = _fractional_bin(fixed.data)
        self._fixed = fixed
        self._fixed_keep = (
            None if self.fixed_mask is None else _downsampled_mask(self.fixed_mask, self.fixed, self.voxel_mm)
        )
        self.centre_mm = self._points_mm.mean(0) if len(points) else moving.lattice.centre_mm

    def __call__(self, moving_to_fixed: np.ndarray) -> float:
        """NMI (1: independent) at a motion; 0 where under a tenth of the samples falls inside ``fixed``."""
        if len(self._points_mm) < 50:
            return 0.0
        matrix = self._fixed.lattice.world_to_voxel @ moving_to_fixed
        index = (self._points_mm @ matrix[:3, :3].T + matrix[:3, 3]).T
        inside = ((index > -0.5) & (index < np.array(self._fixed.data.shape)[:, None] - 0.5)).all(0)
        if self._fixed_keep is not None:
            nearest = np.rint(index[:, inside]).astype(int)
            inside[inside] = self._fixed_keep[tuple(nearest)]
        if inside.sum() < max(50, 0.1 * len(inside)):
            return 0.0
        fixed = ndimage.map_coordinates(self._fixed_bins, index[:, inside], order=1, mode='nearest')
        return _nmi(fixed, self._moving_bins[inside])

    def optimise(
        self,
        start: np.ndarray,
        *,
        n_scales: int = 0,
        penalty: Callable[[np.ndarray], float] | None = None,
        step_mm: float = 4.0,
        tolerance_mm: float = 0.1,
        max_evaluations: int = 600,
    ) -> tuple[np.ndarray, float]:
        """Local search (Powell) from ``start``, rigid and with one or three scales where asked for.

        Parameters
        ----------
        start
            4x4, moving world to fixed world.
        n_scales
            0: rigid; 1: and one scale; 3: and three, along the moving image's world axes.
        penalty
            Of a 4x4 motion, subtracted from the NMI during the search (not from the NMI returned).
        step_mm, tolerance_mm
            First step, and accuracy, as displacement 60 mm off the centre (the rim of a head).

        Returns
        -------
        (moving_to_fixed, NMI)
        """
        radius_mm = 60.0
        centre = start[:3, :3] @ self.centre_mm + start[:3, 3]

        def motion(p):
            matrix = rigid_from_parameters(np.concatenate([p[:3] / radius_mm, p[3:6]]), centre) @ start
            if not n_scales:
                return matrix
            scale = np.eye(4)
            scale[:3, :3] = np.diag(np.exp(np.broadcast_to(p[6:] / radius_mm, 3)))
            scale[:3, 3] = self.centre_mm - scale[:3, :3] @ self.centre_mm
            return matrix @ scale

        # Shifts first (through plane before the others), then scales, then turns.
        order = [5, 3, 4, *range(6, 6 + n_scales), 2, 0, 1]
        options = {'xtol': tolerance_mm / step_mm, 'ftol': 1e-6, 'maxfev': max_evaluations}
        options['direc'] = np.eye(6 + n_scales)[order] * step_mm
        start_at = np.zeros(6 + n_scales)

        def loss(p):
            matrix = motion(p)
            return (penalty(matrix) if penalty else 0.0) - self(matrix)

        best = motion(optimize.minimize(loss, start_at, method='Powell', options=options).x)
        return best, self(best)


def _downsampled_mask(mask: np.ndarray, volume: Volume, voxel_mm: float) -> np.ndarray:
    return box_downsampled(Volume(mask.astype(np.float32), volume.lattice), voxel_mm).data > 0.25


def _fractional_bin(values: np.ndarray) -> np.ndarray:
    """Intensity as a position on the bins [0, N_BINS - 1]; the lowest bin is the background's."""
    low = float(values.min())
    above = values[values > low]
    high = float(np.percentile(above, 99.5)) if above.size else low + 1.0
    scaled = (values - low) * ((N_BINS - 1) / max(high - low, 1e-30))
    return np.clip(scaled, 0, N_BINS - 1).astype(np.float32)


def _nearest_bin(values: np.ndarray) -> np.ndarray:
    return np.rint(_fractional_bin(values)).astype(np.int64) if values.size else np.zeros(0, np.int64)


def _nmi(fixed: np.ndarray, moving_bins: np.ndarray) -> float:
    """NMI of fractional bins (shared linearly between two neighbours) with whole bins."""
    low = np.minimum(fixed.astype(np.int64), N_BINS - 2)
    share = fixed - low
    flat = low * N_BINS + moving_bins
    joint = (
        np.bincount(flat, 1.0 - share, N_BINS * N_BINS)
        + np.bincount(flat + N_BINS, share, N_BINS * N_BINS)[: N_BINS * N_BINS]
    )
    joint = joint.reshape(N_BINS, N_BINS) / joint.sum()
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / max(_entropy(joint), 1e-12)


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
