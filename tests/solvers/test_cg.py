import numpy as np
import pytest

from bids_gsrecon.solvers.cg import conjugate_gradient
from bids_gsrecon.solvers.reductions import descend, dot, median


def spd(n, seed=0):
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(n, n)) / np.sqrt(n)
    return (m @ m.T + np.diag(rng.uniform(0.5, 5.0, n))).astype(np.float32)


def test_solves_a_system_of_any_shape():
    h = spd(60)
    truth = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    b = (h @ truth.ravel()).reshape(truth.shape)
    result = conjugate_gradient(
        lambda p: (h @ p.ravel()).reshape(p.shape), b, max_iterations=100, tolerance=1e-7
    )
    np.testing.assert_allclose(result.x, truth, atol=2e-4)
    assert 0 < result.n_iterations <= 100


def test_preconditioner_saves_iterations():
    scale = np.logspace(0, 3, 200).astype(np.float32)
    b = np.ones(200, np.float32)
    plain = conjugate_gradient(lambda p: scale * p, b, max_iterations=300, tolerance=1e-5)
    jacobi = conjugate_gradient(lambda p: scale * p, b, inverse_diagonal=1 / scale, tolerance=1e-5)
    assert jacobi.n_iterations <= 2 < plain.n_iterations
    np.testing.assert_allclose(jacobi.x, 1 / scale, rtol=1e-4)


def test_preconditioner_of_another_shape_is_refused():
    with pytest.raises(ValueError, match='broadcast'):
        conjugate_gradient(lambda p: p, np.ones(200), inverse_diagonal=np.ones(199))


def test_start_is_used_and_not_changed():
    h = spd(30)
    truth = np.arange(30, dtype=np.float32)
    start = truth.copy()
    result = conjugate_gradient(lambda p: h @ p, h @ truth, x0=start, tolerance=1e-4)
    assert result.n_iterations == 0
    np.testing.assert_array_equal(start, truth)


def test_zero_right_hand_side_gives_zero():
    result = conjugate_gradient(lambda p: p, np.zeros(5), x0=np.ones(5))
    np.testing.assert_array_equal(result.x, 0)


@pytest.mark.parametrize('n', [1, 7, 65536, 200_001])
def test_dot_does_not_depend_on_threads(n):
    import numba

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    before = numba.get_num_threads()
    values = set()
    for threads in {1, before}:
        numba.set_num_threads(threads)
        values.add(dot(a, b))
    numba.set_num_threads(before)
    assert len(values) == 1
    assert values.pop() == pytest.approx(float(a.astype(float) @ b.astype(float)), abs=1e-6 * n)


@pytest.mark.parametrize('n', [1, 2, 7, 200_000, 200_001])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_median_has_the_bits_of_numpys(n, dtype):
    values = np.random.default_rng(n).normal(size=n).astype(dtype)
    before = values.copy()
    assert median(values) == float(np.median(values))
    np.testing.assert_array_equal(values, before)


def test_descend_steps_and_measures_in_one_pass():
    rng = np.random.default_rng(0)
    x, r, p, hp, scale = rng.normal(size=(5, 70_000)).astype(np.float32)
    wanted = x + np.float32(0.3) * p, r - np.float32(0.3) * hp
    product = descend(x, r, p, hp, scale, 0.3)
    np.testing.assert_array_equal((x, r), wanted)
    assert product == dot(r, scale * r)
