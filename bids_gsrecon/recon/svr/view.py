"""What pixels see of a grid of Gaussians, each slice from its own pose.

A grid of equal isotropic Gaussians (standard deviation `GRID_SIGMA` spacings, unit mass) seen through a Gaussian point
spread is again a Gaussian for every pair: a pixel at ``p`` sees ``sum_k a_k N(p - k; S)``, S the covariance of the
grid's Gaussians plus that of the slice's point spread, turned with the slice. For the engine a pixel therefore *is* a
Gaussian of covariance S on the grid: splatting pixel values is the adjoint, gathering is the forward model, and
the derivatives of the gathered sum in mean and covariance are those in the pose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit, prange
from scipy import special

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.svr.motion import Frame
from bids_gsrecon.recon.svr.pixels import Pixels

GRID_SIGMA = 0.7  # standard deviation of a grid Gaussian, of the grid spacing
CUTOFF = 3.0
_SIX = [0, 1, 2, 4, 5, 8]
# (6, 3, 3) what xx, xy, ... stand for in a symmetric matrix.
_SYMMETRIC = np.array([
    0.5 * (np.outer(np.eye(3)[i], np.eye(3)[k]) + np.outer(np.eye(3)[k], np.eye(3)[i]))
    for i, k in zip(*np.triu_indices(3))
])  # fmt: skip


def _chi2_cdf(x: float, n_dimensions: int) -> float:
    return float(special.gammainc(0.5 * n_dimensions, 0.5 * x))


@cache
def unit_mass(cutoff: float) -> float:
    """Integral of ``(exp(-q / 2) - exp(-R^2 / 2))_+`` for unit covariance."""
    gaussian = (2 * math.pi) ** 1.5 * _chi2_cdf(cutoff**2, 3)
    return gaussian - math.exp(-0.5 * cutoff**2) * 4.0 / 3.0 * math.pi * cutoff**3


@cache
def variance_ratio(cutoff: float) -> float:
    """Variance of the cut Gaussian over that of the whole one; pixels are widened by the inverse."""
    gaussian = 3 * (2 * math.pi) ** 1.5 * _chi2_cdf(cutoff**2, 5)
    level = math.exp(-0.5 * cutoff**2) * 4.0 / 5.0 * math.pi * cutoff**5
    return (gaussian - level) / 3.0 / unit_mass(cutoff)


@cache
def mean_square(cutoff: float) -> float:
    """Integral of the square of the cut Gaussian of unit covariance and unit mass."""
    level = math.exp(-0.5 * cutoff**2)
    squared = math.pi**1.5 * _chi2_cdf(2 * cutoff**2, 3)
    crossed = 2 * level * (2 * math.pi) ** 1.5 * _chi2_cdf(cutoff**2, 3)
    total = squared - crossed + level**2 * 4.0 / 3.0 * math.pi * cutoff**3
    return total / unit_mass(cutoff) ** 2


@dataclass(eq=False)
class View:
    """Pixels seen through poses on one grid, ready for products.

    Images are (nx, ny, nz) float32 amplitudes of the grid's Gaussians, best with the first axis fastest in memory
    (as they are returned).

    Attributes
    ----------
    poses
        (M, 4, 4) slice as stored to the volume's world.
    psf_mm2
        (M, 3, 3) covariance of the point spread, turned with the slices, world.
    own_weight
        (M,) sum of the squares of the weights of one pixel.
    grid_sigma
        Standard deviation of the grid's Gaussians, of its spacing.
    """

    pixels: Pixels
    lattice: Lattice
    poses: np.ndarray
    psf_mm2: np.ndarray
    own_weight: np.ndarray
    grid_sigma: float
    _plan: object

    @classmethod
    def make(
        cls, pixels: Pixels, lattice: Lattice, poses: np.ndarray, backend, *, grid_sigma: float = GRID_SIGMA
    ) -> View:
        """The lattice is isotropic."""
        poses = np.ascontiguousarray(poses)
        turned = poses[:, :3, :3] @ pixels.axes
        psf = (turned * pixels.psf_variance_mm2[:, None]) @ turned.transpose(0, 2, 1)
        h = float(lattice.voxel_sizes_mm[0])
        inverse = lattice.world_to_voxel[:3, :3]
        total = inverse @ (psf + (grid_sigma * h) ** 2 * np.eye(3)) @ inverse.T / variance_ratio(CUTOFF)
        volume = np.sqrt(np.linalg.det(total))
        covariances = total.reshape(-1, 9)[:, _SIX].astype(np.float32)
        log_scales = -np.log(unit_mass(CUTOFF) * volume).astype(np.float32)
        n = len(pixels.values)
        gaussians = np.empty((n, 3)), np.empty((n, 6), np.float32), np.empty(n, np.float32)
        motions = lattice.world_to_voxel @ poses
        _as_gaussians(pixels.points_mm, pixels.slice_of, motions, covariances, log_scales, *gaussians)
        plan = backend.array_plan(*gaussians, lattice.shape, CUTOFF)
        return cls(pixels, lattice, poses, psf, mean_square(CUTOFF) / volume, grid_sigma, plan)

    def forward(self, image: np.ndarray) -> np.ndarray:
        """(N,) float32 values of the pixels."""
        return self._plan.gather(np.asarray(image, np.float32))

    def adjoint(self, values: np.ndarray) -> np.ndarray:
        """The transpose of `forward`: (nx, ny, nz) float32."""
        return self._plan.scatter(np.ascontiguousarray(values, np.float32))

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        """Diagonal of ``A^T diag(weights) A``, the weights of a pixel taken as alike."""
        return self.adjoint(weights * self.own_weight[self.pixels.slice_of])

    def derivative(self, image: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Values (N,) and their derivatives (N, 6) in `Frame` parameters of a further motion of their slice.

        The motion turns the volume's world about the centre and shifts it; the point spread turns too.
        """
        # The gradient of ``sum_i sum_x image(x) w_i(x)``; that in the log weights is the value itself.
        p = self.pixels
        none = np.empty((len(p.values), 0), np.float32)
        gradients = self._plan.backward(none, np.asarray(image, np.float32)[None])
        inverse = np.ascontiguousarray(self.lattice.world_to_voxel[:3, :3])
        out = np.empty((len(p.values), 6), np.float32)
        _motion_jacobian(
            gradients.means, gradients.covariances, inverse, self._turns(inverse), p.slice_of,
            p.points_mm, self.poses, frame.centre_mm, frame.arm_mm, out,
        )  # fmt: skip
        return gradients.log_weights, out

    def _turns(self, inverse) -> np.ndarray:
        """(M, 3, 6): what a turn of the point spread does, from the gradient in the covariance (index space).

        A turn by omega changes S by [omega]x S + (its transpose), hence the value by 2 trace(S G [omega]x), with G the
        symmetric matrix of the gradient, in world.
        """
        world = inverse.T @ _SYMMETRIC @ inverse  # (6, 3, 3)
        turn = 2.0 / variance_ratio(CUTOFF) * self.psf_mm2[:, None] @ world
        return np.stack([turn[..., r, t] - turn[..., t, r] for r, t in ((1, 2), (2, 0), (0, 1))], 1)


