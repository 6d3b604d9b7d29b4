"""Ten million Gaussians: nothing overflows, nothing is lost between them."""

import pytest
import torch

from bids_gsrecon.gpu import cuda_build, get_backend
from tests.gpu import fields

SHAPE = (64, 64, 64)


def small_gaussians(n):
    """Centres everywhere in the lattice, a few voxels each: four float32 tensors."""
    generator = torch.Generator().manual_seed(41)
    means = torch.rand((n, 3), generator=generator) * 63
    covariances = torch.tensor([0.09, 0.02, 0.0, 0.07, 0.01, 0.08]).repeat(n, 1)
    return means, covariances, torch.zeros(n), torch.rand((n, 1), generator=generator)


@pytest.mark.parametrize(
    ('name', 'n'), [('cpu', 10_000_000), pytest.param('cuda', 10_000_000, marks=pytest.mark.cuda)]
)
def test_ten_million(name, n):
    if name == 'cuda' and (reason := cuda_build.why_not()):
        pytest.skip(reason)
    backend = get_backend(name)
    field = small_gaussians(n)
    plan = backend.plan(*field[:3], SHAPE)
    sums = plan.forward(field[3])
    # The parts add up to the whole.
    half = n // 2
    parts = [backend.forward(*(t[part] for t in field), SHAPE) for part in (slice(half), slice(half, n))]
    assert fields.relative_error(sums, parts[0].double() + parts[1].double()) < 1e-5
    # Adjointness in the amplitudes, which every pair of a Gaussian and a voxel enters.
    grad_sums = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(42))
    grad_sums[0] = 0
    grads = plan.backward(field[3], grad_sums)
    left = (sums.double() * grad_sums.double()).sum()
    right = (grads.amplitudes.double() * field[3].double()).sum()
    assert float(abs(left - right)) < 1e-6 * float(left)
    assert all(torch.isfinite(g).all() for g in grads)
    # In the middle the density is uniform: S[0] is the integral of one weight times the density.
    inner = slice(8, 56)
    assert float(sums[0, inner, inner, inner].std() / sums[0, inner, inner, inner].mean()) < 0.3
