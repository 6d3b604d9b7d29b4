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


def test_some_frames_are_as_in_the_whole(problem):
    maps, images, mask, hybrid, _ = problem
    series = SenseSeries(maps, hybrid, mask)
    parts = [series.of_frames(one) for one in (slice(0, None, 2), slice(1, None, 2))]
    whole, power = series.gradient(0.5 * images)
    for first, part in enumerate(parts):
        np.testing.assert_array_equal(part.gradient(0.5 * images[first::2])[0], whole[first::2])
    assert sum(part.gradient(0.5 * images[first::2])[1] for first, part in enumerate(parts)) == pytest.approx(
        power
    )
    assert sum(part.n_samples for part in parts) == series.n_samples


def test_lines_that_are_kept_out(problem):
    maps, images, mask, hybrid, _ = problem
    series = SenseSeries(maps, hybrid, mask)
    held = [0, -1, 1]
    rest, alone = series.split(held)
    x = 0.3 * images
    (g_rest, p_rest), (g_alone, p_alone), (g, p) = (one.gradient(x) for one in (rest, alone, series))
    np.testing.assert_allclose(g_rest + g_alone, g, atol=1e-5)
    assert p_rest + p_alone == pytest.approx(p, rel=1e-5)
    fewer = mask.copy()
    for t, number in enumerate(held):
        if number >= 0:
            fewer[t, series.lines[t][number]] = False
    np.testing.assert_allclose(SenseSeries(maps, hybrid, fewer).gradient(x)[0], g_rest, atol=1e-5)
    assert rest.n_samples == 2 * N_COILS * SHAPE[0] * fewer.sum()
    assert rest.n_samples + alone.n_samples == series.n_samples


def test_fewer_coils_say_the_same():
    """Six coils that are mixtures of two, and noise: two are left, and gradient and residual stay."""
    rng = np.random.default_rng(0)
    shape, n_frames = (12, 16), 10
    normal = lambda *s: rng.normal(size=s) + 1j * rng.normal(size=s)  # noqa: E731
    maps = np.einsum('cdx,dxy->cxy', normal(6, 2, shape[0]), normal(2, *shape)).astype(np.complex64)
    images = 30 * normal(n_frames, *shape)
    hybrid = (centred_fft(images[:, None] * maps, 3) + normal(n_frames, 6, *shape)).astype(np.complex64)
    series = SenseSeries(maps, hybrid, np.ones((n_frames, shape[1])))
    fewer = series.with_fewer_coils()
    assert fewer.n_coils == 2 and fewer.n_samples == series.n_samples
    for x in (images, 0.9 * images):
        (g, p), (g_fewer, p_fewer) = series.gradient(x), fewer.gradient(x)
        assert np.linalg.norm(g - g_fewer) < 0.02 * np.linalg.norm(series.gradient(0 * images)[0])
        assert p_fewer == pytest.approx(p, rel=0.02)
    assert fewer.gradient(images)[1] / fewer.n_samples == pytest.approx(1.0, abs=0.05)


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