@njit(parallel=True, cache=True)
def _as_gaussians(points, slice_of, motions, covariances, log_scales, means, pixel_covariances, log_weights):
    """The Gaussians of pixels: a slice's motion (to index space) of its points, and what its pixels share."""
    for i in prange(len(points)):
        s = slice_of[i]
        m = motions[s]
        x, y, z = points[i]
        for k in range(3):
            means[i, k] = m[k, 0] * x + m[k, 1] * y + m[k, 2] * z + m[k, 3]
        for k in range(6):
            pixel_covariances[i, k] = covariances[s, k]
        log_weights[i] = log_scales[s]


@njit(parallel=True, cache=True)
def _motion_jacobian(means, covariances, inverse, turns, slice_of, points, poses, centre, arm, out):
    """From gradients in mean and covariance (index space) to those in a motion (world)."""
    for i in prange(len(means)):
        m, turn = means[i], turns[slice_of[i]]
        gx = m[0] * inverse[0, 0] + m[1] * inverse[1, 0] + m[2] * inverse[2, 0]
        gy = m[0] * inverse[0, 1] + m[1] * inverse[1, 1] + m[2] * inverse[2, 1]
        gz = m[0] * inverse[0, 2] + m[1] * inverse[1, 2] + m[2] * inverse[2, 2]
        p, pose = points[i], poses[slice_of[i]]
        x = pose[0, 0] * p[0] + pose[0, 1] * p[1] + pose[0, 2] * p[2] + pose[0, 3] - centre[0]
        y = pose[1, 0] * p[0] + pose[1, 1] * p[1] + pose[1, 2] * p[2] + pose[1, 3] - centre[1]
        z = pose[2, 0] * p[0] + pose[2, 1] * p[1] + pose[2, 2] * p[2] + pose[2, 3] - centre[2]
        tx, ty, tz = y * gz - z * gy, z * gx - x * gz, x * gy - y * gx
        for k in range(6):
            tx += turn[0, k] * covariances[i, k]
            ty += turn[1, k] * covariances[i, k]
            tz += turn[2, k] * covariances[i, k]
        out[i, 0], out[i, 1], out[i, 2] = tx / arm, ty / arm, tz / arm
        out[i, 3], out[i, 4], out[i, 5] = gx, gy, gz
