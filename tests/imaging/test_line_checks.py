"""Lines of k-space that no scanner meant."""

import numpy as np
import pytest

from bids_gsrecon.imaging.line_checks import suspicious_lines

N_FRAMES, N_COILS, NX, NY = 6, 3, 8, 24


@pytest.fixture
def data():
    """Steep energies around the centre, frames that differ by a tenth, noise of standard deviation 1."""
    rng = np.random.default_rng(0)
    normal = lambda *s: rng.normal(size=s) + 1j * rng.normal(size=s)  # noqa: E731
    size = 200.0 / (1 + (np.arange(NY) - NY // 2) ** 2)
    lines = normal(N_COILS, NX, NY) * size
    hybrid = lines * (1 + 0.1 * normal(N_FRAMES, 1, 1, 1)) + normal(N_FRAMES, N_COILS, NX, NY)
    acquired = rng.uniform(size=(N_FRAMES, NY)) < 0.6
    acquired[:, NY // 2 - 2 : NY // 2 + 2] = True
    return (hybrid * acquired[:, None, None]).astype(np.complex64), acquired


def test_clean_data_pass(data):
    bad, doubtful = suspicious_lines(*data)
    assert not bad.any() and doubtful == 0


@pytest.mark.parametrize('factor', [0.0, 12.0, -1.0, 1j])
@pytest.mark.parametrize('line', [NY // 2, NY // 2 - 1])
def test_a_wrong_line_at_the_centre_is_found(data, factor, line):
    hybrid, acquired = data
    hybrid[3, :, :, line] *= factor
    bad, doubtful = suspicious_lines(hybrid, acquired)
    assert bad[3, line] and bad.sum() == 1 and doubtful == 0


def test_empty_lines_are_found_anywhere(data):
    hybrid, acquired = data
    frame, line = np.argwhere(acquired & (np.arange(NY) < 5))[0]
    hybrid[frame, :, :, line] = 0
    bad, _ = suspicious_lines(hybrid, acquired)
    assert bad[frame, line] and bad.sum() == 1


def test_two_that_disagree_are_only_doubted(data):
    hybrid, acquired = data
    acquired[2:, NY // 2] = False
    hybrid[1, :, :, NY // 2] *= -1
    bad, doubtful = suspicious_lines(hybrid * acquired[:, None, None], acquired)
    assert not bad.any() and doubtful == 1
