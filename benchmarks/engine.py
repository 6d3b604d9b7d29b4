"""Speed of the Gaussian engine on this machine, as tables.

``python benchmarks/engine.py [--quick] [--threads 1 2] [--repeats 5]``

Random anisotropic Gaussians on a 160 x 192 x 160 lattice, both sums, gradients in all 11 parameters. sigma is
in units of the mean spacing of the Gaussians (the cube root of the volume per Gaussian). A *pair* is a voxel
inside the cut of a Gaussian. Times are minima over repeats that alternate between the thread counts, so that
other users of the machine disturb all columns alike; ratios are between figures of one run.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from pathlib import Path

import numba
import numpy as np
import torch

from bids_gsrecon.gpu import FrozenWeights, get_backend, set_num_threads
from bids_gsrecon.gpu._forward import interval
from bids_gsrecon.gpu.reference import symmetric_matrices

SHAPE = (160, 192, 160)
CUTOFF = 3.0
ROWS = ((100_000, 0.6), (100_000, 1.0), (300_000, 0.6), (300_000, 0.8), (300_000, 1.0), (1_000_000, 0.6))
QUICK_ROWS = ((300_000, 0.6), (300_000, 1.0))


def random_gaussians(n: int, sigma: float, seed: int = 0):
    """Means, covariances, log-weights, amplitudes (float32); det(Sigma)^(1/6) is sigma x spacing."""
    rng = np.random.default_rng(seed)
    spacing = (math.prod(SHAPE) / n) ** (1 / 3)
    means = rng.uniform(-0.5, np.array(SHAPE) - 0.5, (n, 3))
    stretch = 0.25 * rng.normal(size=(n, 3))
    scales = sigma * spacing * np.exp(stretch - stretch.mean(1, keepdims=True))
    quaternions = rng.normal(size=(n, 4))
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rotations = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    factor = rotations * scales[:, None, :]
    covariances = (factor @ factor.transpose(0, 2, 1)).reshape(n, 9)[:, [0, 1, 2, 4, 5, 8]]
    arrays = (means, covariances, 0.1 * rng.normal(size=n), rng.uniform(size=(n, 1)))
    return tuple(torch.tensor(a, dtype=torch.float32).contiguous() for a in arrays)


@numba.njit(error_model='numpy')
def _count(means, cov, cutoff, nx, ny, nz):
    total = 0
    r2 = cutoff * cutoff
    for i in range(len(means)):
        b, c = cov[i, 4] / cov[i, 5], cov[i, 2] / cov[i, 5]
        var_y = cov[i, 3] - cov[i, 4] * b
        a = (cov[i, 1] - cov[i, 2] * b) / var_y
        var_x = cov[i, 0] - cov[i, 2] * c - (cov[i, 1] - cov[i, 2] * b) * a
        z0, z1 = interval(means[i, 2], cutoff * math.sqrt(cov[i, 5]), 0, nz - 1)
        for z in range(z0, z1 + 1):
            dz = z - means[i, 2]
            q = dz * dz / cov[i, 5]
            y0, y1 = interval(means[i, 1] + b * dz, math.sqrt(max(r2 - q, 0.0) * var_y), 0, ny - 1)
            for y in range(y0, y1 + 1):
                u = y - means[i, 1] - b * dz
                half = math.sqrt(max(r2 - q - u * u / var_y, 0.0) * var_x)
                x0, x1 = interval(means[i, 0] + c * dz + a * u, half, 0, nx - 1)
                total += x1 - x0 + 1
    return total


def count_pairs(field) -> int:
    """Voxels of the lattice inside the cut, summed over the Gaussians."""
    return _count(field[0].double().numpy(), field[1].double().numpy(), CUTOFF, *SHAPE)


def timed(function):
    """Seconds, and what the function returned."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def engine_times(field, thread_counts, repeats) -> dict[int, dict[str, float]]:
    """Least seconds of sorting and packing, forward, and backward, per thread count."""
    best = {n: dict.fromkeys(('plan', 'forward', 'backward'), math.inf) for n in thread_counts}
    # Gradients of the sums as autograd delivers them: in the memory order of the sums.
    sums = get_backend('cpu').plan(*field[:3], SHAPE, CUTOFF).forward(field[3])
    grad_sums = torch.randn_like(sums)
    for _ in range(repeats):
        for n in thread_counts:
            backend = get_backend('cpu', n_threads=n)
            t_plan, plan = timed(lambda backend=backend: backend.plan(*field[:3], SHAPE, CUTOFF))
            t_forward, _ = timed(lambda plan=plan: plan.forward(field[3]))
            t_backward, _ = timed(lambda plan=plan: plan.backward(field[3], grad_sums))
            for name, seconds in (('plan', t_plan), ('forward', t_forward), ('backward', t_backward)):
                best[n][name] = min(best[n][name], seconds)
    return best


