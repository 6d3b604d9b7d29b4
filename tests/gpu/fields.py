"""Small random sets of Gaussians for the engine's tests."""

from __future__ import annotations

import math

import numpy as np
import torch

from bids_gsrecon.gpu.reference import symmetric_matrices, voxel_centres

NAMES = ('means', 'covariances', 'log_weights', 'amplitudes')


def covariances_of(scales, rotations) -> np.ndarray:
    """(N, 6) from standard deviations (N, 3) and rotation matrices (N, 3, 3)."""
    factor = np.asarray(rotations) * np.asarray(scales, dtype=float)[:, None, :]
    full = factor @ factor.transpose(0, 2, 1)
    return full.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]


def random_rotations(rng, n) -> np.ndarray:
    """(n, 3, 3) uniformly random rotations."""
    q, r = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    q[:, :, 0] *= np.linalg.det(q)[:, None]
    return q


def random_field(n, shape, *, n_channels=1, scale=1.3, spread=0.35, margin=2.0, seed=0):
    """Anisotropic Gaussians in and somewhat around a lattice, as four float32 tensors.

    float32 on purpose: the float64 reference then sees the very numbers the fast backends see.
    """
    rng = np.random.default_rng(seed)
    means = rng.uniform(-margin, np.array(shape) - 1 + margin, (n, 3))
    scales = scale * np.exp(spread * rng.normal(size=(n, 3)))
    covariances = covariances_of(scales, random_rotations(rng, n))
    arrays = (means, covariances, 0.3 * rng.normal(size=n), rng.normal(size=(n, n_channels)))
    return tuple(torch.tensor(a, dtype=torch.float32).contiguous() for a in arrays)


def single(mean, covariance, *, log_weight=0.0, amplitude=1.0):
    """One Gaussian as four float32 tensors."""
    return (
        torch.tensor([mean], dtype=torch.float32),
        torch.tensor(np.array([covariance]), dtype=torch.float32),
        torch.tensor([log_weight], dtype=torch.float32),
        torch.tensor([[amplitude]], dtype=torch.float32),
    )


def needle(mean, direction, length, width):
    """A long thin Gaussian along ``direction``."""
    d = np.asarray(direction, float) / np.linalg.norm(direction)
    full = width**2 * np.eye(3) + (length**2 - width**2) * np.outer(d, d)
    return single(mean, full.reshape(9)[[0, 1, 2, 4, 5, 8]])


def concatenated(*fields):
    """The union of several sets."""
    return tuple(torch.cat(parts) for parts in zip(*fields))


def hard_cases():
    """Name -> (field, shape): everything a kernel could stumble over."""
    shape = (21, 18, 17)
    centre = (10.2, 8.7, 7.9)
    some = random_field(12, shape, seed=5)
    return {
        'none': (tuple(t[:0] for t in some), shape),
        'one': (random_field(1, shape, margin=-4, seed=1), shape),
        'giant': (concatenated(single(centre, (150.0, 30.0, -20.0, 120.0, 10.0, 90.0)), some), shape),
        'giant, large lattice': (
            concatenated(
                single((30.0, 20.0, 17.0), (90.0, 10.0, -5.0, 60.0, 8.0, 50.0)),
                single((20.0, 20.5, 18.0), (4.0, 0.1, -0.2, 30.0, 2.0, 5.0)),  # side 32, not a giant
                random_field(20, (40, 38, 36), scale=2.0, seed=6),
            ),
            (40, 38, 36),
        ),
        'needles': (
            concatenated(
                needle(centre, (1, 1, 1), 6.0, 0.4),
                needle(centre, (1, -1, 0.3), 9.0, 0.35),
                needle((3.1, 15.0, 4.2), (1, 0, 0), 8.0, 0.5),
                needle((12.0, 5.0, 9.0), (0.1, 0.2, 1), 5.0, 0.6),
            ),
            shape,
        ),
        'narrow': (  # between the voxels, or touching one only
            concatenated(
                single((5.5, 5.5, 5.5), (0.02, 0, 0, 0.02, 0, 0.02)),
                single((7.1, 6.0, 3.05), (0.02, 0, 0, 0.02, 0, 0.02)),
                single((9.0, 4.0, 3.0), (0.3, 0.1, 0, 0.2, 0, 0.1)),
            ),
            shape,
        ),
        'coincident': (concatenated(*[single(centre, (2, 0.5, 0, 2, 0, 3))] * 9), shape),
        'off grid': (
            concatenated(
                single((-40.0, 5.0, 5.0), (1, 0, 0, 1, 0, 1)),
                single((1e7, 5.0, -1e9), (1, 0, 0, 1, 0, 1)),
                single((-2.0, 19.0, 8.0), (2, 0.3, 0, 3, 0.1, 2)),
                single((22.5, 5.0, 18.5), (2, 0.3, 0, 3, 0.1, 2)),
            ),
            shape,
        ),
        'one slice': (random_field(30, (19, 23, 1), seed=7), (19, 23, 1)),
        'one row': (random_field(20, (1, 23, 1), seed=8, margin=1), (1, 23, 1)),
        'one voxel': (random_field(6, (1, 1, 1), seed=9, margin=1), (1, 1, 1)),
        'empty bricks': (
            concatenated(
                single((2.2, 2.1, 2.3), (1, 0, 0, 1, 0, 1)), single((10.1, 60.3, 2.4), (1, 0, 0, 1, 0, 1))
            ),
            (12, 64, 5),
        ),
        'extreme weights': (
            concatenated(
                single(centre, (2, 0, 0, 2, 0, 2), log_weight=-12.0, amplitude=1e4),
                single(centre, (3, 0.2, 0, 2, 0, 2), log_weight=6.0, amplitude=1e-3),
            ),
            shape,
        ),
    }


def as_double(field):
    """The same numbers in float64."""
    return tuple(t.double() for t in field)


def relative_error(value, truth) -> float:
    """Largest error over the largest magnitude of the truth (absolute where the truth is zero)."""
    if truth.numel() == 0:
        assert value.shape == truth.shape
        return 0.0
    scale = float(truth.abs().max())
    return float((value.double() - truth).abs().max()) / (scale or 1.0)


def rms_error(value, truth) -> float:
    """Root-mean-square error over the truth's root mean square."""
    if truth.numel() == 0:
        return 0.0
    return float(torch.linalg.vector_norm(value.double() - truth)) / (
        float(torch.linalg.vector_norm(truth)) or 1.0
    )


def voxels_at_cut(field, shape, cutoff=3.0, tolerance=1e-4) -> torch.Tensor:
    """Mask (nx, ny, nz) of the voxels with a q within ``tolerance`` of the cut, for any Gaussian."""
    means, covariances = field[0].double(), field[1].double()
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    points = voxel_centres(shape)
    for mean, covariance in zip(means, covariances):
        offset = points - mean
        q = (offset @ torch.linalg.inv(symmetric_matrices(covariance)) * offset).sum(1)
        mask |= (q - cutoff**2).abs() < tolerance
    return mask.reshape(shape)
