"""The seam between what we compute (sums of Gaussians on a lattice) and who computes it.

Every backend evaluates, in *lattice index space* (voxel centres at integers), on a lattice of shape
``(nx, ny, nz)``::

    S[0](x)     = sum_i w_i(x)
    S[1 + c](x) = sum_i w_i(x) a_ic
    w_i(x)      = exp(log_weight_i) * (exp(-q_i / 2) - exp(-R^2 / 2))_+
    q_i(x)      = (x - mu_i)^T Sigma_i^-1 (x - mu_i)

with the cut ``R``, a Mahalanobis distance. The weight is continuous at the cut, so that finite
differences and gradients agree.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

DEFAULT_CUTOFF = 3.0
FAST_CUTOFF = 2.5
# Added to the sum of weights of the normalized composition. A Gaussian's weight is at most one (times
# exp(log_weight)), so this changes only voxels that no Gaussian covers by more than about 1e-4: there
# the image goes to zero smoothly instead of jumping, and its gradient stays bounded by 1 / eps.
DEFAULT_EPS = 1e-6
BACKENDS = ('reference', 'cpu', 'cuda')


class Gradients(NamedTuple):
    """Gradients of a scalar: means (N, 3), covariances (N, 6), log_weights (N,), amplitudes (N, C)."""

    means: torch.Tensor
    covariances: torch.Tensor
    log_weights: torch.Tensor
    amplitudes: torch.Tensor


@runtime_checkable
class Plan(Protocol):
    """Gaussians of fixed geometry made ready for one lattice (culled, sorted, packed)."""

    shape: tuple[int, int, int]
    n_gaussians: int

    def forward(self, amplitudes: torch.Tensor) -> torch.Tensor:
        """Sums (1 + C, nx, ny, nz) for amplitudes (N, C)."""

    def backward(self, amplitudes: torch.Tensor, grad_sums: torch.Tensor) -> Gradients:
        """Gradient of ``(grad_sums * sums).sum()``."""

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """``sum_i values_i w_i(x)``, (nx, ny, nz), for values (N,): `forward` without the sum of the weights."""

    def gather(self, image: torch.Tensor) -> torch.Tensor:
        """``sum_x image(x) w_i(x)``, (N,), for an image (nx, ny, nz): the transpose of `scatter`."""


class PlannedProducts:
    """`scatter` and `gather` of a plan by its `forward` and `backward`: right, not fast."""

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """``sum_i values_i w_i(x)``, (nx, ny, nz)."""
        check_values(values, self.n_gaussians)
        return self.forward(values[:, None])[1]

    def gather(self, image: torch.Tensor) -> torch.Tensor:
        """``sum_x image(x) w_i(x)``, (N,): the gradient in the log weights of what they weigh."""
        import torch

        check_image(image, self.shape)
        none = torch.empty((self.n_gaussians, 0), device=image.device)
        return self.backward(none, image[None]).log_weights


@runtime_checkable
class Backend(Protocol):
    """Computes the sums and their gradients; see the module's text for the formulas.

    Shapes: ``means`` (N, 3) in voxels, ``covariances`` (N, 6) in voxels^2 ordered xx, xy, xz, yy, yz, zz,
    ``log_weights`` (N,), ``amplitudes`` (N, C) with any C >= 0, ``shape`` (nx, ny, nz). The gradient of
    a covariance is with respect to the 6 numbers, an off-diagonal one counted as one variable (it
    stands at two places of the matrix).

    ``ValueError`` is raised for shapes that do not fit and for Gaussians that are not finite or not
    positive definite.
    """

    name: str

    def plan(self, means, covariances, log_weights, shape, cutoff: float = DEFAULT_CUTOFF) -> Plan:
        """Prepare the geometry once; `forward` and `backward` are short for a plan used once."""

    def array_plan(self, means, covariances, log_weights, shape, cutoff: float = DEFAULT_CUTOFF) -> Plan:
        """`plan` whose arguments and results are numpy arrays; the cpu backend needs no torch for it."""

    def forward(self, means, covariances, log_weights, amplitudes, shape, cutoff: float = DEFAULT_CUTOFF):
        """Sums (1 + C, nx, ny, nz)."""

    def backward(self, means, covariances, log_weights, amplitudes, shape, cutoff, grad_sums) -> Gradients:
        """Gradient of ``(grad_sums * sums).sum()``."""

    def splat2d(self, parameters, shape, cutoff: float = DEFAULT_CUTOFF) -> torch.Tensor:
        """Frames (T, 2, nx, ny) of complex 2D Gaussians (T, M, 7); formulas in `bids_gsrecon.gpu.splat2d`."""

    def splat2d_gradient(self, parameters, planes, cutoff: float = DEFAULT_CUTOFF) -> torch.Tensor:
        """Gradient (T, M, 7) of ``(planes * splat2d(parameters)).sum()``."""


class PlannedBackend:
    """What a backend that implements `plan` does with it."""

    name = ''

    def plan(self, means, covariances, log_weights, shape, cutoff=DEFAULT_CUTOFF):
        raise NotImplementedError

    def array_plan(self, means, covariances, log_weights, shape, cutoff=DEFAULT_CUTOFF) -> Plan:
        """`plan` whose arguments and results are numpy arrays."""
        import torch

        from bids_gsrecon.gpu._tensors import PlanOnArrays

        geometry = map(torch.from_numpy, (means, covariances, log_weights))
        return PlanOnArrays(self.plan(*geometry, shape, cutoff))

    def forward(self, means, covariances, log_weights, amplitudes, shape, cutoff=DEFAULT_CUTOFF):
        """Sums (1 + C, nx, ny, nz) for amplitudes (N, C)."""
        return self.plan(means, covariances, log_weights, shape, cutoff).forward(amplitudes)

    def backward(self, means, covariances, log_weights, amplitudes, shape, cutoff, grad_sums) -> Gradients:
        """Gradient of ``(grad_sums * sums).sum()``."""
        return self.plan(means, covariances, log_weights, shape, cutoff).backward(amplitudes, grad_sums)


def check_geometry(means, covariances, log_weights, shape, cutoff) -> tuple[int, int, int]:
    """Raise ValueError unless the shapes fit; return the lattice's shape as three ints."""
    n = means.shape[0] if means.ndim == 2 else -1
    if n < 0 or tuple(means.shape) != (n, 3):
        raise ValueError(f'means must be (N, 3), not {tuple(means.shape)}')
    if tuple(covariances.shape) != (n, 6) or tuple(log_weights.shape) != (n,):
        raise ValueError(
            f'covariances must be ({n}, 6) and log_weights ({n},), not {tuple(covariances.shape)} and '
            f'{tuple(log_weights.shape)}'
        )
    shape = tuple(int(s) for s in shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f'a lattice has three positive sizes, not {shape}')
    if not cutoff > 0:
        raise ValueError(f'the cutoff must be positive, not {cutoff}')
    return shape


