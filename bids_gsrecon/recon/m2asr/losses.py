"""What training minimises."""

from __future__ import annotations

import torch

from bids_gsrecon.recon.m2asr.config import Schedule
from bids_gsrecon.recon.m2asr.network import Prediction


def frequency_loss(
    image: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean modulus of the difference of the (unnormalised) 2D Fourier transforms of (B, H, W)."""
    return _mean(torch.fft.fft2(image - target).abs(), weights)


def total_loss(
    prediction: Prediction,
    target: torch.Tensor,
    reference: torch.Tensor,
    schedule: Schedule,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """``L1 + a L1(FFT) + b L1(decoded reference)`` of images (B, H, W); ``weights`` (B,) of them, none: all alike."""
    image = prediction.render()
    loss = _mean((image - target).abs(), weights)
    if schedule.frequency_loss:
        loss = loss + schedule.frequency_loss * frequency_loss(image, target, weights)
    if prediction.reference is not None:
        difference = (prediction.reference.float() - reference).abs()
        loss = loss + schedule.reference_loss * _mean(difference, weights)
    return loss


def _mean(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return values.mean() if weights is None else (values.mean((1, 2)) * weights).mean()
