"""Complex 2D Gaussians against plain formulas, finite differences and the adjoint; bits and threads."""

import math
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch

from bids_gsrecon.gpu import thread_limit
from bids_gsrecon.gpu.reference import reference_splat2d
from bids_gsrecon.gpu.splat2d import frame_planes, splat, splat_gradient


def some_gaussians(n_frames=3, n=40, shape=(23, 31), seed=0):
    """Inside, at the edges and outside; narrow, wide and oblique."""
    rng = np.random.default_rng(seed)
    columns = [
        rng.uniform(-3, shape[0] + 3, (n_frames, n)),
        rng.uniform(-3, shape[1] + 3, (n_frames, n)),
        rng.uniform(0.4, 3, (n_frames, n)),
        rng.normal(size=(n_frames, n)),
        rng.uniform(0.4, 3, (n_frames, n)),
        *rng.normal(size=(2, n_frames, n)),
    ]
    return np.stack(columns, -1).astype(np.float32)


@pytest.mark.parametrize('shape', [(23, 31), (1, 9), (40, 1), (8, 8)])
@pytest.mark.parametrize('cutoff', [3.0, 2.0])
def test_values_and_gradients_match_the_formula(shape, cutoff):
    p = some_gaussians(shape=shape)
    exact = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    image = reference_splat2d(exact, shape, cutoff)
    np.testing.assert_allclose(splat(p, shape, cutoff=cutoff), image.detach().numpy(), atol=3e-6)
    gradient = np.random.default_rng(1).normal(size=image.shape).astype(np.float32)
    (image * torch.tensor(gradient)).sum().backward()
    expected = exact.grad.numpy()
    got = splat_gradient(p, gradient, cutoff=cutoff)
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_the_formula_has_the_gradient_of_finite_differences():
    p = torch.tensor(some_gaussians(1, 5), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q: (reference_splat2d(q, (9, 11)) ** 2).sum(), (p,), eps=1e-6, atol=1e-5
    )


def test_gradients_match_finite_differences_of_the_kernel():
    shape = (20, 18)
    p = some_gaussians(1, 6, shape, seed=3)
    p[..., 2:5] += (0.8, 0, 0.8)
    gradient = np.random.default_rng(2).normal(size=(1, 2, *shape))
    smooth = gradient.astype(np.float32)
    got = splat_gradient(p, smooth)
    for m in range(p.shape[1]):
        for k in range(7):
            step = 2e-2
            tolerance = 0.05 * max(1.0, float(np.abs(got[0, :, k]).max()))
            up, down = p.copy(), p.copy()
            up[0, m, k] += step
            down[0, m, k] -= step
            numeric = float(((splat(up, shape).astype(np.float64) - splat(down, shape)) * gradient).sum()) / (
                2 * step
            )
            assert numeric == pytest.approx(float(got[0, m, k]), abs=tolerance)


def test_adjoint_in_the_amplitudes():
    shape, rng = (19, 22), np.random.default_rng(4)
    p = some_gaussians(2, 30, shape)
    planes = rng.normal(size=(2, 2, *shape)).astype(np.float32)
    left = float((splat(p, shape).astype(np.float64) * planes).sum())
    right = float((splat_gradient(p, planes)[..., 5:].astype(np.float64) * p[..., 5:]).sum())
    assert left == pytest.approx(right, rel=1e-5)


def test_a_round_gaussian_has_its_analytic_values_and_turns_with_its_factor():
    p = np.array([[[10, 12, 2, 0, 2, 3, -1]]], np.float32)
    image = splat(p, (21, 25))
    floor = math.exp(-4.5)
    assert image[0, 0, 10, 12] == pytest.approx(3 * (1 - floor), rel=1e-6)
    assert image[0, 1, 12, 12] == pytest.approx(-(math.exp(-0.5) - floor), rel=1e-5)
    assert image[0, 0, 17, 12] == 0
    np.testing.assert_allclose(image[0, :, 7:14, 12], image[0, :, 10, 9:16], rtol=1e-5)


def test_adds_to_what_is_there_and_ignores_the_order_of_frames():
    p = some_gaussians(4, 25, (16, 17))
    out = frame_planes(4, (16, 17))
    splat(p, (16, 17), out=out)
    np.testing.assert_array_equal(splat(p[::-1], (16, 17))[::-1], out)
    splat(p, (16, 17), out=out)
    np.testing.assert_allclose(out, 2 * splat(p, (16, 17)), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason='numba was started with one thread')
@pytest.mark.parametrize('n_frames', [1, 2, 20])
def test_any_number_of_threads_gives_the_same_bits(n_frames):
    p = some_gaussians(n_frames, 300, (40, 37))
    gradient = np.random.default_rng(0).normal(size=(n_frames, 2, 40, 37)).astype(np.float32)
    results = []
    for n in (1, 2, 2):
        with thread_limit(n):
            results.append((splat(p, (40, 37)), splat_gradient(p, gradient)))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert np.array_equal(a, b)


