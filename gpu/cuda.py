"""The CUDA backend: the order of work around the kernels of ``csrc``.

Tensors may be on any device: the work is done on the device of the means if that is a CUDA device, else on
the current CUDA device, and every result is returned on the device of the input it belongs to (the sums: of
the means), so that callers need not know which backend they have. Kernels run on torch's current stream and
all memory comes from torch's caching allocator. A plan waits for the device once (bad Gaussians must be
refused, and it must know how many are in the lattice); `forward` and `backward` do not wait, except that
copies back to the CPU do.

Results are the same to the last bit at every call: nothing is added by floating-point atomics. There is no
faster variant with atomics: gradients have one owner each, so that there is nothing for atomics to do.
"""

from __future__ import annotations

import functools
import math
from contextlib import contextmanager, nullcontext

import torch

from bids_gsrecon.gpu.backend import (
    DEFAULT_CUTOFF,
    Gradients,
    PlannedBackend,
    PlannedProducts,
    check_amplitudes,
    check_geometry,
    check_splat2d,
    check_usable2d,
)

# As in csrc (gaussian.cuh, prepare.cu).
_BRICK = 8
_MAX_SIDE = 32767
_MAX_KEYS = 1 << 30
_TILE = 2048
_MOMENTS = 10

# Voxels of a box that one warp walks; a larger box is cut into pieces.
PIECE = 1 << 14
# Voxels in all boxes together (the pairs to evaluate, up to a factor of a few): beyond this one forward
# would take minutes on any device, and the units of the input are wrong rather than the device too slow.
MAX_PAIRS = 1 << 43


