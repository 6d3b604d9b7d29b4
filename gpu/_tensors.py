"""Plans on arrays for tensors, and plans on tensors for arrays."""

from __future__ import annotations

import numpy as np
import torch

from bids_gsrecon.gpu._volume import PaddedVolume, padded_layout
from bids_gsrecon.gpu.backend import Gradients


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.cpu().numpy()


def _volume(tensor: torch.Tensor) -> np.ndarray:
    """An array of a tensor (channels, nx, ny, nz) that knows the memory behind its last voxel: saves a copy."""
    n_c, nx, ny = tensor.shape[:3]
    pitch, row, plane = padded_layout(nx, ny, n_c)
    strides = pitch, 1, row, plane
    on_cpu = tensor.dtype == torch.float32 and tensor.device.type == 'cpu'
    if not on_cpu or tensor.stride()[n_c == 1 :] != strides[n_c == 1 :]:  # see `padded_view`
        return _array(tensor)
    size = PaddedVolume.size(tensor.shape)
    if tensor.untyped_storage().nbytes() // 4 - tensor.storage_offset() < size:
        return _array(tensor)
    flat = tensor.detach().as_strided((size,), (1,)).numpy()
    return PaddedVolume.around(flat, tensor.shape).as_public()


class TensorPlan:
    """The plan of the cpu backend on tensors: computed in float32, gradients in the dtypes of the inputs."""

    def __init__(self, backend, means, covariances, log_weights, shape, cutoff):
        self._plan = backend.array_plan(
            _array(means), _array(covariances), _array(log_weights), shape, cutoff
        )
        self._dtypes = means.dtype, covariances.dtype, log_weights.dtype
        self.shape, self.n_gaussians = self._plan.shape, self._plan.n_gaussians

    def forward(self, amplitudes: torch.Tensor) -> torch.Tensor:
        """Sums (1 + C, nx, ny, nz), float32, x fastest in memory."""
        return torch.from_numpy(self._plan.forward(_array(amplitudes)))

    def backward(self, amplitudes: torch.Tensor, grad_sums: torch.Tensor) -> Gradients:
        """Gradients of ``(grad_sums * sums).sum()``."""
        grads = self._plan.backward(_array(amplitudes), _volume(grad_sums))
        dtypes = (*self._dtypes, amplitudes.dtype)
        return Gradients(*(torch.from_numpy(g).to(dtype) for g, dtype in zip(grads, dtypes)))

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """``sum_i values_i w_i(x)``, (nx, ny, nz) float32, x fastest in memory."""
        return torch.from_numpy(self._plan.scatter(_array(values)))

    def gather(self, image: torch.Tensor) -> torch.Tensor:
        """``sum_x image(x) w_i(x)``, (N,) float32."""
        return torch.from_numpy(self._plan.gather(_volume(image[None])[0]))


class PlanOnArrays:
    """Any plan on tensors, for numpy arrays."""

    def __init__(self, plan):
        self._plan = plan
        self.shape, self.n_gaussians = plan.shape, plan.n_gaussians

    def forward(self, amplitudes: np.ndarray) -> np.ndarray:
        """Sums (1 + C, nx, ny, nz)."""
        return _array(self._plan.forward(_tensor(amplitudes)))

    def backward(self, amplitudes: np.ndarray, grad_sums: np.ndarray) -> Gradients:
        """Gradients of ``(grad_sums * sums).sum()``."""
        return Gradients(*map(_array, self._plan.backward(_tensor(amplitudes), _tensor(grad_sums))))

    def scatter(self, values: np.ndarray) -> np.ndarray:
        """``sum_i values_i w_i(x)``, (nx, ny, nz)."""
        return _array(self._plan.scatter(_tensor(values)))

    def gather(self, image: np.ndarray) -> np.ndarray:
        """``sum_x image(x) w_i(x)``, (N,)."""
        return _array(self._plan.gather(_tensor(image)))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)
