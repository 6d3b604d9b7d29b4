"""The CUDA kernels of 2D Gaussians, their own sources run on the CPU (see cuda_shim.py)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_gsrecon.gpu.cuda_render2d import Render2d
from bids_gsrecon.gpu.render2d import factors, render_torch
from tests.gpu import cuda_shim

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def renderer(shim_library):
    return Render2d(cuda_shim.Operators(shim_library))


def on_cells(grid, shape, *, spread=0.5, widths=(0.3, 1.5), seed=0, batch=2):
    """Gaussians about the cells of a grid over an image, (B, gx gy, 6) float64."""
    rng = np.random.default_rng(seed)
    p = np.empty((batch, *grid, 6))
    for axis, (g, n) in enumerate(zip(grid, shape)):
        home = (np.arange(g) + 0.5) * n / g - 0.5
        p[..., axis] = home[:, None] if axis == 0 else home
    p[..., :2] += rng.uniform(-spread, spread, p[..., :2].shape)
    p[..., 2:4] = rng.uniform(*widths, p[..., 2:4].shape)
    p[..., 4] = rng.uniform(-0.9, 0.9, p[..., 4].shape)
    p[..., 5] = rng.standard_normal(p[..., 5].shape)
    return torch.from_numpy(p.reshape(batch, -1, 6))


CASES = {
    'as trained': dict(grid=(20, 18), shape=(20, 18)),
    'finer image': dict(grid=(12, 9), shape=(31, 40), widths=(1.0, 4.0)),
    'coarser image': dict(grid=(40, 36), shape=(17, 20), widths=(0.3, 0.8)),
    'anywhere': dict(grid=(9, 9), shape=(33, 20), spread=40.0),
    'one row': dict(grid=(1, 50), shape=(20, 30), spread=15.0),
    'wide': dict(grid=(4, 4), shape=(40, 40), widths=(5.0, 30.0)),
}


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_images_and_gradients(renderer, case):
    p = on_cells(**case)
    grid, shape = case['grid'], case['shape']
    weights = torch.from_numpy(np.random.default_rng(1).standard_normal((2, *shape)))
    exact = factors(p).requires_grad_()
    image = _of_factors(exact, shape)
    torch.testing.assert_close(image, render_torch(p, shape), rtol=1e-9, atol=1e-9)
    ours = renderer.splat(factors(p).float(), grid, shape, 3.3)
    assert (ours - image).abs().max() < 5e-6 * image.abs().max().clamp_min(1)
    (image * weights).sum().backward()
    gradient = renderer.gradient(factors(p).float(), weights.float(), 3.3)
    scale = exact.grad[..., :6].square().mean((0, 1)).sqrt()
    error = (gradient - exact.grad)[..., :6].square().mean((0, 1)).sqrt()
    assert (error / scale).max() < 2e-4 and not gradient[..., 6].any()


def _of_factors(p, shape):
    """The sum over all pixels and Gaussians at once, from Cholesky factors."""
    x, y, l11, l21, l22, w, _ = (v[:, :, None, None] for v in p.unbind(-1))
    px = torch.arange(shape[0])[:, None]
    z1 = (px - x) / l11
    z2 = (torch.arange(shape[1]) - y - l21 * z1) / l22
    level = np.exp(-0.5 * 3.3**2)
    return (w * (torch.exp(-0.5 * (z1**2 + z2**2)) - level).clamp_min(0)).sum(1)


def test_nothing_to_draw(renderer):
    assert not renderer.splat(torch.zeros(2, 0, 7), (0, 4), (5, 6), 3.3).any()
    assert renderer.gradient(torch.zeros(2, 0, 7), torch.zeros(2, 5, 6), 3.3).shape == (2, 0, 7)
    with pytest.raises(ValueError, match='not finite'):
        renderer.splat(torch.full((1, 4, 7), float('nan')), (2, 2), (5, 6), 3.3)


def test_order_of_threads_does_not_matter(shim_library, tmp_path):
    script = """
import sys, torch
from bids_gsrecon.gpu.cuda_render2d import Render2d
from tests.gpu import cuda_shim
from tests.gpu.test_cuda_render2d import on_cells
from bids_gsrecon.gpu.render2d import factors
p = factors(on_cells((20, 18), (33, 29))).float()
renderer = Render2d(cuda_shim.Operators(sys.argv[1]))
image = renderer.splat(p, (20, 18), (33, 29), 3.3)
torch.save((image, renderer.gradient(p, image, 3.3)), sys.argv[2])
"""
    for name, environment in (('a', None), ('b', cuda_shim.reversed_order())):
        command = [sys.executable, '-c', script, shim_library, tmp_path / name]
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
    a, b = (torch.load(tmp_path / name) for name in 'ab')
    assert all(torch.equal(x, y) for x, y in zip(a, b))