def engine_memory(field) -> int:
    """Bytes an iteration holds: packed Gaussians, sums, gradients of sums, gradients."""
    n = len(field[0])
    volume = 2 * math.prod(SHAPE) * 4
    return 64 * n + 24 * n + 4 * n + 2 * volume + 44 * n


def _plain_torch_chunk(leaves, part, radius: int, grad_sums, sums) -> None:
    """One chunk of Gaussians, added to ``sums`` (2, voxels); gradients accumulate in the leaves."""
    means, covariances, log_weights, amplitudes = (t[part] for t in leaves)
    precision = torch.linalg.inv(symmetric_matrices(covariances))[..., None, None, None]
    axis = torch.arange(-radius, radius + 1)
    index, offset, inside = [], [], []
    for k, n in enumerate(SHAPE):
        place = means[:, k].detach().round().long()[:, None] + axis
        view = [-1, 1, 1, 1]
        view[1 + k] = len(axis)
        inside.append(((place >= 0) & (place < n)).reshape(view))
        index.append(place.clamp(0, n - 1).reshape(view))
        offset.append((place - means[:, k, None]).reshape(view))
    dx, dy, dz = offset
    # Broadcasting keeps all but the last few passes small.
    xy = precision[:, 0, 0] * dx * dx + (2 * precision[:, 0, 1] * dx + precision[:, 1, 1] * dy) * dy
    slope = 2 * (precision[:, 0, 2] * dx + precision[:, 1, 2] * dy)
    q = xy + (slope + precision[:, 2, 2] * dz) * dz
    mask = inside[0] & inside[1] & inside[2]
    level = (torch.exp(-0.5 * q) - math.exp(-0.5 * CUTOFF**2)).clamp_min(0) * mask
    w = log_weights.exp()[:, None, None, None] * level
    wa = w * amplitudes[:, 0, None, None, None]
    flat = (((index[0] * SHAPE[1] + index[1]) * SHAPE[2]) + index[2]).reshape(-1)
    sums[0].index_add_(0, flat, w.detach().reshape(-1))
    sums[1].index_add_(0, flat, wa.detach().reshape(-1))
    # The gradient of index_add is index_select: chunk by chunk this is what autograd does, without
    # keeping the graphs of all chunks alive.
    seen = [g.index_select(0, flat).reshape(w.shape) for g in grad_sums]
    torch.autograd.backward([w, wa], seen)