def test_refuses_what_it_cannot_draw():
    p = some_gaussians(1, 2)
    for place, value in ((0, np.nan), (2, 0.0), (4, -1.0), (5, np.inf)):
        bad = p.copy()
        bad[0, 1, place] = value
        with pytest.raises(ValueError, match='not finite or one of its widths'):
            splat(bad, (8, 8))
    with pytest.raises(ValueError, match='parameters must be'):
        splat(p[..., :6], (8, 8))
    with pytest.raises(ValueError, match='frame_planes'):
        splat(p, (8, 8), out=np.zeros((1, 2, 8, 8), np.float32))
    with pytest.raises(ValueError, match='gradient must be'):
        splat_gradient(p, np.zeros((2, 2, 8, 8), np.float32))


def test_no_gaussians():
    assert not splat(np.zeros((2, 0, 7), np.float32), (5, 6)).any()
    assert splat_gradient(np.zeros((2, 0, 7), np.float32), np.ones((2, 2, 5, 6), np.float32)).shape == (
        2,
        0,
        7,
    )


CASES = {
    'many, odd shape': (some_gaussians(3, 300), (23, 31)),
    'one row': (some_gaussians(2, 40, (1, 70)), (1, 70)),
    'one column': (some_gaussians(2, 40, (70, 1)), (70, 1)),
    'several tiles': (some_gaussians(2, 150, (50, 67)), (50, 67)),
    'giants': (some_gaussians(1, 5, (60, 90)) * np.array([1, 1, 40, 40, 40, 1, 1], np.float32), (60, 90)),
    'needles': (some_gaussians(1, 60, (40, 40)) * np.array([1, 1, 0.1, 8, 1, 1, 1], np.float32), (40, 40)),
    'far outside': (some_gaussians(1, 20) + np.array([1e6, -1e6, 0, 0, 0, 0, 0], np.float32), (23, 31)),
    'none': (np.zeros((2, 0, 7), np.float32), (5, 6)),
    'no frames': (np.zeros((0, 4, 7), np.float32), (5, 6)),
}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('cutoff', [3.0, 3.3])
def test_every_backend_agrees_with_the_formula(backend, name, cutoff):
    p, shape = CASES[name]
    p = torch.tensor(p)
    exact = p.double().requires_grad_()
    truth = reference_splat2d(exact, shape, cutoff)
    given = p.double() if backend.name == 'reference' else p
    frames = backend.splat2d(given, shape, cutoff)
    assert frames.shape == truth.shape
    scale = float(truth.detach().abs().max()) if truth.numel() else 0.0
    torch.testing.assert_close(frames.double(), truth.detach(), rtol=0, atol=1e-5 * max(scale, 1e-3))
    planes = torch.tensor(np.random.default_rng(1).normal(size=truth.shape).astype(np.float32))
    gradient = backend.splat2d_gradient(given, planes, cutoff)
    assert gradient.dtype == given.dtype and gradient.shape == p.shape
    if p.numel():
        (truth * planes.double()).sum().backward()
        # The gradient jumps at the cut, where float32 may see a pixel on its other side: few and small.
        error = (gradient.double() - exact.grad).norm() / exact.grad.norm().clamp_min(1e-12)
        assert error < 1e-3


def test_backends_refuse_the_same(backend):
    good = torch.tensor(some_gaussians(1, 2))
    bad = good.clone()
    bad[0, 1, 2] = 0
    with pytest.raises(ValueError, match='not finite or one of its widths'):
        backend.splat2d(bad, (8, 8))
    with pytest.raises(ValueError, match='parameters must be'):
        backend.splat2d(good[..., :6], (8, 8))
    with pytest.raises(ValueError, match='a frame has two positive sizes'):
        backend.splat2d(good, (8, 0))
    with pytest.raises(ValueError, match='planes must be'):
        backend.splat2d_gradient(good, torch.zeros(2, 2, 8, 8))


def test_kernels_give_the_same_bits_in_any_order_of_threads(shim_library):
    """A missing barrier would show: the shim runs warps and lanes from the last to the first."""
    from tests.gpu import cuda_shim

    code = (
        'import sys, torch, hashlib; from tests.gpu import cuda_shim; from tests.gpu.test_splat2d import CASES;'
        'from bids_gsrecon.gpu.cuda import CudaBackend;'
        'b = CudaBackend(cuda_shim.Operators(sys.argv[1]), "cpu"); p, s = CASES["several tiles"];'
        'p = torch.tensor(p); f = b.splat2d(p, s);'
        'print(hashlib.sha1(f.numpy().tobytes() + b.splat2d_gradient(p, f).numpy().tobytes()).hexdigest())'
    )
    command = [sys.executable, '-c', code, str(shim_library)]
    straight, turned = (
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        for env in (None, cuda_shim.reversed_order())
    )
    assert straight == turned
