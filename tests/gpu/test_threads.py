"""The same bits at any number of threads."""

import numba
import numpy as np
import pytest
import torch

from bids_gsrecon.gpu import FrozenWeights, get_backend, set_num_threads, side_by_side, thread_limit
from tests.gpu import fields

needs_two = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason='numba was started with one thread')


@pytest.fixture(autouse=True)
def restore_threads():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def crowded_field():
    """Many bricks of both classes, giants and needles, all overlapping."""
    shape = (70, 75, 66)
    return (
        fields.concatenated(
            fields.random_field(3000, shape, scale=1.4, seed=21),
            fields.random_field(150, shape, scale=4.0, seed=22),
            fields.random_field(6, shape, scale=11.0, seed=23),
            fields.needle((30.0, 30.0, 30.0), (1, 1, 0.5), 9.0, 0.5),
            fields.needle((40.0, 32.0, 28.0), (1, -1, 0.5), 7.0, 0.4),
        ),
        shape,
    )


@needs_two
def test_sums_and_gradients():
    field, shape = crowded_field()
    grad_sums = torch.randn((2, *shape), generator=torch.Generator().manual_seed(1))
    results = []
    for n in (1, 2, 1, 2):
        backend = get_backend('cpu', n_threads=n)
        results.append((backend.forward(*field, shape), *backend.backward(*field, shape, 3.0, grad_sums)))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


@needs_two
def test_frozen_products():
    field, shape = crowded_field()
    cell_weights = np.kron(np.eye(22), np.full((1, 3), 1 / 3))
    results = []
    for n in (1, 2, 2):
        set_num_threads(n)
        operator = FrozenWeights.build(*field[:3], shape, composition='normalized', cell_weights=cell_weights)
        image = operator.forward(field[3].numpy()[:, 0])
        results.append((image, operator.adjoint(image), operator.column_sums_of_squares()))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert np.array_equal(a, b)


def test_setting_threads():
    assert set_num_threads(1) == 1 == numba.get_num_threads()
    assert set_num_threads(10**6) == numba.config.NUMBA_NUM_THREADS
    set_num_threads(1)
    field = fields.random_field(5, (9, 9, 9))
    get_backend('cpu', n_threads=2).forward(*field, (9, 9, 9))
    assert numba.get_num_threads() == 1  # a backend's own number is given back


@pytest.mark.parametrize('n_threads', [1, 2])
def test_side_by_side_keeps_the_order_and_hands_on_errors(n_threads):
    with thread_limit(n_threads):
        assert side_by_side(lambda n: n * n, range(20)) == [n * n for n in range(20)]
        assert side_by_side(str, []) == []
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda n: 1 / n, (2, 1, 0))
