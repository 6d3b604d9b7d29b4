import numba
import numpy as np
import pytest

from bids_gsrecon.imaging.nonlocal_means import local_deviation, nonlocal_means


def brute_force_means(x, inverse_h2, search, mode='reflect'):
    padded = np.pad(x.astype(np.float64), search + 1, mode=mode)
    pad, out = search + 1, np.empty(x.shape)

    def patch(i, j, k):
        return padded[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2]

    for index in np.ndindex(*x.shape):
        centre = np.array(index) + pad
        weights, values = [], []
        for step in np.ndindex(*(2 * search + 1,) * 3):
            step = np.array(step) - search
            if step.any():
                d = np.mean((patch(*centre) - patch(*(centre + step))) ** 2)
                weights.append(max(0, 1 - d * inverse_h2[index] / 256) ** 256)
                values.append(padded[tuple(centre + step)])
        weights.append(max(weights))
        values.append(padded[tuple(centre)])
        out[index] = np.dot(weights, values) / np.sum(weights)
    return out


def problem(shape, seed=3):
    rng = np.random.default_rng(seed)
    return rng.random(shape).astype(np.float32), rng.uniform(2, 30, shape).astype(np.float32)


@pytest.mark.parametrize(
    ('shape', 'search'),
    [((9, 27, 6), 1), ((6, 5, 7), 2)],  # the first holds more than one tile
)
def test_against_a_loop_over_voxels(shape, search):
    x, inverse_h2 = problem(shape)
    expected = brute_force_means(x, inverse_h2, search)
    np.testing.assert_allclose(nonlocal_means(x, inverse_h2, search), expected, atol=1e-4)
    assert np.abs(expected - x).max() > 0.05, 'a filter that does nothing would pass'


def test_images_smaller_than_the_search_repeat_their_edges():
    x, inverse_h2 = problem((3, 4, 2))
    expected = brute_force_means(x, inverse_h2, 3, mode='edge')
    np.testing.assert_allclose(nonlocal_means(x, inverse_h2), expected, atol=1e-4)


def test_constants_are_kept_and_unlike_places_do_not_mix():
    flat = np.full((9, 10, 11), 0.37, np.float32)
    np.testing.assert_allclose(nonlocal_means(flat, np.full_like(flat, 1e4)), flat, rtol=1e-5)
    halves = np.zeros((12, 9, 8), np.float32)
    halves[6:] = 1
    np.testing.assert_allclose(nonlocal_means(halves, np.full_like(halves, 1e4)), halves, atol=1e-6)


def test_noise_is_averaged_and_a_larger_h_averages_more():
    noise = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    spread = [nonlocal_means(noise, np.full_like(noise, 1 / h**2)).std() for h in (0.3, 1.0, 4.0)]
    assert spread[2] < 0.1 and spread[2] < spread[1] < spread[0] <= 1.01 * noise.std()


@pytest.mark.parametrize('shape', [(17, 30, 9), (2, 50, 5)])
def test_threads_do_not_matter(shape):
    x, inverse_h2 = problem(shape)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = nonlocal_means(x, inverse_h2)
    finally:
        numba.set_num_threads(before)
    # Tiles differ, sums over neighbours do not; only the vectorisation of a row's end may round.
    np.testing.assert_allclose(nonlocal_means(x, inverse_h2), one, atol=1e-6)


def test_local_deviation_is_that_of_the_27_voxels():
    x = problem((6, 7, 8))[0]
    found = local_deviation(x)
    padded = np.pad(x, 1, mode='symmetric')
    for index in np.ndindex(*x.shape):
        block = padded[tuple(slice(i, i + 3) for i in index)]
        assert found[index] == pytest.approx(block.std(), abs=1e-4)
    np.testing.assert_allclose(local_deviation(np.full((4, 4, 4), 7.0, np.float32)), 0, atol=5e-3)
