"""Speed of the rasteriser from ten thousand to ten million Gaussians, on the CPU and on a GPU, as a table.

``python benchmarks/rasterizer.py [--quick] [--gaussians 10000 ...] [--sides 64 ...] [--backends cpu cuda]``

Random anisotropic Gaussians of sigma 0.6 x their spacing in cubic lattices, both sums, gradients in all 11
parameters. A *pair* is a voxel inside the cut of a Gaussian; the sorting and packing (plan) are timed on their
own. CPU times are minima over the repeats, GPU times medians of events after warm-ups. It needs Python, torch
and numba only.

The bound is arithmetic, with no pair evaluated in vain. GPU: 16 exponentials a cycle and multiprocessor at the
highest clock in the forward, one issue slot for each of the least instructions of a pair in the backward. CPU:
the float32 speed of a matrix product in the same run over the least operations of a pair.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import time

import engine
import numba
import torch

from bids_gsrecon.gpu import available_backends, get_backend, set_num_threads

SIGMA = 0.6
GAUSSIANS = (10_000, 100_000, 1_000_000, 10_000_000)
SIDES = (64, 128, 256, 512)
QUICK_GAUSSIANS = (10_000, 300_000)
QUICK_SIDES = (64, 128)
# Of a pair, with one amplitude: e from a product, the level, the cut, two sums; and with gradients e, level, cut,
# gradient of the weight (2), two first sums (4), h and its moments (1 + 6 + 12). Instructions count an FMA once.
OPERATIONS = {'forward': 7, 'backward': 28}
INSTRUCTIONS = {'forward': 7, 'backward': 19}
EXPONENTIALS_PER_CYCLE, SLOTS_PER_CYCLE = 16, 128


def cpu_bound() -> dict[str, float]:
    """Pairs a second at the speed of a matrix product."""
    a = torch.randn(1024, 1024)
    best = min(engine.timed(lambda: a @ a)[0] for _ in range(10))
    speed = 2 * 1024**3 / best
    return {name: speed / n for name, n in OPERATIONS.items()}


def cuda_bound() -> dict[str, float]:
    """Pairs a second of the instruction that binds."""
    clock = subprocess.run(
        ['nvidia-smi', '--query-gpu=clocks.max.sm', '--format=csv,noheader,nounits', '--id=0'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    cycles = torch.cuda.get_device_properties(0).multi_processor_count * float(clock) * 1e6
    return {
        name: cycles * min(EXPONENTIALS_PER_CYCLE, SLOTS_PER_CYCLE / n) for name, n in INSTRUCTIONS.items()
    }


def times(backend, field, repeats: int) -> dict[str, float]:
    """Seconds of plan, forward and backward."""
    plan = backend.plan(*field[:3], engine.SHAPE, engine.CUTOFF)
    grad_sums = torch.randn_like(plan.forward(field[3]))
    steps = {
        'plan': lambda: backend.plan(*field[:3], engine.SHAPE, engine.CUTOFF),
        'forward': lambda: plan.forward(field[3]),
        'backward': lambda: plan.backward(field[3], grad_sums),
    }
    if not field[0].is_cuda:
        return {name: min(engine.timed(step)[0] for _ in range(repeats)) for name, step in steps.items()}
    seconds = {}
    for name, step in steps.items():
        for _ in range(5):
            step()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for begin, end in events:
            begin.record()
            step()
            end.record()
        torch.cuda.synchronize()
        seconds[name] = 1e-3 * statistics.median(begin.elapsed_time(end) for begin, end in events)
    return seconds


def memory_gb(backend, field) -> float:
    """Peak of an iteration beyond its inputs: measured on a GPU, what the arrays take on the CPU."""
    if not field[0].is_cuda:
        return engine.engine_memory(field) / 1e9
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    plan = backend.plan(*field[:3], engine.SHAPE, engine.CUTOFF)
    plan.backward(field[3], plan.forward(field[3]))
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def plain_cuda_seconds(field, n_sample: int) -> float:
    """An iteration in plain torch on the GPU: `engine.plain_torch_seconds`, there."""
    sample = torch.randperm(len(field[0]))[:n_sample].to(field[0].device)
    reach = engine.CUTOFF * field[1][sample][:, [0, 3, 5]].amax(1).sqrt()
    sample = sample[reach.argsort()]
    radii = (reach.sort().values + 0.5).ceil().long().tolist()
    best = math.inf
    with torch.device('cuda'):
        grad_sums = torch.randn((2, math.prod(engine.SHAPE)))
        sums = torch.zeros_like(grad_sums)
        for _ in range(3):
            torch.cuda.synchronize()
            start = time.perf_counter()
            leaves = [t[sample].clone().requires_grad_() for t in field]
            first = 0
            while first < n_sample:
                last = min(first + max(1, 20_000_000 // (2 * radii[first] + 1) ** 3), n_sample)
                engine._plain_torch_chunk(leaves, slice(first, last), radii[last - 1], grad_sums, sums)
                first = last
            torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return best * len(field[0]) / n_sample


def print_row(name: str, n: int, side: int, bound, repeats: int, n_sample: int) -> None:
    """One backend, one field, one lattice."""
    engine.SHAPE = (side, side, side)  # what the functions of that benchmark work on
    field = engine.random_gaussians(n, SIGMA)
    pairs = engine.count_pairs(field)
    if name == 'cuda':
        field = tuple(t.cuda() for t in field)
    backend = get_backend(name)
    seconds = times(backend, field, repeats)
    n_sample = min(n, n_sample)
    if name == 'cuda':
        plain = plain_cuda_seconds(field, min(n, 50 * n_sample))
    else:
        plain = engine.plain_torch_seconds(field, numba.get_num_threads(), n_sample, max(3, min(repeats, 8)))
    speeds = [
        f'{1e3 * seconds[k]:.3g} | {pairs / seconds[k] / 1e9:.3g} | {100 * pairs / seconds[k] / bound[k]:.2g} %'
        for k in ('forward', 'backward')
    ]
    whole = sum(seconds.values())
    print(
        f'| {n:.0e} | {side}^3 | {pairs / 1e6:.3g} M | {name} | {1e3 * seconds["plan"]:.3g} | {speeds[0]} | '
        f'{speeds[1]} | {memory_gb(backend, field):.2g} | {plain:.3g} s = {plain / whole:.3g}x |',
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='four small rows, fewer repeats')
    parser.add_argument('--gaussians', type=int, nargs='+')
    parser.add_argument('--sides', type=int, nargs='+', help='voxels along each axis')
    parser.add_argument('--backends', nargs='+', choices=('cpu', 'cuda'), help='default: those that run here')
    parser.add_argument('--threads', type=int, default=numba.config.NUMBA_NUM_THREADS)
    parser.add_argument('--repeats', type=int, help='default: 5 on the CPU, 100 on a GPU; 3 and 20 if quick')
    parser.add_argument('--sample', type=int, help='Gaussians for which plain torch is timed (50x on a GPU)')
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    names = args.backends or [name for name in ('cpu', 'cuda') if name in available_backends()]
    print(
        f'{engine.processor()}, {threads} threads; numba {numba.__version__}, torch {torch.__version__}; '
        f'sigma {SIGMA} x spacing, R = {engine.CUTOFF}'
    )
    print(f'GPU: {torch.cuda.get_device_name(0) if "cuda" in names else "none used"}\n')
    engine.SHAPE = (48, 48, 48)
    engine.check_plain_torch()  # that both compute the same; loads the CPU kernels, too
    print(
        '| N | lattice | pairs | backend | plan ms | forward ms | G pairs/s | of bound | backward ms | G pairs/s | '
        'of bound | memory GB | plain torch |\n|' + '---|' * 13
    )
    bounds = {name: cuda_bound() if name == 'cuda' else cpu_bound() for name in names}
    repeats = {'cpu': 3, 'cuda': 20} if args.quick else {'cpu': 5, 'cuda': 100}
    sample = args.sample or (2_000 if args.quick else 5_000)
    for side in args.sides or (QUICK_SIDES if args.quick else SIDES):
        for n in args.gaussians or (QUICK_GAUSSIANS if args.quick else GAUSSIANS):
            for name in names:
                print_row(name, n, side, bounds[name], args.repeats or repeats[name], sample)
    print(
        f'\nPlain torch: the same sums and gradients with autograd, timed on {sample} Gaussians (50 times as'
    )
    print('many on a GPU) and scaled up linearly; against plan + forward + backward.')


if __name__ == '__main__':
    main()
