"""The CUDA kernels' own sources on the CPU (see cuda_shim.py), beyond what every backend is tested for."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bids_gsrecon.gpu import compose, cuda
from bids_gsrecon.gpu.cuda import CudaBackend, check_kernels, count_cells
from tests.gpu import cuda_shim, fields
from tests.gpu.test_splat import random_like_sums, truth_and_gradients

SHAPE = (26, 21, 18)


def results(backend, field, shape, grad_sums):
    plan = backend.plan(*field[:3], shape)
    return (plan.forward(field[3]), *plan.backward(field[3], grad_sums))


@pytest.mark.parametrize('n_channels', [1, 3, 9])
def test_float32_is_all_that_is_lost(shim_backend, n_channels):
    """Far tighter than what any backend must reach: a wrong constant or a lost voxel shows."""
    field = fields.random_field(100, SHAPE, n_channels=n_channels, seed=31)
    grad_sums = random_like_sums(field, SHAPE)
    sums, gradients = truth_and_gradients(field, SHAPE, grad_sums)
    computed = results(shim_backend, field, SHAPE, grad_sums)
    assert fields.relative_error(computed[0], sums) < 5e-7
    for value, truth in zip(computed[1:], gradients):
        assert fields.rms_error(value, truth) < 4e-7


def test_boxes_cut_into_pieces(shim_backend, monkeypatch):
    field, shape = fields.hard_cases()['giant, large lattice']
    grad_sums = random_like_sums(field, shape)
    monkeypatch.setattr(cuda, 'PIECE', 1 << 30)
    whole = results(shim_backend, field, shape, grad_sums)
    monkeypatch.setattr(cuda, 'PIECE', 777)
    plan = shim_backend.plan(*field[:3], shape)
    pieces = plan.backward(field[3], grad_sums)
    owners = plan._tasks[2]
    assert len(owners) > 100 and len(owners.unique()) > 5
    for a, b in zip(whole[1:], pieces):
        assert fields.rms_error(a, b.double()) < 1e-6


@pytest.mark.parametrize('n', [1, 2047, 2048, 10_000])
def test_counting_sort_is_stable(shim_backend, n):
    keys = torch.randint(0, 70_000, (n,), generator=torch.Generator().manual_seed(n), dtype=torch.int32)
    keys[n // 2 :] %= 7  # many equal ones
    plan = shim_backend.plan(*fields.random_field(1, SHAPE)[:3], SHAPE)
    plan._n_keys = 70_000
    found, order = plan._sort(keys.clone())
    expected, positions = torch.sort(keys, stable=True)
    assert torch.equal(found, expected) and torch.equal(order.long(), positions)


@pytest.mark.parametrize('shape', [(3000, 3, 2), (2, 3, 3000), (70, 5, 130)])
def test_every_level_of_cells(shim_backend, shape):
    """Needles and giants of all lengths in long lattices, each found by the bricks it reaches."""
    axis = max(range(3), key=lambda k: shape[k])
    parts = []
    for k, length in enumerate((2.0, 5.0, 11.0, 23.0, 60.0, 170.0, 900.0)):
        scales = [[0.8, 0.8, 0.8]]
        scales[0][axis] = length
        covariance = fields.covariances_of(scales, torch.eye(3)[None].numpy())[0]
        mean = [0.4 * s for s in shape]
        mean[axis] = (0.13 * k + 0.1) * shape[axis]
        parts.append(fields.single(mean, covariance))
    field = fields.concatenated(*parts)
    grad_sums = random_like_sums(field, shape)
    sums, gradients = truth_and_gradients(field, shape, grad_sums)
    computed = results(shim_backend, field, shape, grad_sums)
    assert fields.relative_error(computed[0], sums) < 1e-6
    for value, truth in zip(computed[1:], gradients):
        assert fields.rms_error(value, truth) < 2e-6


def test_levels_are_counted_alike_on_both_sides(shim_backend):
    """The top level's one cell is the last key but one: Python and C++ must agree on the number."""
    for shape in ((1, 1, 1), (8, 9, 64), (65, 3, 7), (33, 200, 16)):
        field = fields.single((-50.0, 0.0, 0.0), (1.0, 0, 0, 1.0, 0, 1.0))
        keys, stats = torch.zeros(1, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)
        shim_backend.operators.prepare(*field[:3], keys, stats, 1, 0, *shape, 3.0, 0)
        assert int(keys) == count_cells(shape)


