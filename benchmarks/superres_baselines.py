"""Single-image super-resolution without Gaussians, each with the true forward model where it has one.

All take the coarse image and return (i, j, k) float32 on the lattice of the truth. ``A`` is the operator
from that lattice to the coarse image (`bids_gsrecon.imaging.sampling`).

``linear``, ``cubic``
    Spline interpolation at the voxel centres that the header gives.
``cubic+``
    The cubic image, corrected so that A x = y by an even spread over each coarse voxel of what is missing.
``tikhonov``
    min |A x - y|^2 + lambda |grad x|^2, by conjugate gradients.
``tv``
    min |A x - y|^2 / 2 + lambda TV(x), isotropic 3D total variation, by the primal-dual method of Chambolle
    and Pock with the data term solved in closed form (voxels that do not overlap).
``nlm``
    Non-local upsampling after Manjon et al. 2010: non-local means of weakening strength, each followed by
    the same correction.

Gradients are per mm, in units of the finest voxel size. lambda of ``tv`` is relative to the 99.5th percentile
of the positive coarse values.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.metrics import resample_to
from bids_gsrecon.imaging.nonlocal_means import local_deviation, nonlocal_means
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.sampling import VoxelSampling, make_sampling


def spline(coarse: Volume, fine: Lattice, order: int) -> np.ndarray:
    """Interpolation of order 1 (linear) or 3 (cubic); the nearest value beyond the edges."""
    return resample_to(coarse, fine, order=order)


class Consistency:
    """Turns an image into one with A x = y: what is missing is spread evenly over each coarse voxel.

    Exact where voxels do not overlap, and then the nearest such image if they are means over all their cells.
    """

    def __init__(self, coarse: Volume, fine: Lattice, sampling: VoxelSampling):
        row_gram(sampling)  # refuses voxels that overlap
        self.y, self.sampling = coarse.data, sampling
        sizes = coarse.lattice.voxel_sizes_mm
        whole = [SliceProfile('box', float(size), axis) for axis, size in enumerate(sizes)]
        self.cells = make_sampling(fine, coarse.lattice, whole)
        self.cell_gram = row_gram(self.cells)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        missing = self.y - self.sampling.forward(x)
        return x + self.cells.adjoint(missing / self.cell_gram)


def consistent_cubic(coarse: Volume, fine: Lattice, sampling: VoxelSampling) -> np.ndarray:
    """Cubic interpolation that explains the data exactly."""
    return Consistency(coarse, fine, sampling)(spline(coarse, fine, 3))


def tikhonov(
    coarse: Volume,
    fine: Lattice,
    sampling: VoxelSampling,
    strength: float,
    *,
    tolerance: float = 1e-6,
    n_iter: int = 300,
) -> np.ndarray:
    """Regularised least squares by preconditioned CG, from the cubic start, to a relative residual."""
    y = coarse.data
    weights = strength * _axis_weights(fine) ** 2

    def normal(x):
        return sampling.adjoint(sampling.forward(x)) + _laplacian(x, weights)

    x = spline(coarse, fine, 3)
    ones = np.ones(coarse.data.shape, np.float32)
    scale = 1.0 / (sampling.diagonal(ones) + np.float32(2 * weights.sum()))
    right = sampling.adjoint(y)
    residual = right - normal(x)
    direction = z = scale * residual
    energy, stop = _dot(residual, z), tolerance * np.sqrt(_dot(right, right))
    for _ in range(n_iter):
        if np.sqrt(_dot(residual, residual)) <= stop:
            break
        image = normal(direction)
        step = np.float32(energy / _dot(direction, image))
        x = x + step * direction
        residual = residual - step * image
        z = scale * residual
        energy, before = _dot(residual, z), energy
        direction = z + np.float32(energy / before) * direction
    return x


def total_variation(
    coarse: Volume,
    fine: Lattice,
    sampling: VoxelSampling,
    strength: float,
    *,
    tolerance: float = 2e-5,
    n_iter: int = 600,
) -> np.ndarray:
    """The TV solution, until an iteration changes it by less than ``tolerance`` (rms, of the unit range)."""
    gram = row_gram(sampling)
    unit = _unit(coarse)
    y = coarse.data / unit
    weights = _axis_weights(fine)
    norm = 2 * float(np.sqrt((weights**2).sum()))
    # Primal steps in units of intensity, dual ones in units of lambda: both reach their goal equally fast.
    tau, sigma = 0.05 / (strength * norm), strength / (0.05 * norm)
    x = spline(coarse, fine, 3) / unit
    ahead = x.copy()
    dual = np.zeros((3, *x.shape), np.float32)
    shrink = (tau / (1.0 + tau * gram)).astype(np.float32)
    for iteration in range(n_iter):
        _ascend(dual, ahead, weights, np.float32(sigma), np.float32(strength))
        v = _descend(dual, x, weights, np.float32(tau))
        new = v - sampling.adjoint(shrink * (sampling.forward(v) - y))
        ahead = 2 * new - x
        change = np.sqrt(_dot(new - x, new - x) / x.size)
        x = new
        if iteration > 20 and change < tolerance:
            break
    return x * np.float32(unit)


def row_gram(sampling: VoxelSampling) -> np.ndarray:
    """Diagonal of ``A A^T``, on the coarse grid, which must be all of it.

    Raises
    ------
    ValueError
        Voxels of the coarse image overlap.
    """
    shape = sampling.coarse_shape
    squares = [(band.weights.astype(np.float64) ** 2).sum(1) for band in sampling.bands]
    gram = np.einsum('i,j,k->ijk', *squares).astype(np.float32)
    rows = sampling.forward(sampling.adjoint(np.ones(shape, np.float32)))
    if not np.allclose(rows, gram, rtol=1e-3):
        raise ValueError('the coarse voxels overlap: this baseline needs those that do not')
    return gram


def nonlocal_upsampling(
    coarse: Volume,
    fine: Lattice,
    sampling: VoxelSampling,
    *,
    strength: float = 1.0,
    levels: int = 2,
    search: int = 3,
    tolerance: float = 0.007,
    n_iter: int = 20,
) -> np.ndarray:
    """Non-local means over (2 search + 1)^3 neighbours with 3^3 patches and `Consistency`, in turns.

    The published method goes on halving h until nothing changes; here it stops after ``levels``, as further
    ones lowered the quality on the development case.

    Parameters
    ----------
    strength
        First filter strength h, of the local standard deviation (3^3 voxels; at least a fiftieth of the
        image's). It is halved whenever the image has settled.
    levels
        How many strengths.
    tolerance
        Settled: the mean change of one turn is below this share of the image's standard deviation.
    n_iter
        Most turns per level.
    """
    consistent = Consistency(coarse, fine, sampling)
    positive = coarse.data[coarse.data > 0]
    deviation = float(positive.std()) if positive.size else float(coarse.data.std())
    x = consistent(spline(coarse, fine, 3))
    for level in range(levels):
        h = strength / 2**level
        for _ in range(n_iter):
            local = np.maximum(local_deviation(x), 0.02 * deviation)
            new = nonlocal_means(x, 1.0 / (np.float32(h) * local) ** 2, search)
            new = consistent(new)
            change = float(np.abs(new - x).mean(dtype=np.float64))
            x = new
            if change < tolerance * deviation:
                break
    return x


def _axis_weights(fine: Lattice) -> np.ndarray:
    """Finest voxel size over that of each axis (3,) float32: what a difference counts as a gradient."""
    sizes = fine.voxel_sizes_mm
    return (sizes.min() / sizes).astype(np.float32)


def _unit(coarse: Volume) -> float:
    positive = coarse.data[coarse.data > 0]
    return float(np.percentile(positive, 99.5)) if positive.size else 1.0


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a.ravel(), b.ravel()))


@njit(parallel=True, cache=True)
def _laplacian(x, weights):
    """Minus the divergence of the gradient, squared axis weights given; no flow through the edges."""
    n_i, n_j, n_k = x.shape
    out = np.empty_like(x)
    w_i, w_j, w_k = weights
    for i in prange(n_i):
        for j in range(n_j):
            for k in range(n_k):
                here = x[i, j, k]
                total = np.float32(0)
                if i > 0:
                    total += w_i * (here - x[i - 1, j, k])
                if i < n_i - 1:
                    total += w_i * (here - x[i + 1, j, k])
                if j > 0:
                    total += w_j * (here - x[i, j - 1, k])
                if j < n_j - 1:
                    total += w_j * (here - x[i, j + 1, k])
                if k > 0:
                    total += w_k * (here - x[i, j, k - 1])
                if k < n_k - 1:
                    total += w_k * (here - x[i, j, k + 1])
                out[i, j, k] = total
    return out


@njit(parallel=True, cache=True)
def _ascend(dual, x, weights, sigma, limit):
    """dual <- projection of dual + sigma grad x on vectors no longer than ``limit``."""
    n_i, n_j, n_k = x.shape
    w_i, w_j, w_k = weights
    for i in prange(n_i):
        for j in range(n_j):
            for k in range(n_k):
                here = x[i, j, k]
                p, q, r = dual[0, i, j, k], dual[1, i, j, k], dual[2, i, j, k]
                if i < n_i - 1:
                    p += sigma * w_i * (x[i + 1, j, k] - here)
                if j < n_j - 1:
                    q += sigma * w_j * (x[i, j + 1, k] - here)
                if k < n_k - 1:
                    r += sigma * w_k * (x[i, j, k + 1] - here)
                length = np.sqrt(p * p + q * q + r * r)
                scale = np.float32(1) if length <= limit else limit / length
                dual[0, i, j, k] = p * scale
                dual[1, i, j, k] = q * scale
                dual[2, i, j, k] = r * scale


@njit(parallel=True, cache=True)
def _descend(dual, x, weights, tau):
    """x - tau grad^T dual."""
    n_i, n_j, n_k = x.shape
    w_i, w_j, w_k = weights
    out = np.empty_like(x)
    for i in prange(n_i):
        for j in range(n_j):
            for k in range(n_k):
                total = -w_i * dual[0, i, j, k] - w_j * dual[1, i, j, k] - w_k * dual[2, i, j, k]
                if i > 0:
                    total += w_i * dual[0, i - 1, j, k]
                if j > 0:
                    total += w_j * dual[1, i, j - 1, k]
                if k > 0:
                    total += w_k * dual[2, i, j, k - 1]
                out[i, j, k] = x[i, j, k] - tau * total
    return out
