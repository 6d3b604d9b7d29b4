"""What is kept between calls serves application and training alike."""

import torch

from bids_gsrecon.recon.m2asr.interpolant import weights


def test_matrices_kept_while_applying_serve_a_training():
    image = torch.rand(1, 13, 17)
    with torch.inference_mode():
        plain = weights(image).clone()
    leaf = image.clone().requires_grad_()
    trained = weights(leaf)
    trained.sum().backward()
    torch.testing.assert_close(trained.detach(), plain.clone())
    assert leaf.grad.abs().sum() > 0
