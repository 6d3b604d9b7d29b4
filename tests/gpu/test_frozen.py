"""The stored operator: adjointness, agreement with rendering, slice profiles, memory."""

import numpy as np
import pytest
import torch

from bids_gsrecon.gpu import DEFAULT_EPS, FrozenWeights, rasterize
from bids_gsrecon.gpu.reference import reference_sums
from tests.gpu import fields

SHAPE = (22, 18, 15)


def box_slices(n_fine, factor, overlap=1):
    """Rows of a slice profile with overlap: banded, of unequal weights."""
    n_slices = n_fine // factor
    weights = np.zeros((n_slices, n_fine))
    for s in range(n_slices):
        part = slice(max(0, s * factor - overlap), min(n_fine, (s + 1) * factor + overlap))
        weights[s, part] = 1.0 + 0.1 * np.arange(part.stop - part.start)
    return weights / weights.sum(1, keepdims=True)


def truth(field, composition, shape=SHAPE):
    """float64 image (nx, ny, nz) of channel 0, and the mask of voxels with a weight worth the name."""
    sums = reference_sums(*fields.as_double(field), shape).numpy()
    image = sums[1] if composition == 'sum' else sums[1] / (sums[0] + DEFAULT_EPS)
    return image, sums[0] > 1e-2


