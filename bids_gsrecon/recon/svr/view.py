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
    placed_mm
        (N, 3) pixel centres in the volume's world.
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
    placed_mm: np.ndarray
    psf_mm2: np.ndarray
    own_weight: np.ndarray
    grid_sigma: float
    _plan: object

    @classmethod
    def make(
        cls, pixels: Pixels, lattice: Lattice, poses: np.ndarray, backend, *, grid_sigma: float = GRID_SIGMA
    ) -> View:
        """``poses`` (M, 4, 4): slice as stored to the volume's world. The lattice is isotropic."""
        import torch

        placed = pixels.placed(poses)
        turned = poses[:, :3, :3] @ pixels.axes
        psf = np.einsum('mik,mk,mjk->mij', turned, pixels.psf_variance_mm2, turned)
        h = float(lattice.voxel_sizes_mm[0])
        inverse = lattice.world_to_voxel[:3, :3]
        total = inverse @ (psf + (grid_sigma * h) ** 2 * np.eye(3)) @ inverse.T / variance_ratio(CUTOFF)
        volume = np.sqrt(np.linalg.det(total))
        covariances = total.reshape(-1, 9)[:, _SIX].astype(np.float32)
        log_scales = -np.log(unit_mass(CUTOFF) * volume).astype(np.float32)
        plan = backend.plan(
            torch.from_numpy(pixels.placed(lattice.world_to_voxel @ poses)),
            torch.from_numpy(covariances[pixels.slice_of]),
            torch.from_numpy(log_scales[pixels.slice_of]),
            lattice.shape,
            CUTOFF,
        )
        return cls(pixels, lattice, poses, placed, psf, mean_square(CUTOFF) / volume, grid_sigma, plan)

    def forward(self, image: np.ndarray) -> np.ndarray:
        """(N,) float32 values of the pixels."""
        import torch

        return self._plan.gather(torch.from_numpy(np.asarray(image, np.float32))).numpy()

    def adjoint(self, values: np.ndarray) -> np.ndarray:
        """The transpose of `forward`: (nx, ny, nz) float32."""
        import torch

        return self._plan.scatter(torch.from_numpy(np.ascontiguousarray(values, np.float32))).numpy()

    def diagonal(self, weights: np.ndarray) -> np.ndarray:
        """Diagonal of ``A^T diag(weights) A``, the weights of a pixel taken as alike."""
        return self.adjoint(weights * self.own_weight[self.pixels.slice_of])

    def derivative(self, image: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Values (N,) and their derivatives (N, 6) in `Frame` parameters of a further motion of their slice.

        The motion turns the volume's world about the centre and shifts it; the point spread turns too.
        """
        import torch

        # The gradient of ``sum_i sum_x image(x) w_i(x)``; that in the log weights is the value itself.
        none = torch.empty((len(self.placed_mm), 0))
        gradients = self._plan.backward(none, torch.from_numpy(np.asarray(image, np.float32))[None])
        inverse = np.ascontiguousarray(self.lattice.world_to_voxel[:3, :3])
        out = np.empty((len(self.placed_mm), 6), np.float32)
        _motion_jacobian(
            gradients.means.numpy(), gradients.covariances.numpy(), inverse, self._turns(inverse),
            self.pixels.slice_of, self.placed_mm, frame.centre_mm, frame.arm_mm, out,
        )  # fmt: skip
        return gradients.log_weights.numpy(), out

    def _turns(self, inverse) -> np.ndarray:
        """(M, 3, 6): what a turn of the point spread does, from the gradient in the covariance (index space).

        A turn by omega changes S by [omega]x S + (its transpose), hence the value by 2 trace(S G [omega]x), with G the
        symmetric matrix of the gradient, in world.
        """
        out = np.empty((len(self.psf_mm2), 3, 6))
        for k, (row, column) in enumerate(zip(*np.triu_indices(3))):
            matrix = np.zeros((3, 3))
            matrix[row, column] += 0.5
            matrix[column, row] += 0.5
            turn = 2.0 * self.psf_mm2 / variance_ratio(CUTOFF) @ (inverse.T @ matrix @ inverse)
            for axis, (r, t) in enumerate(((1, 2), (2, 0), (0, 1))):
                out[:, axis, k] = turn[:, r, t] - turn[:, t, r]
        return out


@njit(parallel=True, cache=True)
def _motion_jacobian(means, covariances, inverse, turns, slice_of, placed, centre, arm, out):
    """From gradients in mean and covariance (index space) to those in a motion (world)."""
    for i in prange(len(means)):
        m, turn = means[i], turns[slice_of[i]]
        gx = m[0] * inverse[0, 0] + m[1] * inverse[1, 0] + m[2] * inverse[2, 0]
        gy = m[0] * inverse[0, 1] + m[1] * inverse[1, 1] + m[2] * inverse[2, 1]
        gz = m[0] * inverse[0, 2] + m[1] * inverse[1, 2] + m[2] * inverse[2, 2]
        x, y, z = placed[i, 0] - centre[0], placed[i, 1] - centre[1], placed[i, 2] - centre[2]
        tx, ty, tz = y * gz - z * gy, z * gx - x * gz, x * gy - y * gx
        for k in range(6):
            tx += turn[0, k] * covariances[i, k]
            ty += turn[1, k] * covariances[i, k]
            tz += turn[2, k] * covariances[i, k]
        out[i, 0], out[i, 1], out[i, 2] = tx / arm, ty / arm, tz / arm
        out[i, 3], out[i, 4], out[i, 5] = gx, gy, gz