def plain_torch_seconds(field, n_threads: int, n_sample: int, repeats: int = 3) -> float:
    """Seconds of one iteration in plain PyTorch with autograd, extrapolated linearly from a random sample.

    Vectorised over chunks of Gaussians of like size, on the bounding cube of the chunk's largest.
    """
    sample = torch.randperm(len(field[0]), generator=torch.Generator().manual_seed(0))[:n_sample]
    reach = CUTOFF * field[1][:, [0, 3, 5]].amax(1).sqrt()
    sample = sample[reach[sample].argsort()]
    radii = (reach[sample] + 0.5).ceil().long().tolist()
    grad_sums = torch.randn((2, math.prod(SHAPE)))
    sums = torch.zeros_like(grad_sums)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        leaves = [t[sample].clone().requires_grad_() for t in field]
        first = 0
        while first < n_sample:
            last = min(first + max(1, 500_000 // (2 * radii[first] + 1) ** 3), n_sample)
            _plain_torch_chunk(leaves, slice(first, last), radii[last - 1], grad_sums, sums)
            first = last
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return best * len(field[0]) / n_sample


def check_plain_torch() -> None:
    """The comparison is fair only if both compute the same."""
    field = random_gaussians(200, 0.1)
    sums = torch.zeros((2, math.prod(SHAPE)))
    grad_sums = torch.randn_like(sums)
    leaves = [t.clone().requires_grad_() for t in field]
    radius = int((CUTOFF * field[1][:, [0, 3, 5]].amax().sqrt() + 0.5).ceil())
    for i in range(0, 200, 10):
        _plain_torch_chunk(leaves, slice(i, i + 10), radius, grad_sums, sums)
    backend = get_backend('cpu')
    ours = backend.forward(*field, SHAPE, CUTOFF).reshape(2, -1)
    grads = backend.backward(*field, SHAPE, CUTOFF, grad_sums.reshape(2, *SHAPE))
    for mine, theirs in ((ours, sums), *zip(grads, (t.grad for t in leaves))):
        assert float((mine - theirs).norm()) < 1e-3 * float(theirs.norm())


def print_engine_table(rows, thread_counts, repeats, n_sample) -> None:
    """The main table."""
    first, last = thread_counts[0], thread_counts[-1]
    print(
        f'\n| N, sigma/spacing | pairs | sort+pack / fwd / bwd ms, {first} thread | {last} threads | '
        f'fwd+bwd ms, {last} threads (G pairs/s) | with sort+pack | {first}->{last} threads | '
        f'memory GB | plain torch, {first} thread |'
    )
    print('|' + '---|' * 9)
    for n, sigma in rows:
        field = random_gaussians(n, sigma)
        pairs = count_pairs(field)
        times = engine_times(field, thread_counts, repeats)
        kernel = {k: t['forward'] + t['backward'] for k, t in times.items()}
        whole = {k: kernel[k] + t['plan'] for k, t in times.items()}
        parts = {
            k: ' / '.join(f'{1e3 * t[name]:.0f}' for name in ('plan', 'forward', 'backward'))
            for k, t in times.items()
        }
        plain = plain_torch_seconds(field, first, min(n, n_sample))
        print(
            f'| {n // 1000} k, {sigma} | {pairs / 1e6:.0f} M | {parts[first]} | {parts[last]} | '
            f'{1e3 * kernel[last]:.0f} ({pairs / kernel[last] / 1e9:.2f}) | '
            f'{1e3 * whole[last]:.0f} ({pairs / whole[last] / 1e9:.2f}) | '
            f'{whole[first] / whole[last]:.2f}x | '
            f'{engine_memory(field) / 1e9:.2f} | {plain:.1f} s = {plain / whole[first]:.0f}x |',
            flush=True,
        )


def print_frozen_table(rows, thread_counts, repeats) -> None:
    """Products with stored weights, slices five voxels thick."""
    print('\n| N, sigma/spacing | threads | build ms | A ms | A^T ms | MB (estimate) |')
    print('|' + '---|' * 6)
    cell_weights = np.kron(np.eye(SHAPE[2] // 5), np.full((1, 5), 0.2))
    for n, sigma in rows:
        means, covariances, log_weights, amplitudes = random_gaussians(n, sigma)
        estimate = FrozenWeights.estimate_nbytes(covariances.numpy(), slice_spacing=5)
        a = amplitudes[:, 0].numpy()
        best = {k: [math.inf] * 3 for k in thread_counts}
        for repeat in range(repeats):
            for k in thread_counts:
                set_num_threads(k)
                if repeat < 2:
                    t_build, operator = timed(
                        lambda geometry=(means, covariances, log_weights): FrozenWeights.build(
                            *geometry, SHAPE, composition='normalized', cell_weights=cell_weights
                        )
                    )
                    best[k][0] = min(best[k][0], t_build)
                t_forward, image = timed(lambda operator=operator, a=a: operator.forward(a))
                t_adjoint, _ = timed(lambda operator=operator, image=image: operator.adjoint(image))
                best[k][1:] = min(best[k][1], t_forward), min(best[k][2], t_adjoint)
        for k in thread_counts:
            build, forward, adjoint = (1e3 * t for t in best[k])
            print(
                f'| {n // 1000} k, {sigma} | {k} | {build:.0f} | {forward:.0f} | {adjoint:.0f} | '
                f'{operator.nbytes / 1e6:.0f} ({estimate / 1e6:.0f}) |',
                flush=True,
            )


def processor() -> str:
    """The processor's name where the system tells."""
    info = Path('/proc/cpuinfo')
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='two rows, fewer repeats (about a minute)')
    parser.add_argument('--threads', type=int, nargs='+', help='thread counts; default 1 and 2')
    parser.add_argument('--repeats', type=int, help='repeats of which the least time counts')
    args = parser.parse_args()
    available = numba.config.NUMBA_NUM_THREADS
    thread_counts = sorted({min(n, available) for n in args.threads or (1, 2)})
    repeats = args.repeats or (4 if args.quick else 8)
    rows = QUICK_ROWS if args.quick else ROWS
    print(
        f'{processor()}, {available} cores; numba {numba.__version__}, torch {torch.__version__}; '
        f'{SHAPE}, R = {CUTOFF}'
    )
    small = random_gaussians(1000, 0.5)
    seconds, _ = timed(lambda: engine_times(small, thread_counts, 1))
    print(f'compiling or loading the kernels: {seconds:.1f} s')
    check_plain_torch()
    n_sample = 2_000 if args.quick else 10_000
    print_engine_table(rows, thread_counts, repeats, n_sample)
    print(f'Plain torch: timed on {n_sample} of the Gaussians and scaled up linearly.')
    print_frozen_table(QUICK_ROWS, thread_counts, repeats)


if __name__ == '__main__':
    main()
