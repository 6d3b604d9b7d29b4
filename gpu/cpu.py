"""The CPU backend: numba kernels over explicit SIMD, float32 sums, any x86-64 or aarch64.

The work is done on numpy arrays; torch is loaded only where tensors come in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import get_num_threads, njit, prange

from bids_gsrecon.gpu import _backward, _forward, _linear, splat2d
from bids_gsrecon.gpu._records import make_records
from bids_gsrecon.gpu._simd import prefetch
from bids_gsrecon.gpu._volume import PaddedVolume, copy_rows, padded_view
from bids_gsrecon.gpu.backend import (
    DEFAULT_CUTOFF,
    Gradients,
    PlannedBackend,
    check_amplitudes,
    check_geometry,
    check_image,
    check_splat2d,
    check_values,
)
from bids_gsrecon.gpu.threads import thread_limit

if TYPE_CHECKING:
    import torch

    from bids_gsrecon.gpu._tensors import TensorPlan


@njit(cache=True, parallel=True)
def _pick_rows(source, order, target):
    for j in prange(len(target)):
        prefetch(source, order[min(j + 32, len(target) - 1)] * source.shape[1])
        for c in range(source.shape[1]):
            target[j, c] = source[order[j], c]


def _floats(array: np.ndarray) -> np.ndarray:
    """C-contiguous float32 or float64."""
    dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.float32
    return np.ascontiguousarray(array, dtype)


def _padded(sums: np.ndarray) -> PaddedVolume:
    """(channels, nx, ny, nz) as the kernels want it; a copy unless they made it."""
    volume = padded_view(sums)
    if volume is None:
        volume = PaddedVolume(sums.shape[1:], len(sums), zero=False)
        source = sums.transpose(3, 2, 0, 1)
        copy_rows(source.astype(np.float32, copy=False), volume.flat, volume.layout)
    return volume


def _scatter(records, amplitudes, cutoff, shape, n_channels) -> PaddedVolume:
    volume = PaddedVolume(shape, 1 + n_channels, zero=True)
    _forward.scatter(
        records.narrow, records.narrow.view(np.int32), records.wide, amplitudes, float(cutoff), volume.flat,
        volume.layout, shape[0], records.schedule.tasks, records.schedule.rounds, get_num_threads(),
    )  # fmt: skip
    return volume


def sum_of_weights(means, covariances, log_weights, shape, cutoff) -> np.ndarray:
    """S0 as an array [z, y, x], for C-contiguous arrays."""
    records = make_records(means, covariances, log_weights, shape, cutoff)
    none = np.empty((len(records.narrow), 0), np.float32)
    return _scatter(records, none, cutoff, shape, 0).rows[:, :, 0]


class ArrayPlan:
    """Sorted and packed Gaussians; `bids_gsrecon.gpu.backend.Plan` on numpy arrays, all results float32."""

    def __init__(self, means, covariances, log_weights, shape, cutoff, n_threads=None):
        self.shape = check_geometry(means, covariances, log_weights, shape, cutoff)
        self.n_gaussians = len(means)
        self._cutoff = float(cutoff)
        self._n_threads = n_threads
        with thread_limit(n_threads):
            geometry = _floats(means), _floats(covariances), _floats(log_weights)
            self._records = make_records(*geometry, self.shape, self._cutoff)

    def _sorted_amplitudes(self, amplitudes: np.ndarray) -> np.ndarray:
        s = self._records.schedule
        out = np.empty((s.n_used, amplitudes.shape[1]), np.float32)
        _pick_rows(_floats(amplitudes), s.order, out)
        return out

    def forward(self, amplitudes: np.ndarray) -> np.ndarray:
        """Sums (1 + C, nx, ny, nz), x fastest in memory."""
        check_amplitudes(amplitudes, self.n_gaussians)
        with thread_limit(self._n_threads):
            rows = self._sorted_amplitudes(amplitudes)
            return _scatter(self._records, rows, self._cutoff, self.shape, rows.shape[1]).as_public()

    def backward(self, amplitudes: np.ndarray, grad_sums: np.ndarray) -> Gradients:
        """Gradients of ``(grad_sums * sums).sum()``."""
        n = self.n_gaussians
        check_amplitudes(amplitudes, n, grad_sums, self.shape)
        r = self._records
        grads = [np.zeros(s, np.float32) for s in ((n, 3), (n, 6), (n,), (n, amplitudes.shape[1]))]
        with thread_limit(self._n_threads):
            volume = _padded(grad_sums)
            _backward.gather(
                r.narrow, r.narrow.view(np.int32), r.wide, self._sorted_amplitudes(amplitudes),
                self._cutoff, volume.flat, volume.layout, self.shape, r.schedule.order,
                *grads, get_num_threads(),
            )  # fmt: skip
        return Gradients(*grads)

    def scatter(self, values: np.ndarray) -> np.ndarray:
        """``sum_i values_i w_i(x)``, (nx, ny, nz), x fastest in memory."""
        check_values(values, self.n_gaussians)
        values = np.ascontiguousarray(values, np.float32)
        r = self._records
        with thread_limit(self._n_threads):
            in_copies = _linear.few_bricks(r.schedule.n_used, PaddedVolume.size((1, *self.shape)))
            volume = PaddedVolume(self.shape, 1, zero=not in_copies)
            given = r.narrow, r.narrow.view(np.int32), r.wide, values, r.schedule.order, self._cutoff
            target = volume.flat, volume.layout
            if in_copies:
                copies = np.empty((_linear.N_COPIES, len(volume.flat)), np.float32)
                _linear.scatter_in_copies(*given, *target, self.shape, copies, get_num_threads())
            else:
                schedule = r.schedule.tasks, r.schedule.rounds, get_num_threads()
                _linear.scatter(*given, *target, self.shape[0], *schedule)
        return volume.as_public()[0]

    def gather(self, image: np.ndarray) -> np.ndarray:
        """``sum_x image(x) w_i(x)``, (N,)."""
        check_image(image, self.shape)
        r = self._records
        out = np.zeros(self.n_gaussians, np.float32)
        with thread_limit(self._n_threads):
            volume = _padded(image[None])
            _linear.gather(
                r.narrow, r.narrow.view(np.int32), r.wide, self._cutoff, volume.flat, volume.layout,
                self.shape, r.schedule.order, out, get_num_threads(),
            )  # fmt: skip
        return out


class CpuBackend(PlannedBackend):
    """numba kernels on ``n_threads`` threads (None: numba's current number); same bits at any number."""

    name = 'cpu'

    def __init__(self, n_threads: int | None = None):
        self._n_threads = n_threads

    def array_plan(self, means, covariances, log_weights, shape, cutoff=DEFAULT_CUTOFF) -> ArrayPlan:
        """Cull, sort and pack."""
        return ArrayPlan(means, covariances, log_weights, shape, cutoff, self._n_threads)

    def plan(self, means, covariances, log_weights, shape, cutoff=DEFAULT_CUTOFF) -> TensorPlan:
        """`array_plan` for tensors."""
        from bids_gsrecon.gpu._tensors import TensorPlan

        return TensorPlan(self, means, covariances, log_weights, shape, cutoff)

    def splat2d(self, parameters, shape, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
        """The frames of `bids_gsrecon.gpu.splat2d.splat`."""
        import torch

        shape = check_splat2d(parameters, shape)
        with thread_limit(self._n_threads):
            frames = splat2d.splat(_floats(parameters.detach().numpy()), shape, cutoff=float(cutoff))
        return torch.from_numpy(frames)

    def splat2d_gradient(self, parameters, planes, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
        """The gradient of `bids_gsrecon.gpu.splat2d.splat_gradient`, in the dtype of the parameters."""
        import torch

        check_splat2d(parameters, planes.shape[2:], planes)
        arrays = _floats(parameters.detach().numpy()), _floats(planes.detach().numpy())
        with thread_limit(self._n_threads):
            gradient = splat2d.splat_gradient(*arrays, cutoff=float(cutoff))
        return torch.from_numpy(gradient).to(parameters.dtype)
