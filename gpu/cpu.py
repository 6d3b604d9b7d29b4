"""The CPU backend: numba kernels over explicit SIMD, float32 sums, any x86-64 or aarch64."""

from __future__ import annotations

import numpy as np
import torch
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


@njit(cache=True, parallel=True)
def _pick_rows(source, order, target):
    for j in prange(len(target)):
        prefetch(source, order[min(j + 32, len(target) - 1)] * source.shape[1])
        for c in range(source.shape[1]):
            target[j, c] = source[order[j], c]


def _array(tensor: torch.Tensor) -> np.ndarray:
    """C-contiguous float32 or float64 array of a tensor."""
    tensor = tensor.detach()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.contiguous().numpy()


def _padded(sums: torch.Tensor) -> PaddedVolume:
    """(channels, nx, ny, nz) as the kernels want it; a copy unless they made it."""
    volume = padded_view(sums)
    if volume is None:
        volume = PaddedVolume(sums.shape[1:], len(sums), zero=False)
        copy_rows(sums.detach().permute(3, 2, 0, 1).float().numpy(), volume.flat, volume.layout)
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


class CpuPlan:
    """Sorted and packed Gaussians; see `bids_gsrecon.gpu.backend.Plan`."""

    def __init__(self, means, covariances, log_weights, shape, cutoff, n_threads):
        self.shape = check_geometry(means, covariances, log_weights, shape, cutoff)
        self.n_gaussians = len(means)
        self._dtypes = (means.dtype, covariances.dtype, log_weights.dtype)
        self._cutoff = float(cutoff)
        self._n_threads = n_threads
        with thread_limit(n_threads):
            self._records = make_records(
                _array(means), _array(covariances), _array(log_weights), self.shape, self._cutoff
            )

    def _sorted_amplitudes(self, amplitudes: torch.Tensor) -> np.ndarray:
        s = self._records.schedule
        out = np.empty((s.n_used, amplitudes.shape[1]), np.float32)
        _pick_rows(_array(amplitudes), s.order, out)
        return out

    def forward(self, amplitudes: torch.Tensor) -> torch.Tensor:
        """Sums (1 + C, nx, ny, nz), float32, x fastest in memory."""
        check_amplitudes(amplitudes, len(self._records.box))
        with thread_limit(self._n_threads):
            volume = _scatter(
                self._records,
                self._sorted_amplitudes(amplitudes),
                self._cutoff,
                self.shape,
                amplitudes.shape[1],
            )
        return torch.from_numpy(volume.as_public())

    def backward(self, amplitudes: torch.Tensor, grad_sums: torch.Tensor) -> Gradients:
        """Gradients, computed in float32, in the dtypes of the inputs."""
        n = len(self._records.box)
        check_amplitudes(amplitudes, n, grad_sums, self.shape)
        r = self._records
        n_channels = amplitudes.shape[1]
        grads = [np.zeros(s, np.float32) for s in ((n, 3), (n, 6), (n,), (n, n_channels))]
        with thread_limit(self._n_threads):
            volume = _padded(grad_sums)
            _backward.gather(
                r.narrow, r.narrow.view(np.int32), r.wide, self._sorted_amplitudes(amplitudes),
                self._cutoff, volume.flat, volume.layout, self.shape, r.schedule.order,
                *grads, get_num_threads(),
            )  # fmt: skip
        dtypes = (*self._dtypes, amplitudes.dtype)
        return Gradients(*(torch.from_numpy(g).to(dtype) for g, dtype in zip(grads, dtypes)))

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """``sum_i values_i w_i(x)``, (nx, ny, nz) float32, x fastest in memory."""
        check_values(values, self.n_gaussians)
        r = self._records
        with thread_limit(self._n_threads):
            volume = PaddedVolume(self.shape, 1, zero=True)
            _linear.scatter(
                r.narrow, r.narrow.view(np.int32), r.wide, _array(values.float()), r.schedule.order,
                self._cutoff, volume.flat, volume.layout, self.shape[0], r.schedule.tasks, r.schedule.rounds,
                get_num_threads(),
            )  # fmt: skip
        return torch.from_numpy(volume.as_public()[0])

    def gather(self, image: torch.Tensor) -> torch.Tensor:
        """``sum_x image(x) w_i(x)``, (N,) float32."""
        check_image(image, self.shape)
        r = self._records
        out = np.zeros(self.n_gaussians, np.float32)
        with thread_limit(self._n_threads):
            volume = _padded(image[None])
            _linear.gather(
                r.narrow, r.narrow.view(np.int32), r.wide, self._cutoff, volume.flat, volume.layout,
                self.shape, r.schedule.order, out, get_num_threads(),
            )  # fmt: skip
        return torch.from_numpy(out)


class CpuBackend(PlannedBackend):
    """numba kernels on ``n_threads`` threads (None: numba's current number); same bits at any number."""

    name = 'cpu'

    def __init__(self, n_threads: int | None = None):
        self._n_threads = n_threads

    def plan(self, means, covariances, log_weights, shape, cutoff=DEFAULT_CUTOFF) -> CpuPlan:
        """Cull, sort and pack."""
        return CpuPlan(means, covariances, log_weights, shape, cutoff, self._n_threads)

    def splat2d(self, parameters, shape, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
        """The frames of `bids_gsrecon.gpu.splat2d.splat`."""
        shape = check_splat2d(parameters, shape)
        with thread_limit(self._n_threads):
            return torch.from_numpy(splat2d.splat(_array(parameters), shape, cutoff=float(cutoff)))

    def splat2d_gradient(self, parameters, planes, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
        """The gradient of `bids_gsrecon.gpu.splat2d.splat_gradient`, in the dtype of the parameters."""
        check_splat2d(parameters, planes.shape[2:], planes)
        with thread_limit(self._n_threads):
            gradient = splat2d.splat_gradient(_array(parameters), _array(planes), cutoff=float(cutoff))
        return torch.from_numpy(gradient).to(parameters.dtype)
