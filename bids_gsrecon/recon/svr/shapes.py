"""Anisotropic Gaussians on the grid: thin across the edges of the anatomy, long along them.

Each is a bundle of unit mass of the narrow isotropic Gaussians of its own and the 26 neighbouring grid points::

    f(x) = sum_k a_k sum_o w_k(o) N(x - x_k - h o; (s h)^2 I)      w_k(o) ~ exp(-o^T D_k^-1 o / 2)

so that its covariance is about ``h^2 (s^2 I + D_k)``, and what pixels see of it is what they see of the narrow ones
after a sum over neighbours. The shapes come from the structure tensor T of a first reconstruction, with an inverse that
needs no eigenvectors: ``D_k^-1 = (T_k + n I) / (n (l^2 - s^2))``, which is wide where the image is flat (T small beside
n: standard deviation l) and vanishes across an edge.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from scipy import ndimage

from bids_gsrecon.gpu import side_by_side
from bids_gsrecon.recon.svr.view import GRID_SIGMA, View
from bids_gsrecon.solvers.reductions import median

# Chosen on one simulated case (at the scale of a fetal brain); in spacings of the grid.
NARROW_SIGMA = 0.55
LONG_SIGMA = 0.9
SCALE = 1.0  # of the structure tensor: of the gradient, and of the mean of its products
FLAT = 0.3  # of the median trace of the structure tensor: n
BRIGHT = 0.1  # of the maximum: where that median is taken

# Half of the neighbours, in (x, y, z); the others lie opposite and have the same weights.
_HALF = np.array([
    (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 0, -1), (0, 1, 1), (0, 1, -1),
    (1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1),
])  # fmt: skip
_SIX = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


class Shapes:
    """The bundles of a grid; images are (nx, ny, nz), x fastest, as in `bids_gsrecon.recon.svr.volume`."""

    def __init__(self, tensor: np.ndarray, flat: float):
        """``tensor`` (6, nz, ny, nx) float32: xx, xy, xz, yy, yz, zz of T; ``flat``: n."""
        scale = 1.0 / (flat * (LONG_SIGMA**2 - NARROW_SIGMA**2))
        # The first is the weight of the Gaussian's own grid point; on the faces of the grid it is all there is.
        self._weights = np.zeros((1 + len(_HALF), *tensor.shape[1:]), np.float32)
        _make_weights(tensor, _HALF, np.float32(flat), np.float32(scale), self._weights)

    @classmethod
    def of(cls, amplitudes: np.ndarray) -> Shapes:
        """From the structure of an image, given as amplitudes of the grid's ordinary Gaussians."""
        image = np.ascontiguousarray(amplitudes.T, np.float32)  # [z, y, x]
        sigma = np.hypot(SCALE, GRID_SIGMA)
        orders = (0, 0, 1), (0, 1, 0), (1, 0, 0)
        derivative = side_by_side(lambda order: ndimage.gaussian_filter(image, sigma, order=order), orders)
        tensor = np.empty((len(_SIX), *image.shape), np.float32)

        def fill(k):
            i, j = _SIX[k]
            ndimage.gaussian_filter(derivative[i] * derivative[j], SCALE, output=tensor[k])

        side_by_side(fill, range(len(_SIX)))
        trace = tensor[0] + tensor[3] + tensor[5]
        bright = image > BRIGHT * image.max()
        typical = median(trace[bright]) if bright.any() else 0.0
        return cls(tensor, max(FLAT * typical, 1e-12))

    def spread(self, amplitudes: np.ndarray) -> np.ndarray:
        """Amplitudes of the narrow Gaussians."""
        return self._apply(_spread, amplitudes)

    def collect(self, values: np.ndarray) -> np.ndarray:
        """The transpose of `spread`."""
        return self._apply(_collect, values)

    def _apply(self, kernel, image):
        image = np.ascontiguousarray(image.T, np.float32)
        out = np.empty_like(image)
        kernel(image, self._weights, _HALF, out)
        return out.T


