"""Coil sensitivities from the centre of k-space."""

import numpy as np
import pytest

from bids_gsrecon.imaging.cine_simulate import coil_sensitivities
from bids_gsrecon.imaging.espirit import espirit_maps
from bids_gsrecon.imaging.sense import centred_fft
from tests.helpers import require_data


def disc_calibration(shape, n_coils=6, width=24, noise=0.0):
    maps = coil_sensitivities(shape, n_coils)
    x, y = np.meshgrid(*[(np.arange(n) - n // 2) / n for n in shape], indexing='ij')
    body = x**2 + y**2 < 0.35**2
    rng = np.random.default_rng(0)
    image = body * (1 + 0.3 * rng.normal(size=shape)) * np.exp(2j * x)
    kspace = centred_fft(centred_fft(image * maps, 1), 2)
    kspace = kspace + noise * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
    half = [min(width, n) // 2 for n in shape]
    centre = [slice(n // 2 - h, n // 2 + h) for n, h in zip(shape, half)]
    return kspace[:, centre[0], centre[1]], maps, body


@pytest.mark.parametrize('shape', [(64, 48), (45, 63)])
def test_finds_the_maps_up_to_a_phase(shape):
    calibration, truth, body = disc_calibration(shape)
    found = espirit_maps(calibration, shape)
    truth = truth / np.linalg.norm(truth, axis=0)
    agreement = np.abs((found.maps.conj() * truth).sum(0))
    assert found.support[body].mean() > 0.99
    inside = body & found.support
    assert np.percentile(agreement[inside], 1) > 0.99
    np.testing.assert_allclose(np.linalg.norm(found.maps, axis=0)[found.support], 1, atol=1e-4)
    assert not found.maps[:, ~found.support].any()
    assert found.maps.dtype == np.complex64


def test_the_phase_is_smooth():
    calibration, _, body = disc_calibration((64, 48))
    found = espirit_maps(calibration, (64, 48))
    step = (found.maps[:, 1:] * found.maps[:, :-1].conj()).sum(0)
    inside = body[1:] & body[:-1]
    assert np.abs(np.angle(step[inside])).max() < 0.5


def test_maps_do_not_depend_on_the_scale():
    calibration, _, _ = disc_calibration((32, 32), noise=1e-3)
    a, b = (espirit_maps(s * calibration, (32, 32)) for s in (1.0, 1e6))
    np.testing.assert_allclose(a.maps, b.maps, atol=1e-3)


def test_a_coil_without_signal_gets_no_sensitivity():
    calibration, _, body = disc_calibration((48, 48))
    calibration[2] = 0
    found = espirit_maps(calibration, (48, 48))
    assert np.abs(found.maps[2]).max() < 1e-3
    assert found.support[body].mean() > 0.99


def test_a_narrow_calibration_is_still_used():
    calibration, _, body = disc_calibration((48, 48), width=8)
    assert espirit_maps(calibration, (48, 48)).support[body].mean() > 0.9


@pytest.mark.parametrize(
    'bad, message', [(np.zeros((4, 2, 9)), 'too small'), (np.zeros((4, 9, 9)), 'no signal')]
)
def test_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        espirit_maps(bad, (16, 16))


def test_real_brain():
    """Maps of a real head explain its fully sampled centre: their projection keeps nearly all the energy."""
    kspace = np.load(require_data('cine', 'brain8ch_cartesian_ksp.npy')).astype(np.complex64)
    nx, ny = kspace.shape[1:]
    centre = kspace[:, nx // 2 - 12 : nx // 2 + 12, ny // 2 - 12 : ny // 2 + 12]
    assert (np.abs(centre) > 0).all()
    found = espirit_maps(centre, (nx, ny))
    low = np.zeros_like(kspace)
    low[:, nx // 2 - 12 : nx // 2 + 12, ny // 2 - 12 : ny // 2 + 12] = centre
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(low, axes=(1, 2))), axes=(1, 2))
    projected = found.maps * (found.maps.conj() * images).sum(0)
    lost = (np.abs(images - projected) ** 2).sum() / (np.abs(images) ** 2).sum()
    assert 0.2 < found.support.mean() < 0.95
    assert lost < 0.03