def test_same_bits_in_any_order_of_threads(shim_library, tmp_path):
    """Threads of a block run first to last, then last to first: a missing barrier shows as a difference."""
    script = """
import sys, torch
from bids_gsrecon.gpu.cuda import CudaBackend
from tests.gpu import cuda_shim, fields
field = fields.concatenated(
    fields.random_field(800, (20, 19, 18), n_channels=3, seed=33),
    fields.random_field(5, (20, 19, 18), n_channels=3, scale=8.0, seed=34),
)
grad_sums = torch.randn((4, 20, 19, 18), generator=torch.Generator().manual_seed(1))
plan = CudaBackend(cuda_shim.Operators(sys.argv[1]), 'cpu').plan(*field[:3], (20, 19, 18))
results = [plan.forward(field[3]), *plan.backward(field[3], grad_sums)]
plan._n_keys = 3000
torch.save([*results, *plan._sort(torch.arange(4500, dtype=torch.int32).flip(0) % 3000)], sys.argv[2])
"""
    saved = []
    for name, environment in (('a', None), ('b', cuda_shim.reversed_order())):
        path = tmp_path / name
        root = Path(__file__).resolve().parents[2]
        subprocess.run(
            [sys.executable, '-c', script, shim_library, path], check=True, env=environment, cwd=root
        )
        saved.append(torch.load(path))
    for a, b in zip(*saved):
        assert a.abs().max() > 0 and torch.equal(a, b)


def test_float64_centres_keep_their_precision(shim_backend):
    means, covariances, log_weights, amplitudes = fields.single((200.0, 3.0, 3.0), (1.0, 0, 0, 1.0, 0, 1.0))
    means = means.double()
    means[0, 0] += 1e-6
    sums = shim_backend.forward(means, covariances, log_weights, amplitudes, (210, 7, 7))
    assert sums[0, 201, 3, 3] > sums[0, 199, 3, 3]
    grads = shim_backend.backward(means, covariances, log_weights, amplitudes, (210, 7, 7), 3.0, sums)
    assert [g.dtype for g in grads] == [torch.float64] + 3 * [torch.float32]


def test_sums_are_laid_out_as_the_cpu_backend_does(shim_backend):
    """x fastest: `compose` then takes its fused path, and gradients come back without a copy."""
    field = fields.random_field(20, SHAPE, seed=35)
    sums = shim_backend.forward(*field, SHAPE)
    assert sums.stride(1) == 1 and compose(sums, 'normalized').shape == (1, *SHAPE)


def test_what_is_too_large_is_said(shim_backend, monkeypatch):
    field = fields.random_field(3, (9, 9, 9))
    with pytest.raises(ValueError, match='32767 voxels'):
        shim_backend.plan(*field[:3], (40_000, 2, 2))
    with pytest.raises(ValueError, match='too large for one pass'):
        shim_backend.plan(*field[:3], (30_000, 30_000, 30_000))
    giants = [
        t.repeat(50, *[1] * (t.ndim - 1)) for t in fields.single((4.0, 4.0, 4.0), (1e8, 0, 0, 1e8, 0, 1e8))
    ]
    monkeypatch.setattr(cuda, 'MAX_PAIRS', 50 * 9**3 - 1)
    with pytest.raises(ValueError, match='voxels in all'):
        shim_backend.plan(*giants[:3], (9, 9, 9))
    monkeypatch.setattr(cuda, 'MAX_PAIRS', 50 * 9**3)
    plan = shim_backend.plan(*giants[:3], (9, 9, 9))
    centre = float(plan.forward(giants[3])[0, 4, 4, 4])
    assert centre == pytest.approx(50 * (1 - math.exp(-4.5)), rel=1e-5)


def test_failed_allocation_is_one_sentence(shim_backend, monkeypatch):
    plan = shim_backend.plan(*fields.random_field(3, (9, 9, 9))[:3], (9, 9, 9))

    def fail(*_, **__):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate ...')

    monkeypatch.setattr(cuda.Kernels, 'empty', fail)
    with pytest.raises(RuntimeError, match=r'too little free memory for sums of 2 x \(9, 9, 9\) voxels'):
        plan.forward(torch.ones(3, 1))


def test_self_check(shim_backend):
    check_kernels(shim_backend)

    class Broken:
        def __getattr__(self, name):
            def call(*arguments):
                if name == 'pack':
                    raise RuntimeError('no kernel image is available\nfor this device')
                getattr(shim_backend.operators, name)(*arguments)

            return call

    with pytest.raises(RuntimeError, match=r'do not run here \(no kernel image is available\): use the cpu'):
        check_kernels(CudaBackend(Broken(), 'cpu'))
