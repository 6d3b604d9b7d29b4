"""Differentiable 2D Gaussians: against plain torch in float64, finite differences, and what rendering must keep."""

import numpy as np
import pytest
import torch

from bids_gsrecon.gpu import thread_limit
from bids_gsrecon.gpu.render2d import (
    CUTOFF,
    count_evaluations,
    on_grid,
    render2d,
    render_torch,
)


def gaussians(n=40, size=(17, 23), seed=0, widths=(0.3, 2.5)):
    """(2, n, 6) float64."""
    rng = np.random.default_rng(seed)
    p = np.empty((2, n, 6))
    p[..., :2] = rng.uniform(-1, 1, (2, n, 2)) + rng.uniform(0, 1, (2, n, 2)) * size
    p[..., 2:4] = rng.uniform(*widths, (2, n, 2))
    p[..., 4] = rng.uniform(-0.9, 0.9, (2, n))
    p[..., 5] = rng.standard_normal((2, n))
    return torch.from_numpy(p)


def test_one_gaussian_is_the_formula():
    x, y, sx, sy, rho, w = 4.3, 5.6, 1.4, 0.8, 0.6, 2.0
    image = render2d(torch.tensor([[[x, y, sx, sy, rho, w]]]), (10, 12))[0].double().numpy()
    dx, dy = np.meshgrid(np.arange(10) - x, np.arange(12) - y, indexing='ij')
    q = (dx**2 / sx**2 - 2 * rho * dx * dy / (sx * sy) + dy**2 / sy**2) / (1 - rho**2)
    expected = w * np.maximum(np.exp(-q / 2) - np.exp(-(CUTOFF**2) / 2), 0)
    np.testing.assert_allclose(image, expected, atol=2e-6)
    # What the cut takes from the plain exponential: the value at the cut, 0.4 % of the peak.
    assert np.abs(image - w * np.exp(-q / 2)).max() <= 1.001 * w * np.exp(-(CUTOFF**2) / 2)


def test_kernels_equal_torch_in_float64():
    p = gaussians()
    np.testing.assert_allclose(
        render2d(p.float(), (17, 23)).numpy(), render_torch(p, (17, 23)).numpy(), atol=5e-6
    )


def test_gradients_equal_autograd_in_float64():
    p = gaussians(seed=1)
    weights = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 17, 23)))
    exact, ours = p.clone().requires_grad_(), p.float().requires_grad_()
    (render_torch(exact, (17, 23)) * weights).sum().backward()
    (render2d(ours, (17, 23)) * weights.float()).sum().backward()
    scale = exact.grad.abs().amax((0, 1))
    assert ((ours.grad - exact.grad).abs().amax((0, 1)) / scale).max() < 2e-4


def test_reference_gradients_equal_finite_differences():
    # Away from the cut the derivative is smooth: nothing lies within 1e-3 of the shell for this seed.
    p = gaussians(n=3, seed=3, size=(7, 8)).requires_grad_()
    torch.autograd.gradcheck(lambda t: render_torch(t, (7, 8)), (p,), eps=1e-6, atol=1e-5)


def test_any_scale_is_the_same_image():
    """The image at twice the resolution, averaged over 2 x 2, is the image (for Gaussians wide enough to sample)."""
    p = gaussians(seed=4, widths=(1.5, 3.0)).float()
    p[..., 4] *= 0.5
    coarse, fine = render2d(p, (17, 23)), render2d(p, (34, 46), scale=2)
    means = fine.unflatten(1, (17, 2)).unflatten(-1, (23, 2)).mean((2, 4))
    assert (means - coarse).abs().max() < 0.03 * coarse.abs().max()
    # The pixels of a grid three times as fine hold those of the coarse one.
    middle = render2d(p, (51, 69), scale=3)[:, 1::3, 1::3]
    np.testing.assert_allclose(middle.numpy(), coarse.numpy(), atol=2e-5)


def test_scales_need_not_be_whole_nor_equal():
    p = gaussians(seed=5).float()
    at = on_grid(p, (1.7, 2.3))
    assert at[0, 0, 2] == p[0, 0, 2] * 1.7 and at[0, 0, 3] == p[0, 0, 3] * 2.3
    image = render2d(p, (29, 53), scale=(1.7, 2.3))
    np.testing.assert_allclose(image.numpy(), render_torch(at.double(), (29, 53)).numpy(), atol=5e-6)


def test_translation_by_a_pixel():
    p = gaussians(seed=6).float()
    moved = p.clone()
    moved[..., 0] += 1
    a, b = render2d(p, (17, 23)), render2d(moved, (18, 23))
    np.testing.assert_allclose(b[:, 1:].numpy(), a.numpy(), atol=1e-5)


def test_order_and_threads_do_not_matter():
    p = gaussians(n=300, seed=7).float()
    image = render2d(p, (17, 23))
    np.testing.assert_allclose(render2d(p.flip(1), (17, 23)).numpy(), image.numpy(), atol=2e-5)
    with thread_limit(1):
        assert torch.equal(render2d(p, (17, 23)), image)


def test_far_fewer_evaluations_than_a_window_of_64():
    """At least 20 times fewer than the released window of 129 x 129, even for the widest published Gaussians."""
    n = 64
    at = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing='ij'), -1).reshape(1, -1, 2)
    window = 129 * 129
    for width, least in ((3.33, 20), (0.83, 200), (0.55, 200)):
        p = torch.cat([at, torch.tensor([width, width, 0.0, 1.0]).expand(1, n * n, 4)], -1).float()
        # A margin around the image, so that no Gaussian is cut short by its edge.
        p[..., :2] += 20
        assert count_evaluations(p, (n + 40, n + 40)) * least < n * n * window
    # The count is that of pixels whose weight the kernels compute: never fewer than those inside the ellipse.
    inside = (render_torch(p.double()[:, :1], (n + 40, n + 40)) > 0).sum()
    assert count_evaluations(p[:, :1], (n + 40, n + 40)) >= inside


def test_nearly_singular_gaussians_are_rendered():
    p = torch.tensor([[[5.0, 5.0, 1e-6, 1.0, 0.999999, 1.0]]], requires_grad=True)
    image = render2d(p, (11, 11))
    image.sum().backward()
    assert torch.isfinite(image).all() and torch.isfinite(p.grad).all()


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match='parameters must be'):
        render2d(torch.zeros(1, 2, 5), (4, 4))