class ShapedView:
    """Pixels that see anisotropic Gaussians: a `View` of the narrow ones, for `solve_volume`."""

    def __init__(self, narrow: View, shapes: Shapes):
        self.narrow, self.shapes = narrow, shapes
        self.pixels, self.lattice = narrow.pixels, narrow.lattice

    def forward(self, amplitudes: np.ndarray) -> np.ndarray:
        """(N,) float32 values of the pixels."""
        return self.narrow.forward(self.shapes.spread(amplitudes))

    def adjoint(self, values: np.ndarray) -> np.ndarray:
        """The transpose of `forward`: (nx, ny, nz) float32."""
        return self.shapes.collect(self.narrow.adjoint(values))


@njit(parallel=True, cache=True)
def _make_weights(tensor, half, flat, scale, out):
    """Normalised; Gaussians within two points of the grid's edge are not spread (so that no mass is lost)."""
    nz, ny, nx = out.shape[1:]
    for z in prange(nz):
        for y in range(ny):
            for x in range(nx):
                out[0, z, y, x] = 1.0
                if min(x, y, z) < 2 or x > nx - 3 or y > ny - 3 or z > nz - 3:
                    continue
                total = np.float32(1)
                for k in range(len(half)):
                    a, b, c = half[k, 0], half[k, 1], half[k, 2]
                    q = a * a * tensor[0, z, y, x] + b * b * tensor[3, z, y, x] + c * c * tensor[5, z, y, x]
                    cross = a * b * tensor[1, z, y, x] + a * c * tensor[2, z, y, x]
                    q += 2 * (cross + b * c * tensor[4, z, y, x]) + flat * (a * a + b * b + c * c)
                    w = np.float32(np.exp(-0.5 * scale * q))
                    out[1 + k, z, y, x] = w
                    total += 2 * w
                for k in range(len(half) + 1):
                    out[k, z, y, x] /= total


@njit(parallel=True, cache=True)
def _spread(image, weights, half, out):
    nz, ny, nx = image.shape
    for z in prange(nz):
        for y in range(ny):
            own, w, source = out[z, y], weights[0, z, y], image[z, y]
            for x in range(nx):
                own[x] = w[x] * source[x]
            if min(z, y) == 0 or z == nz - 1 or y == ny - 1:
                continue
            for k in range(len(half)):
                a, b, c = half[k, 0], half[k, 1], half[k, 2]
                _add_products(
                    own, weights[k + 1, z - c, y - b], image[z - c, y - b],
                    weights[k + 1, z + c, y + b], image[z + c, y + b], a,
                )  # fmt: skip


@njit(inline='always')
def _add_products(own, w_before, before, w_after, after, a):
    """Rows that begin at zero, which is what vectorises."""
    n = len(own) - 2
    target = own[1:]
    w_before, before = w_before[1 - a :], before[1 - a :]
    w_after, after = w_after[1 + a :], after[1 + a :]
    for x in range(n):
        target[x] += w_before[x] * before[x] + w_after[x] * after[x]


@njit(parallel=True, cache=True)
def _collect(image, weights, half, out):
    nz, ny, nx = image.shape
    for z in prange(nz):
        for y in range(ny):
            own, w, source = out[z, y], weights[0, z, y], image[z, y]
            for x in range(nx):
                own[x] = w[x] * source[x]
            if min(z, y) == 0 or z == nz - 1 or y == ny - 1:
                continue
            for k in range(len(half)):
                a, b, c = half[k, 0], half[k, 1], half[k, 2]
                _add_sums(own, weights[k + 1, z, y], image[z - c, y - b], image[z + c, y + b], a)


@njit(inline='always')
def _add_sums(own, w, before, after, a):
    n = len(own) - 2
    target, w = own[1:], w[1:]
    before, after = before[1 - a :], after[1 + a :]
    for x in range(n):
        target[x] += w[x] * (before[x] + after[x])
