"""What training minimises."""

from __future__ import annotations

import torch

from bids_gsrecon.recon.m2asr.config import Schedule
from bids_gsrecon.recon.m2asr.network import Prediction


def frequency_loss(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean modulus of the difference of the (unnormalised) 2D Fourier transforms of (B, H, W)."""
    return torch.fft.fft2(image - target).abs().mean()


def total_loss(
    prediction: Prediction, target: torch.Tensor, reference: torch.Tensor, schedule: Schedule
) -> torch.Tensor:
    """``L1 + a L1(FFT) + b L1(decoded reference)`` of images (B, H, W)."""
    image = prediction.render()
    loss = (image - target).abs().mean()
    if schedule.frequency_loss:
        loss = loss + schedule.frequency_loss * frequency_loss(image, target)
    if prediction.reference is not None:
        loss = loss + schedule.reference_loss * (prediction.reference.float() - reference).abs().mean()
    return loss
