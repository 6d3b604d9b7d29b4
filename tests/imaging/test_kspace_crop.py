"""Cropped k-space: against Fourier transforms, and the geometry of what comes out."""

import numpy as np
import pytest

from bids_gsrecon.imaging.kspace_crop import (
    band_limited,
    coarse_lattice,
    coarse_side,
    crop_kspace,
    replace_measured,
    zero_filled,
)
from bids_gsrecon.imaging.lattice import Lattice

AFFINE = np.array([[0.0, -0.9, 0.1, 12], [0.8, 0.0, 0, -3], [0, 0.09, 1.1, 4], [0, 0, 0, 1]])


def smooth(shape, seed=0):
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfftn(rng.standard_normal(shape))
    k = np.sqrt(
        sum(
            f**2
            for f in np.meshgrid(*map(np.fft.fftfreq, shape[:2]), np.fft.rfftfreq(shape[2]), indexing='ij')
        )
    )
    return (np.fft.irfftn(spectrum / (0.05 + k) ** 2, shape, (0, 1, 2)) + 500).astype(np.float32)


@pytest.mark.parametrize('factor', [1.3, 2.0, 3.7])
def test_equals_cropping_the_fourier_transform(factor):
    """Odd sides sampled at the corner of the box: what an FFT, a crop, and an inverse FFT give."""
    image = smooth((31, 45, 3)).astype(np.float64)
    m = [coarse_side(n, factor) // 2 * 2 + 1 for n in (31, 45)]
    spectrum = np.fft.fftshift(np.fft.fft2(image, axes=(0, 1)), (0, 1))
    cut = tuple(slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip((31, 45), m))
    small = np.fft.ifft2(np.fft.ifftshift(spectrum[cut], (0, 1)), axes=(0, 1)) * (m[0] * m[1] / (31 * 45))
    matrices = [band_limited(np.arange(k) * n / k, n, k) for n, k in zip((31, 45), m)]
    ours = np.einsum('pi,qj,ijk->pqk', *matrices, image)
    np.testing.assert_allclose(ours, small.real, rtol=1e-10, atol=1e-7)
    padded = np.zeros((31, 45, 3), complex)
    padded[cut] = spectrum[cut]
    filled = np.fft.ifft2(np.fft.ifftshift(padded, (0, 1)), axes=(0, 1))
    matrices = [band_limited(np.arange(n), n, k) for n, k in zip((31, 45), m)]
    ours = np.einsum('pi,qj,ijk->pqk', *matrices, image)
    np.testing.assert_allclose(ours, filled.real, rtol=1e-10, atol=1e-7)


@pytest.mark.parametrize('factors', [1.5, 2.0, (3.3, 1.0), (1.7, 4.0)])
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_the_coarse_image_fills_the_same_box(factors, axis):
    lattice = Lattice((24, 31, 20), AFFINE)
    coarse = coarse_lattice(lattice, axis, factors)
    corners = np.array(np.meshgrid(*[(0.0, 1.0)] * 3)).reshape(3, -1).T
    box = [g.to_world(corners * g.shape - 0.5) for g in (lattice, coarse)]
    np.testing.assert_allclose(box[0], box[1], atol=1e-9)


def test_a_blob_stays_where_it_is_in_the_world():
    lattice = Lattice((40, 36, 5), AFFINE)
    grid = lattice.to_world(np.stack(np.indices(lattice.shape), -1))
    centre = lattice.to_world([21.3, 14.8, 2])
    blob = np.exp(-((grid - centre) ** 2).sum(-1) / 20).astype(np.float32)
    coarse, where = crop_kspace(blob, lattice, 2, (2.6, 1.9))
    middle = coarse[:, :, 2]
    points = where.to_world(np.stack(np.indices(where.shape), -1))[:, :, 2]
    plane = grid[:, :, 2]
    truth = (blob[:, :, 2, None] * plane).sum((0, 1)) / blob[:, :, 2].sum()
    found = (middle[..., None] * points).sum((0, 1)) / middle.sum()
    assert np.linalg.norm(found - truth) < 0.02


@pytest.mark.parametrize('factors', [1.5, 2.0, 3.1, (1.0, 2.4)])
def test_zero_filling_from_file_equals_low_passing(factors):
    """Image -> coarse magnitude image and affine -> zero-filled, against the low-pass of the image itself."""
    image = smooth((37, 42, 4), 1)
    lattice = Lattice(image.shape, AFFINE)
    coarse, where = crop_kspace(image, lattice, 2, factors)
    filled = zero_filled(coarse, where, lattice, 2)
    low = image
    for axis in (0, 1):
        n, m = lattice.shape[axis], where.shape[axis]
        if m < n:
            low = np.moveaxis(np.tensordot(band_limited(np.arange(n), n, m), low, (1, axis)), 0, axis)
    # Of the Nyquist frequency of an even side, samples half a pixel off hold one phase alone: the other is lost.
    assert np.abs(filled - np.abs(low)).max() < 0.04 * np.ptp(image)
    odd = [m % 2 == 1 or m == n for n, m in zip(lattice.shape[:2], where.shape[:2])]
    if all(odd):
        np.testing.assert_allclose(filled, np.abs(low), rtol=1e-4)


def test_mean_intensity_is_kept_and_factor_one_changes_nothing():
    image = smooth((30, 33, 3), 2)
    lattice = Lattice(image.shape, AFFINE)
    coarse, _ = crop_kspace(image, lattice, 2, 2.5)
    assert abs(coarse.mean() / image.mean() - 1) < 1e-4
    same, where = crop_kspace(image, lattice, 2, 1)
    assert where.same_as(lattice) and np.array_equal(same, image)
    assert np.array_equal(zero_filled(image, lattice, lattice, 2), image)


def test_measured_frequencies_are_put_back():
    truth, guess = smooth((31, 35, 3), 3), smooth((31, 35, 3), 4)
    lattice = Lattice(truth.shape, AFFINE)
    coarse, where = crop_kspace(truth, lattice, 2, 2.07)
    assert where.shape[:2] == (15, 17)
    out = replace_measured(guess, coarse, where, lattice, 2)
    again, _ = crop_kspace(out, lattice, 2, 2.07)
    np.testing.assert_allclose(again, coarse, rtol=1e-4)
    np.testing.assert_allclose(replace_measured(truth, coarse, where, lattice, 2), truth, rtol=1e-4)


def test_signs_that_the_magnitude_lost_come_from_the_image():
    """Around a bright block on black the low-pass rings below zero: the true image stays as it is nevertheless."""
    truth = np.zeros((31, 35, 3), np.float32)
    truth[10:21, 8:25] = 100
    lattice = Lattice(truth.shape, AFFINE)
    coarse, where = crop_kspace(truth, lattice, 2, 2.07)
    assert np.abs(zero_filled(coarse, where, lattice, 2) - truth).max() > 10
    np.testing.assert_allclose(replace_measured(truth, coarse, where, lattice, 2), truth, atol=0.05)
    rough = truth + np.random.default_rng(0).normal(0, 3, truth.shape).astype(np.float32)
    better = replace_measured(rough, coarse, where, lattice, 2)
    assert np.square(better - truth).mean() < 0.95 * np.square(rough - truth).mean()


def test_refuses_other_grids():
    lattice = Lattice((20, 20, 4), np.eye(4))
    coarse = coarse_lattice(lattice, 2, 2)
    image = np.ones(coarse.shape, np.float32)
    turned = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(ValueError, match='direction'):
        zero_filled(image, coarse, Lattice((20, 20, 4), turned), 2)
    with pytest.raises(ValueError, match='slices'):
        zero_filled(image, coarse, Lattice((20, 20, 5), np.eye(4)), 2)
    with pytest.raises(ValueError, match='coarser'):
        zero_filled(np.ones((20, 20, 4)), lattice, coarse, 2)
    with pytest.raises(ValueError, match='factors of 1'):
        crop_kspace(image, coarse, 2, 0.5)
