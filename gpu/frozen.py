"""Frozen geometry: rendering as a stored linear operator from amplitudes to images.

Amplitude solves apply the same Gaussians dozens of times. Storing every Gaussian's weights once, already
divided by S0 and averaged over the slice profile, makes a product several times cheaper than rendering,
and one copy serves both A and its transpose.

Weights are stored as 16-bit fractions of each Gaussian's largest weight and summed in float32. The error
is at most 8e-6 of that largest weight, the same absolute error everywhere in the box, which is 30 times
less than float16 would cost at the peak and, unlike float16, needs no instruction that some machines lack.
Both products use the same rounded weights, so that they are each other's transpose to float32 rounding.
"""

from __future__ import annotations

import math

import numpy as np
from numba import get_num_threads

from bids_gsrecon.gpu import _frozen_kernels as kernels
from bids_gsrecon.gpu._binning import Schedule, make_schedule
from bids_gsrecon.gpu._records import make_boxes
from bids_gsrecon.gpu.autograd import COMPOSITIONS
from bids_gsrecon.gpu.backend import DEFAULT_CUTOFF, DEFAULT_EPS, check_geometry

_PAD = 16
_SIX = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])


def _numpy(array) -> np.ndarray:
    array = array.detach().cpu().numpy() if hasattr(array, 'detach') else np.asarray(array)
    return np.ascontiguousarray(array, dtype=np.float64 if array.dtype == np.float64 else np.float32)


