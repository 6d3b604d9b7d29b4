"""The shared checks must be able to fail."""

import numpy as np
import pytest

from tests.helpers import assert_adjoint, assert_gradient, find_data_root, require_data

MATRIX = np.random.default_rng(0).standard_normal((4, 6))


def test_adjoint_passes_and_fails():
    assert_adjoint(lambda x: MATRIX @ x, lambda y: MATRIX.T @ y, (6,), (4,))
    with pytest.raises(AssertionError):
        assert_adjoint(lambda x: MATRIX @ x, lambda y: 1.001 * MATRIX.T @ y, (6,), (4,))
    with pytest.raises(AssertionError):
        assert_adjoint(lambda x: 0 * (MATRIX @ x), lambda y: 0 * (MATRIX.T @ y), (6,), (4,))


def test_gradient_passes_and_fails():
    def value(x):
        return float(np.sum(np.sin(x) * x))

    def gradient(x):
        return np.sin(x) + x * np.cos(x)

    x0 = np.linspace(-1, 2, 7)
    assert_gradient(value, gradient, x0)
    with pytest.raises(AssertionError):
        assert_gradient(value, lambda x: 1.01 * gradient(x), x0)


def test_absent_data_skip_with_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv('GSRECON_TEST_DATA', str(tmp_path / 'none'))
    assert find_data_root() is None
    with pytest.raises(pytest.skip.Exception, match='GSRECON_TEST_DATA'):
        require_data('a')
    monkeypatch.setenv('GSRECON_TEST_DATA', str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match='a/b is not'):
        require_data('a', 'b')
