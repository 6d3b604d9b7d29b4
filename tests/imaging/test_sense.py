"""Multi-coil encoding: adjoint, gradient, against a plain Fourier transform."""

import numpy as np
import pytest

from bids_gsrecon.imaging.sense import SenseSeries, centred_fft, centred_ifft

N_FRAMES, N_COILS, SHAPE = 3, 4, (7, 10)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    complex_normal = lambda *s: (rng.normal(size=s) + 1j * rng.normal(size=s)).astype(np.complex64)  # noqa: E731
    maps, images = complex_normal(N_COILS, *SHAPE), complex_normal(N_FRAMES, *SHAPE)
    mask = rng.uniform(size=(N_FRAMES, SHAPE[1])) < 0.5
    mask[0] = False
    mask[0, 3] = True  # frames of different numbers of lines
    hybrid = centred_fft(images[:, None] * maps, 3) * mask[:, None, None]
    return maps, images, mask, hybrid.astype(np.complex64), complex_normal


def test_matches_a_fourier_transform(problem):
    maps, images, mask, hybrid, _ = problem
    weights = mask * np.array([1.0, 0.5, 2.0])[:, None]
    series = SenseSeries(maps, hybrid, weights)
    gradient, power = series.gradient(images)
    assert power < 1e-8 * np.abs(series.data).max() ** 2 * series.n_samples
    assert np.abs(gradient).max() < 1e-4
    assert series.n_samples == 2 * N_COILS * SHAPE[0] * mask.sum()
    zero_filled = (centred_ifft(hybrid * weights[:, None, None] ** 2, 3) * maps.conj()).sum(1)
    np.testing.assert_allclose(series.adjoint_of_data(), zero_filled, atol=2e-5)


def test_adjoint_and_normal(problem):
    maps, images, mask, hybrid, normal = problem
    series = SenseSeries(maps, hybrid, mask)
    samples = normal(*series.data.shape) * (np.abs(series.data) > 0)
    left, right = np.vdot(samples, series.forward(images)), np.vdot(series.adjoint(samples), images)
    assert abs(left - right) < 1e-5 * abs(left)
    np.testing.assert_allclose(series.normal(images), series.adjoint(series.forward(images)), atol=1e-5)
    planes = np.stack([images.real, images.imag], 1)
    np.testing.assert_array_equal(series.gradient(planes)[0], series.gradient(images)[0])


def test_gradient_is_that_of_half_the_power(problem):
    maps, images, mask, hybrid, normal = problem
    series = SenseSeries(maps, hybrid, mask)
    direction, x = normal(*images.shape), 0.5 * images
    step = 1e-2
    numeric = (series.gradient(x + step * direction)[1] - series.gradient(x - step * direction)[1]) / (
        4 * step
    )
    assert numeric == pytest.approx(np.vdot(direction, series.gradient(x)[0]).real, rel=1e-3)


def test_residual_power_by_line(problem):
    maps, images, mask, hybrid, _ = problem
    series = SenseSeries(maps, hybrid, mask)
    power = series.residual_power(np.zeros_like(images))
    for t in range(N_FRAMES):
        np.testing.assert_allclose(power[t], (np.abs(hybrid[t][:, :, mask[t]]) ** 2).mean(1), rtol=1e-4)


def test_shapes_that_do_not_fit(problem):
    maps, _, mask, hybrid, _ = problem
    with pytest.raises(ValueError, match='do not fit'):
        SenseSeries(maps[:, :, :-1], hybrid, mask)


@pytest.mark.parametrize('n', [7, 8])
def test_centred_transform(n):
    delta = np.zeros(n, complex)
    delta[n // 2] = 1
    np.testing.assert_allclose(centred_fft(delta, 0), np.full(n, n**-0.5), atol=1e-12)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, n)) + 1j * rng.normal(size=(2, n))
    np.testing.assert_allclose(centred_ifft(centred_fft(x, 0), 0), x)
    assert np.vdot(y, centred_fft(x, 0)) == pytest.approx(np.vdot(centred_ifft(y, 0), x))