def count_cells(shape) -> int:
    """Cells of all levels: sides of 8, 16, 32, ... voxels, until one cell holds the lattice."""
    total, side = 0, _BRICK
    while True:
        cells = math.prod(-(-n // side) for n in shape)
        total += cells
        if cells == 1:
            return total
        side *= 2


@contextmanager
def _memory_in_words(what: str):
    """An allocation that failed, as one sentence that says for what."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise torch.cuda.OutOfMemoryError(
            f'The CUDA device has too little free memory for {what}: use a smaller lattice, fewer Gaussians, '
            f'or the cpu backend.'
        ) from error


class _Kernels:
    """The custom operators, called on one device and its current stream."""

    def __init__(self, operators, device: torch.device):
        self._operators = operators
        self.device = device

    def __call__(self, name: str, *arguments) -> None:
        on_cuda = self.device.type == 'cuda'
        with torch.cuda.device(self.device) if on_cuda else nullcontext():
            stream = torch.cuda.current_stream().cuda_stream if on_cuda else 0
            getattr(self._operators, name)(*arguments, stream)

    def empty(self, *shape, dtype=torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """C-contiguous float32 or float64 on the device."""
        tensor = tensor.detach()
        if tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.float()
        return tensor.to(self.device).contiguous()


class CudaPlan(PlannedProducts):
    """Sorted and packed Gaussians on the device; see `bids_gsrecon.gpu.backend.Plan`."""

    def __init__(self, kernels: _Kernels, means, covariances, log_weights, shape, cutoff):
        self.shape = check_geometry(means, covariances, log_weights, shape, cutoff)
        self.n_gaussians = len(means)
        self._n_keys = count_cells(self.shape)
        if max(self.shape) > _MAX_SIDE:
            raise ValueError(f'a lattice may have {_MAX_SIDE} voxels along an axis at most, not {self.shape}')
        if self._n_keys > _MAX_KEYS:
            raise ValueError(f'a lattice of {self.shape} is too large for one pass: cut it into blocks')
        if len(means) >= 2**31 - 1:
            raise ValueError(f'{len(means)} Gaussians are too many for one lattice (2^31 - 2 at most)')
        self._kernels = kernels
        self._cutoff = float(cutoff)
        self._like = tuple(
            torch.empty(0, dtype=t.dtype, device=t.device) for t in (means, covariances, log_weights)
        )
        with _memory_in_words(f'{len(means)} Gaussians in {self.shape} voxels'):
            self._geometry = tuple(kernels.moved(t) for t in (means, covariances, log_weights))
            self._doubles = sum((t.dtype == torch.float64) << k for k, t in enumerate(self._geometry))
            self._bin()
        self._tasks = None

    def _bin(self) -> None:
        kernels, n = self._kernels, len(self._geometry[0])
        self._n_used = self._n_pairs = self._largest = 0
        if n == 0:
            return
        keys = kernels.empty(n, dtype=torch.int32)
        stats = torch.zeros(4, dtype=torch.int64, device=kernels.device)
        kernels('prepare', *self._geometry, keys, stats, n, self._doubles, *self.shape, self._cutoff)
        keys, order = self._sort(keys)
        self._starts = kernels.empty(self._n_keys + 1, dtype=torch.int32)
        kernels('cell_starts', keys, self._starts, stats, n, self._n_keys)
        bad, self._n_pairs, self._largest, self._n_used = stats.tolist()
        if bad:
            raise ValueError(
                f'{bad} of {n} Gaussians are not finite or their covariance is not positive definite'
            )
        if self._n_pairs > MAX_PAIRS:
            raise ValueError(
                f'the boxes of {n} Gaussians hold {self._n_pairs:.2g} voxels in all, more than the '
                f'{MAX_PAIRS:.2g} that one pass takes: covariances are in voxels^2'
            )
        self._order = order[: self._n_used]
        self._records = kernels.empty(self._n_used, 16)
        if self._n_used:
            kernels(
                'pack', *self._geometry, self._order, self._records, self._n_used, self._doubles,
                *self.shape, self._cutoff,
            )  # fmt: skip

    def _sort(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stable counting sort, 8 bits at a time; returns the sorted keys and their former positions."""
        kernels, n = self._kernels, len(keys)
        counts = kernels.empty(256 * -(-n // _TILE), dtype=torch.int32)
        keys_out, order, order_out = (torch.empty_like(keys) for _ in range(3))
        for shift in range(0, self._n_keys.bit_length(), 8):
            kernels('sort_count', keys, counts, n, shift)
            offsets = counts.cumsum(0, dtype=torch.int32) - counts
            kernels('sort_scatter', keys, order, offsets, keys_out, order_out, n, shift, int(shift == 0))
            keys, keys_out, order, order_out = keys_out, keys, order_out, order
        return keys, order

    def _sorted_amplitudes(self, amplitudes: torch.Tensor) -> torch.Tensor:
        return self._kernels.moved(amplitudes).float().index_select(0, self._order)

    def forward(self, amplitudes: torch.Tensor) -> torch.Tensor:
        """Sums (1 + C, nx, ny, nz), float32, x fastest in memory, on the device of the means."""
        check_amplitudes(amplitudes, len(self._geometry[0]))
        kernels, n_channels = self._kernels, amplitudes.shape[1]
        with _memory_in_words(f'sums of {1 + n_channels} x {self.shape} voxels'):
            sums = kernels.empty(1 + n_channels, *self.shape[::-1])
            if self._n_used:
                kernels(
                    'forward', self._records, self._starts, self._sorted_amplitudes(amplitudes), sums,
                    n_channels, *self.shape, self._cutoff,
                )  # fmt: skip
            else:
                sums.zero_()
        return sums.permute(0, 3, 2, 1).to(self._like[0].device)

    def backward(self, amplitudes: torch.Tensor, grad_sums: torch.Tensor) -> Gradients:
        """Gradients, computed in float32, in the dtypes and on the devices of the inputs."""
        n = len(self._geometry[0])
        check_amplitudes(amplitudes, n, grad_sums, self.shape)
        kernels, n_channels = self._kernels, amplitudes.shape[1]
        with _memory_in_words(f'gradients of {n} Gaussians and {1 + n_channels} x {self.shape} voxels'):
            grads = [torch.zeros_like(t) for t in self._geometry]
            grads.append(torch.zeros((n, n_channels), device=kernels.device))
            if self._n_used:
                # The sums' own order of memory: for gradients that follow it this copies nothing.
                source = grad_sums.detach().permute(0, 3, 2, 1).to(kernels.device, torch.float32).contiguous()
                moments = self._moments(self._sorted_amplitudes(amplitudes), source)
                kernels(
                    'finish', *self._geometry, self._order, moments, *grads, self._n_used, n_channels,
                    self._doubles,
                )  # fmt: skip
        return Gradients(*(g.to(t) for g, t in zip(grads, (*self._like, amplitudes))))

    def _moments(self, amplitudes: torch.Tensor, grad_sums: torch.Tensor) -> torch.Tensor:
        kernels, n_channels = self._kernels, amplitudes.shape[1]
        columns = _MOMENTS + n_channels
        moments = kernels.empty(self._n_used, columns)
        # At most 2^19 pieces, whatever the boxes: their moments never need much memory.
        limit = max(PIECE, self._n_pairs >> 19)
        rest = (n_channels, *self.shape, self._cutoff)
        none = self._order[:0]
        kernels(
            'moments',
            self._records,
            amplitudes,
            grad_sums,
            none,
            none,
            moments,
            self._n_used,
            0,
            limit,
            *rest,
        )
        if self._largest > limit:
            if self._tasks is None:
                self._tasks = _cut(self._records, limit)
            wide, first, owners, pieces = self._tasks
            parts = kernels.empty(len(owners), columns)
            kernels(
                'moments', self._records, amplitudes, grad_sums, owners, pieces, parts, len(owners), 1, limit,
                *rest,
            )  # fmt: skip
            kernels('add_segments', parts, wide, first, moments, len(wide), n_channels)
        return moments


def _cut(records: torch.Tensor, limit: int):
    """Rows of boxes above ``limit`` voxels, where their pieces begin, and of each piece its row and place.

    The place of a piece is its number in the box and the x, y, z of its first voxel, from the box's corner.
    """
    boxes = records.view(torch.int32)[:, :3]
    sides = ((boxes >> 16) - (boxes & 0xFFFF) + 1).long()
    volumes = sides.prod(1)
    wide = (volumes > limit).nonzero().squeeze(1)
    n_pieces = (volumes[wide] + limit - 1) // limit
    last = n_pieces.cumsum(0)
    first = torch.cat([last.new_zeros(1), last])
    numbers = torch.arange(int(last[-1]), device=records.device) - (last - n_pieces).repeat_interleave(
        n_pieces
    )
    owners = wide.repeat_interleave(n_pieces)
    side_x, side_y, _ = sides[owners].T
    voxels = numbers * limit
    places = (numbers, voxels % side_x, voxels // side_x % side_y, voxels // (side_x * side_y))
    return tuple(t.int() for t in (wide, first, owners, torch.stack(places, 1)))


class CudaBackend(PlannedBackend):
    """Kernels on a CUDA device; `bids_gsrecon.gpu.get_backend` makes one where they can be had.

    ``operators`` are the kernels of `bids_gsrecon.gpu.cuda_build.load_operators`. The tests give others,
    which run the kernels' sources on the CPU, and the device ``cpu``.
    """

    name = 'cuda'

    def __init__(self, operators, device: torch.device | str | None = None):
        self._operators = operators
        self._device = device

    def plan(self, means, covariances, log_weights, shape, cutoff=DEFAULT_CUTOFF) -> CudaPlan:
        """Cull, sort and pack on the device."""
        return CudaPlan(self._kernels_for(means), means, covariances, log_weights, shape, cutoff)

    def splat2d(self, parameters, shape, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
        """Frames float32, on the device of the parameters."""
        nx, ny = check_splat2d(parameters, shape)
        check_usable2d(parameters)
        kernels, (n_frames, n, _) = self._kernels_for(parameters), parameters.shape
        with _memory_in_words(f'{n_frames} frames of {nx} x {ny} pixels'):
            own = kernels.moved(parameters).float()
            planes = torch.zeros((n_frames, 2, nx, ny), device=kernels.device)
            kernels('splat2d', own, planes, n_frames, n, nx, ny, float(cutoff))
        return planes.to(parameters.device)

    def splat2d_gradient(self, parameters, planes, cutoff=DEFAULT_CUTOFF) -> torch.Tensor:
        """The gradient, computed in float32, in the dtype and on the device of the parameters."""
        nx, ny = check_splat2d(parameters, planes.shape[2:], planes)
        check_usable2d(parameters)
        kernels, (n_frames, n, _) = self._kernels_for(parameters), parameters.shape
        with _memory_in_words(f'gradients of {n_frames} frames of {nx} x {ny} pixels'):
            own, given = kernels.moved(parameters).float(), kernels.moved(planes).float()
            gradient = kernels.empty(n_frames, n, 7)
            kernels('splat2d_gradient', own, given, gradient, n_frames, n, nx, ny, float(cutoff))
        return gradient.to(parameters)

    def _kernels_for(self, tensor: torch.Tensor) -> _Kernels:
        device = self._device or (tensor.device if tensor.is_cuda else f'cuda:{torch.cuda.current_device()}')
        return _Kernels(self._operators, torch.device(device))


def check_kernels(backend: CudaBackend) -> None:
    """Raise RuntimeError in one sentence unless the kernels run and give a known sum and gradient."""
    field = (torch.tensor([[2.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 1.0]]), torch.zeros(1))
    try:
        plan = backend.plan(*field, (5, 5, 5))
        ones = torch.ones(1, 1)
        at_centre = float(plan.forward(ones)[1, 2, 2, 2])
        gradient = float(plan.backward(ones, plan.forward(ones)).means.abs().max())
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        raise RuntimeError(f'The CUDA kernels do not run here ({said}): use the cpu backend.') from error
    if abs(at_centre - (1.0 - math.exp(-0.5 * DEFAULT_CUTOFF**2))) > 1e-5 or not gradient < 1e-5:
        raise RuntimeError('The CUDA kernels give wrong numbers on this device: use the cpu backend.')


@functools.cache
def _checked_backend() -> CudaBackend:
    from bids_gsrecon.gpu.cuda_build import load_operators

    backend = CudaBackend(load_operators())
    check_kernels(backend)
    return backend


_failure = ''


def failure() -> str:
    """Why the kernels could not be built or run earlier in this process; empty if nothing failed yet."""
    return _failure


def make_backend() -> CudaBackend:
    """The backend, built and checked once; RuntimeError in one sentence, the same one again later."""
    global _failure
    if _failure:
        raise RuntimeError(_failure)
    try:
        return _checked_backend()
    except RuntimeError as error:
        _failure = str(error)
        raise
    except Exception as error:
        # Compilers, drivers and loaders are not ours: whatever they do, `auto` must be able to go on.
        _failure = f'The CUDA kernels cannot be had here ({error}): use the cpu backend.'
        raise RuntimeError(_failure) from error