def assert_adjoint(operator, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(operator.n_gaussians).astype(np.float32)
    y = rng.standard_normal(operator.shape).astype(np.float32)
    forward, adjoint = operator.forward(a), operator.adjoint(y)
    assert forward.shape == operator.shape and adjoint.shape == a.shape
    left, right = (
        np.vdot(forward.astype(float), y.astype(float)),
        np.vdot(a.astype(float), adjoint.astype(float)),
    )
    assert abs(left - right) < 1e-6 * np.linalg.norm(forward) * np.linalg.norm(y)


@pytest.mark.parametrize('composition', ['sum', 'normalized'])
def test_without_profile_it_is_the_rendered_image(composition):
    field = fields.random_field(80, SHAPE, seed=31)
    operator = FrozenWeights.build(*field[:3], SHAPE, composition=composition)
    expected, covered = truth(field, composition)
    image = operator.forward(field[3].numpy()[:, 0])
    assert covered.mean() > 0.3
    assert np.abs(image - expected)[covered].max() < 1e-4 * np.abs(expected).max()
    rendered = rasterize(*field, SHAPE, composition=composition, backend='cpu')[0].numpy()
    assert np.abs(image - rendered)[covered].max() < 1e-4 * np.abs(expected).max()
    assert_adjoint(operator)


@pytest.mark.parametrize('composition', ['sum', 'normalized'])
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_with_profile_it_is_the_averaged_image(composition, axis):
    field = fields.random_field(120, SHAPE, scale=1.6, seed=32)
    cell_weights = box_slices(SHAPE[axis], 3)
    operator = FrozenWeights.build(
        *field[:3], SHAPE, composition=composition, cell_weights=cell_weights, axis=axis
    )
    image, covered = truth(field, composition)
    expected = np.moveaxis(np.tensordot(cell_weights, image, (1, axis)), 0, axis)
    poor = np.moveaxis(np.tensordot(cell_weights, ~covered * 1.0, (1, axis)), 0, axis)
    assert operator.shape == expected.shape
    error = np.abs(operator.forward(field[3].numpy()[:, 0]) - expected)
    assert error[poor == 0].max() < 1e-4 * np.abs(expected).max()
    assert (poor == 0).mean() > 0.2
    assert_adjoint(operator, axis)


def test_columns_are_what_the_documentation_says():
    """Dense matrix, column by column, in float64."""
    shape = (9, 8, 12)
    field = fields.random_field(7, shape, scale=2.0, margin=0, seed=33)
    cell_weights = box_slices(12, 4)
    sums = reference_sums(*fields.as_double(field)[:3], torch.eye(7).double(), shape).numpy()
    dense = np.tensordot(sums[1:] / (sums[0] + DEFAULT_EPS), cell_weights, (3, 1))  # (7, 9, 8, 3)
    operator = FrozenWeights.build(*field[:3], shape, composition='normalized', cell_weights=cell_weights)
    columns = operator.forward(np.eye(7))
    assert np.abs(columns - dense).max() < 1e-4
    weights = np.random.default_rng(0).uniform(0.5, 2, operator.shape)
    diagonal = operator.column_sums_of_squares(weights)
    assert np.allclose(diagonal, (dense**2 * weights).sum((1, 2, 3)), rtol=1e-4)
    assert np.allclose(operator.column_sums_of_squares(), (dense**2).sum((1, 2, 3)), rtol=1e-4)
    assert np.allclose(
        operator.adjoint(columns), np.einsum('iabc,jabc->ji', dense, dense), rtol=1e-3, atol=1e-4
    )


def test_divisor_of_a_larger_set():
    """Parts built with the whole's S0 add up to the whole."""
    field = fields.random_field(60, SHAPE, seed=34)
    s0 = reference_sums(*fields.as_double(field), SHAPE)[0].numpy()
    whole = FrozenWeights.build(*field[:3], SHAPE, composition='normalized')
    parts = [
        FrozenWeights.build(*(t[part] for t in field[:3]), SHAPE, composition='normalized', divisor=s0)
        for part in (slice(0, 25), slice(25, 60))
    ]
    a = field[3].numpy()[:, 0]
    together = parts[0].forward(a[:25]) + parts[1].forward(a[25:])
    assert np.abs(together - whole.forward(a))[s0 > 1e-2].max() < 1e-4 * np.abs(a).max()


@pytest.mark.parametrize('name', fields.hard_cases())
def test_hard_cases(name):
    field, shape = fields.hard_cases()[name]
    operator = FrozenWeights.build(*field[:3], shape, composition='sum')
    expected, _ = truth(field, 'sum', shape)
    image = operator.forward(field[3].numpy()[:, 0])
    assert np.abs(image - expected).max() <= 1e-4 * np.abs(expected).max()
    adjoint = operator.adjoint(np.ones(shape))
    assert adjoint.shape == (len(field[0]),) and np.isfinite(adjoint).all()
    if np.abs(image).sum() > 0:
        assert_adjoint(operator)


def test_rounding_is_far_below_float16():
    """The figure of the module's text: 8e-6 of a Gaussian's largest weight."""
    field = fields.single((10.3, 9.2, 7.1), (6.0, 1.0, 0.5, 5.0, 0.3, 4.0))
    image = FrozenWeights.build(*field[:3], SHAPE, composition='sum').forward(np.ones(1))
    expected, _ = truth(field, 'sum')
    assert np.abs(image - expected).max() < 9e-6 * expected.max()


def test_memory_is_bounded_by_the_estimate():
    field = fields.random_field(200, SHAPE, seed=35)
    cell_weights = box_slices(15, 3)
    operator = FrozenWeights.build(*field[:3], SHAPE, composition='sum', cell_weights=cell_weights)
    estimate = FrozenWeights.estimate_nbytes(field[1].numpy(), slice_spacing=3, slice_width=5)
    assert operator.nbytes < estimate + 4096
    inside = fields.random_field(200, (60, 60, 60), margin=-12, seed=35)
    operator = FrozenWeights.build(*inside[:3], (60, 60, 60), composition='sum')
    estimate = FrozenWeights.estimate_nbytes(inside[1].numpy())
    assert operator.nbytes < estimate + 4096 < 2.5 * operator.nbytes


def test_unusable_arguments_are_refused():
    means, covariances, log_weights, _ = fields.random_field(5, SHAPE)
    geometry = (means, covariances, log_weights)
    with pytest.raises(ValueError, match='unknown composition'):
        FrozenWeights.build(*geometry, SHAPE, composition='mean')
    with pytest.raises(ValueError, match='cell_weights'):
        FrozenWeights.build(*geometry, SHAPE, composition='sum', cell_weights=np.ones((3, 7)))
    with pytest.raises(ValueError, match='slice axis'):
        FrozenWeights.build(*geometry, SHAPE, composition='sum', axis=3)
    with pytest.raises(ValueError, match='divisor'):
        FrozenWeights.build(*geometry, SHAPE, composition='normalized', divisor=np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match='divisor'):
        FrozenWeights.build(*geometry, SHAPE, composition='sum', divisor=np.ones(SHAPE))
    operator = FrozenWeights.build(*geometry, SHAPE, composition='sum')
    with pytest.raises(ValueError, match='amplitudes'):
        operator.forward(np.zeros(6))
    with pytest.raises(ValueError, match='image'):
        operator.adjoint(np.zeros((3, 3, 3)))