def _bands(cell_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last slice (n_fine,) that each fine plane contributes to (last < first where none).

    Third, the weights from the first slice on: (n_fine, width of the widest band).
    """
    n_slices, n_fine = cell_weights.shape
    used = cell_weights != 0
    first = np.where(used.any(0), used.argmax(0), 1 << 30)
    last = np.where(used.any(0), n_slices - 1 - used[::-1].argmax(0), -1)
    band = np.zeros((n_fine, max(1, int((last - first).max()) + 1)), np.float32)
    for f in range(n_fine):
        if last[f] >= first[f]:
            band[f, : last[f] - first[f] + 1] = cell_weights[first[f] : last[f] + 1, f]
    return first.astype(np.int32), last.astype(np.int32), band


class FrozenWeights:
    """The operator A with A[x, i] = the (averaged) weight of Gaussian i in voxel x.

    Make one with `build`. Products are bitwise independent of the number of threads.

    Attributes
    ----------
    shape
        (nx, ny, nz) of the images.
    n_gaussians
        Columns of A.
    """

    def __init__(self, shape, axes, weights, starts, boxes, scales, schedule: Schedule):
        self.shape = shape
        self.n_gaussians = len(schedule.order)
        self._axes = axes  # the stored axes in the kernels' order: fastest first, slices last
        self._weights = weights
        self._starts = starts
        self._boxes = boxes
        self._scales = scales
        self._schedule = schedule
        inner = [shape[a] for a in axes]
        self._pitch = inner[0] + _PAD
        self._inner = tuple(inner)

    @classmethod
    def build(
        cls,
        means,
        covariances,
        log_weights,
        shape,
        *,
        composition: str,
        cutoff: float = DEFAULT_CUTOFF,
        cell_weights=None,
        axis: int = 2,
        divisor=None,
        eps: float = DEFAULT_EPS,
    ) -> FrozenWeights:
        """Compute and store the weights.

        Parameters
        ----------
        means, covariances, log_weights
            (N, 3), (N, 6), (N,) in voxels of the lattice ``shape``; arrays or tensors.
        shape
            (nx, ny, nz) of the lattice on which weights are evaluated. With a slice profile this is the
            *fine* lattice, with fine planes along ``axis``.
        composition
            ``sum``: w; ``normalized``: w / (S0 + eps), zero where no Gaussian reaches.
        cutoff
            Mahalanobis distance at which a Gaussian ends.
        cell_weights
            (n_slices, n_fine) weights of the fine planes in every slice
            (`bids_gsrecon.imaging.profile.SliceProfile.cell_weights`), or None: no averaging. Images then
            have ``n_slices`` planes along ``axis``.
        axis
            Stored axis (0, 1, 2) along which slices are stacked.
        divisor
            Array of ``shape`` to divide by in place of S0 (``normalized`` only), for Gaussians that are a
            part of a larger set.
        eps
            Added to S0, as in `bids_gsrecon.gpu.compose`.

        Raises
        ------
        ValueError
            For arrays that do not fit, and Gaussians that are not finite or not positive definite.
        """
        means, covariances, log_weights = _numpy(means), _numpy(covariances), _numpy(log_weights)
        shape = check_geometry(means, covariances, log_weights, shape, cutoff)
        if composition not in COMPOSITIONS:
            raise ValueError(f'unknown composition {composition!r}: one of {COMPOSITIONS}')
        if composition == 'sum' and divisor is not None:
            raise ValueError('a divisor has no meaning in the sum composition')
        if axis not in (0, 1, 2):
            raise ValueError(f'the slice axis must be 0, 1 or 2, not {axis}')
        axes = [a for a in range(3) if a != axis] + [axis]
        means, covariances = _permuted(means, covariances, axes)
        fine = tuple(shape[a] for a in axes)
        if cell_weights is None:
            first = last = np.arange(fine[2], dtype=np.int32)
            profile = np.ones((fine[2], 1), np.float32)
            n_slices = fine[2]
        else:
            cell_weights = np.asarray(cell_weights, dtype=np.float32)
            if cell_weights.ndim != 2 or cell_weights.shape[1] != fine[2] or len(cell_weights) == 0:
                raise ValueError(f'cell_weights must be (n_slices, {fine[2]}), not {cell_weights.shape}')
            first, last, profile = _bands(cell_weights)
            n_slices = len(cell_weights)
        inverse, layout = _inverse(
            means, covariances, log_weights, shape, axes, composition, cutoff, divisor, eps
        )
        box = make_boxes(means, covariances, log_weights, fine, cutoff)
        slice_box = np.empty_like(box)
        kernels.slice_boxes(box, first, last, slice_box)
        schedule = make_schedule(slice_box, (*fine[:2], n_slices))
        n = schedule.n_used
        boxes = slice_box[schedule.order[:n]]
        starts = np.zeros(n + 1, np.int64)
        sizes = (boxes[:, 1::2] - boxes[:, ::2] + 1).astype(np.int64)
        np.cumsum(sizes.prod(1), out=starts[1:])
        weights = np.empty(starts[-1] + 2 * _PAD, np.uint16)
        weights[starts[-1] :] = 0
        scales = np.empty(n, np.float32)
        level = np.float32(math.exp(-0.5 * cutoff * cutoff))
        largest = int(((sizes[:, 0] + 15) // 16 * 16 * sizes[:, 1] * sizes[:, 2]).max(initial=0))
        kernels.fill(
            means, covariances, log_weights, level, box, slice_box, profile, first, last, inverse, layout,
            schedule.order, starts, largest, weights, scales, get_num_threads(),
        )  # fmt: skip
        out_shape = list(shape)
        out_shape[axis] = n_slices
        return cls(tuple(out_shape), tuple(axes), weights, starts, boxes, scales, schedule)

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        arrays = (self._weights, self._starts, self._boxes, self._scales, self._schedule.order)
        return sum(a.nbytes for a in arrays)

    @staticmethod
    def estimate_nbytes(
        covariances, *, cutoff: float = DEFAULT_CUTOFF, axis: int = 2, slice_spacing=None, slice_width=None
    ) -> int:
        """Memory that `build` will hold at most, bytes, from the covariances (N, 6) on the fine lattice.

        ``slice_spacing`` and ``slice_width`` (the profile's full extent): voxels of the fine lattice; None
        without a slice profile. Gaussians that the lattice's borders cut need less.
        """
        covariances = np.asarray(covariances)
        extent = 2.0 * cutoff * np.sqrt(np.asarray(covariances, dtype=np.float64)[:, [0, 3, 5]])
        voxels = extent + 1.0
        if slice_spacing is not None:
            width = slice_spacing if slice_width is None else slice_width
            voxels[:, axis] = (extent[:, axis] + width) / slice_spacing + 1.0
        return int(2 * voxels.prod(1).sum() + 40 * len(voxels))

    def forward(self, amplitudes) -> np.ndarray:
        """A a: image (nx, ny, nz) float32 for amplitudes (N,), (C, nx, ny, nz) for (N, C)."""
        amplitudes = np.asarray(amplitudes, dtype=np.float32)
        if amplitudes.ndim not in (1, 2) or len(amplitudes) != self.n_gaussians:
            n = self.n_gaussians
            raise ValueError(f'amplitudes must be ({n},) or ({n}, C), not {amplitudes.shape}')
        if amplitudes.ndim == 2:
            images = [self.forward(column) for column in amplitudes.T]
            return np.stack(images) if images else np.zeros((0, *self.shape), np.float32)
        image = self._empty_image()
        s = self._schedule
        kernels.multiply(
            self._weights, self._starts, self._boxes, self._scales, s.order, np.ascontiguousarray(amplitudes),
            image, self._layout, s.tasks, s.rounds, get_num_threads(),
        )  # fmt: skip
        return self._as_public(image)

    def adjoint(self, image) -> np.ndarray:
        """A^T y: amplitudes (N,) float32 for an image (nx, ny, nz), (N, C) for (C, nx, ny, nz)."""
        image = np.asarray(image, dtype=np.float32)
        if image.ndim == 4:
            columns = [self.adjoint(channel) for channel in image]
            return np.stack(columns, 1) if columns else np.zeros((self.n_gaussians, 0), np.float32)
        return self._gather(image, False)

    def column_sums_of_squares(self, weights=None) -> np.ndarray:
        """Diagonal (N,) float32 of A^T W A, for Jacobi preconditioning; ``weights``: W, an image, or None."""
        if weights is None:
            weights = np.broadcast_to(np.float32(1), self.shape)
        return self._gather(np.asarray(weights, dtype=np.float32), True)

    @property
    def _layout(self):
        return self._pitch, self._pitch * self._inner[1]

    def _empty_image(self) -> np.ndarray:
        return np.zeros(self._pitch * self._inner[1] * self._inner[2] + _PAD, np.float32)

    def _as_public(self, image: np.ndarray) -> np.ndarray:
        """The padded [slice][y][x] buffer as an array of ``shape`` (x fastest in memory)."""
        block = image[:-_PAD].reshape(self._inner[2], self._inner[1], self._pitch)[:, :, : self._inner[0]]
        return np.ascontiguousarray(block).transpose(np.argsort(self._axes[::-1]))

    def _gather(self, image: np.ndarray, squared: bool) -> np.ndarray:
        if image.shape != self.shape:
            raise ValueError(f'the image must be {self.shape}, not {image.shape}')
        buffer = self._empty_image()
        block = buffer[:-_PAD].reshape(self._inner[2], self._inner[1], self._pitch)
        block[:, :, : self._inner[0]] = image.transpose(self._axes[::-1])
        out = np.zeros(self.n_gaussians, np.float32)
        kernels.multiply_transposed(
            self._weights, self._starts, self._boxes, self._scales, self._schedule.order, buffer,
            self._layout, squared, out, get_num_threads(),
        )  # fmt: skip
        return out


def _permuted(means, covariances, axes):
    """Geometry with its axes in the order ``axes``."""
    six = [_SIX[axes[r], axes[c]] for r, c in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
    return np.ascontiguousarray(means[:, axes]), np.ascontiguousarray(covariances[:, six])


def _inverse(means, covariances, log_weights, shape, axes, composition, cutoff, divisor, eps):
    """1 / (S0 + eps) as a flat padded [z][y][x] array, and its (row, plane); one zero for ``sum``."""
    if composition == 'sum':
        return np.zeros(1, np.float32), (0, 0)
    fine = tuple(shape[a] for a in axes)
    if divisor is None:
        from bids_gsrecon.gpu.cpu import sum_of_weights

        s0 = sum_of_weights(means, covariances, log_weights, fine, cutoff)  # [z][y][x]
    else:
        divisor = _numpy(divisor)
        if divisor.shape != shape:
            raise ValueError(f'the divisor must be {shape}, not {divisor.shape}')
        s0 = divisor.transpose(axes[::-1])
    pitch = fine[0] + _PAD
    inverse = np.zeros(pitch * fine[1] * fine[2] + _PAD, np.float32)
    block = inverse[:-_PAD].reshape(fine[2], fine[1], pitch)[:, :, : fine[0]]
    np.divide(1.0, s0 + np.float32(eps), out=block, where=s0 > 0)
    return inverse, (pitch, pitch * fine[1])