def check_amplitudes(amplitudes, n: int, grad_sums=None, shape=None) -> None:
    """Raise ValueError unless amplitudes are (n, C) and grad_sums (1 + C, nx, ny, nz)."""
    if amplitudes.ndim != 2 or amplitudes.shape[0] != n:
        raise ValueError(f'amplitudes must be ({n}, C), not {tuple(amplitudes.shape)}')
    if grad_sums is not None and tuple(grad_sums.shape) != (1 + amplitudes.shape[1], *shape):
        raise ValueError(
            f'grad_sums must be {(1 + amplitudes.shape[1], *shape)}, not {tuple(grad_sums.shape)}'
        )


def check_values(values, n: int) -> None:
    """Raise ValueError unless values are (n,)."""
    if tuple(values.shape) != (n,):
        raise ValueError(f'values must be ({n},), not {tuple(values.shape)}')


def check_image(image, shape) -> None:
    """Raise ValueError unless the image has the lattice's shape."""
    if tuple(image.shape) != tuple(shape):
        raise ValueError(f'the image must be {tuple(shape)}, not {tuple(image.shape)}')


def check_splat2d(parameters, shape, planes=None) -> tuple[int, int]:
    """Raise ValueError unless parameters are (T, M, 7) and planes (T, 2, nx, ny); the shape as two ints."""
    if parameters.ndim != 3 or parameters.shape[2] != 7:
        raise ValueError(f'parameters must be (T, M, 7), not {tuple(parameters.shape)}')
    shape = tuple(int(n) for n in shape)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f'a frame has two positive sizes, not {shape}')
    if planes is not None and tuple(planes.shape) != (parameters.shape[0], 2, *shape):
        raise ValueError(
            f'planes must be {(parameters.shape[0], 2, *shape)} (T, 2, nx, ny), not {tuple(planes.shape)}'
        )
    return shape


def check_usable2d(parameters) -> None:
    """Raise ValueError unless all 2D Gaussians (T, M, 7) are finite and have positive widths."""
    import torch

    if not bool(torch.isfinite(parameters).all() & (parameters[..., [2, 4]] > 0).all()):
        raise ValueError('a Gaussian is not finite or one of its widths (l11, l22) is not positive')


def available_backends() -> tuple[str, ...]:
    """Names of the backends that run here, best last.

    ``cuda`` is one of them where torch sees a CUDA device and the kernels are built or can be; should building
    or running them fail, it is none from then on.
    """
    return BACKENDS if _has_cuda() else ('reference', 'cpu')


def _has_driver() -> bool:
    """Whether there is an NVIDIA driver: a machine without need not load torch to know that it has no CUDA."""
    if not sys.platform.startswith('linux'):
        return True  # torch knows
    try:
        ctypes.CDLL('libcuda.so.1')
    except OSError:
        return False
    return True


def _has_cuda() -> bool:
    return _has_driver() and not _why_no_cuda()


def _why_no_cuda() -> str:
    from bids_gsrecon.gpu import cuda, cuda_build

    return cuda.failure() or cuda_build.why_not()


def get_backend(name: str = 'auto', *, n_threads: int | None = None) -> Backend:
    """The backend of that name; ``auto`` takes cuda where there is one, else cpu.

    Parameters
    ----------
    name
        ``auto``, ``reference``, ``cpu`` or ``cuda``.
    n_threads
        Threads of the cpu backend; None leaves numba's current number.

    Raises
    ------
    RuntimeError
        If ``cuda`` cannot be had: one sentence that names the remedy. ``auto`` warns once instead and
        takes cpu.
    """
    if name == 'auto':
        name = 'cpu'
        if _has_cuda():
            try:
                return get_backend('cuda')
            except RuntimeError as error:
                warnings.warn(f'{error} Using the cpu backend.', RuntimeWarning, stacklevel=2)
    if name == 'reference':
        from bids_gsrecon.gpu.reference import ReferenceBackend

        return ReferenceBackend()
    if name == 'cpu':
        from bids_gsrecon.gpu.cpu import CpuBackend

        return CpuBackend(n_threads=n_threads)
    if name == 'cuda':
        if reason := _why_no_cuda():
            raise RuntimeError(reason)
        from bids_gsrecon.gpu.cuda import make_backend

        return make_backend()
    raise ValueError(f'unknown backend {name!r}: one of auto, {", ".join(BACKENDS)}')
