"""Back to the data by smooth corrections, and the turns of self-similarity."""

import numpy as np
import pytest
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.metrics import resample_to
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.sampling import make_sampling
from bids_gsrecon.imaging.simulate import coarse_voxels, thick_slices
from bids_gsrecon.recon.superres import similarity
from bids_gsrecon.recon.superres.grids import voxel_profiles
from bids_gsrecon.recon.superres.similarity import NOISE, SPREAD, Consistency, self_similar
from tests.helpers import assert_adjoint
from tests.phantoms import folded_head

COARSE = Lattice((5, 6, 4), np.diag([2.0, 2.0, 3.0, 1.0]))


def operator(kind='box', factors=(2, 2, 3), lattice=COARSE):
    profiles = [SliceProfile(kind, float(s), a) for a, s in enumerate(lattice.voxel_sizes_mm)]
    return make_sampling(lattice.refined(factors), lattice, profiles)


def blurred(x, factors):
    """K by hand: a Gaussian along every axis, cut at three standard deviations, nothing beyond the edges."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            sigma = SPREAD * factor
            reach = int(3 * sigma + 0.5)
            kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
            x = ndimage.correlate1d(x, kernel / kernel.sum(), axis, mode='constant')
    return x


@pytest.mark.parametrize(
    ('kind', 'left'),
    [('box', 0.03), ('point', 0.03), ('gaussian', 0.2)],  # gaussians overlap: noise is not explained
)
def test_the_data_are_reproduced(kind, left):
    sampling = operator(kind)
    rng = np.random.default_rng(0)
    estimate = rng.random(sampling.fine_shape).astype(np.float32)
    data = rng.random(COARSE.shape).astype(np.float32)
    region = np.ones(COARSE.shape, bool)
    before = data - sampling.forward(estimate)
    after = data - sampling.forward(Consistency(sampling)(estimate, data, region))
    assert np.sqrt(np.mean(after**2)) < left * np.sqrt(np.mean(before**2))


@pytest.mark.parametrize('kind', ['box', 'point'])
def test_it_is_the_least_correction(kind):
    """Against dense algebra: x = e + K A^T (A K A^T + noise)^-1 (y - A e)."""
    sampling, shape = operator(kind), COARSE.shape
    rng = np.random.default_rng(1)
    estimate = rng.random(sampling.fine_shape).astype(np.float32)
    data, region = rng.random(shape).astype(np.float32), rng.random(shape) > 0.2
    units = np.eye(COARSE.n_voxels, dtype=np.float32).reshape(-1, *shape)
    spread = np.stack([blurred(sampling.adjoint(u), (2, 2, 3)) for u in units])
    gram = np.stack([sampling.forward(s.astype(np.float32)).ravel() for s in spread], 1).astype(np.float64)
    middle = np.ravel_multi_index([n // 2 for n in shape], shape)
    inside = np.flatnonzero(region)
    normal = gram[np.ix_(inside, inside)] + NOISE * gram[middle, middle] * np.eye(len(inside))
    solved = np.linalg.solve(normal, (data - sampling.forward(estimate)).ravel()[inside])
    expected = estimate + np.tensordot(solved, spread[inside], 1)
    found = Consistency(sampling)(estimate, data, region)
    # The iteration stops early: what is left is a percent of the correction.
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected - estimate).max()


def test_normal_operator_is_symmetric():
    consistency = Consistency(operator('gaussian'))
    sampling = consistency.sampling

    def apply(c):
        return sampling.forward(consistency._spread(sampling.adjoint(c)))

    assert_adjoint(apply, apply, COARSE.shape, COARSE.shape, dtype=np.float32, rtol=1e-5)
    assert_adjoint(
        consistency._spread, consistency._spread, sampling.fine_shape, sampling.fine_shape,
        dtype=np.float32, rtol=1e-5,
    )  # fmt: skip


def test_what_is_consistent_is_left_alone_and_what_lies_outside_does_not_count():
    sampling = operator()
    rng = np.random.default_rng(2)
    estimate = rng.random(sampling.fine_shape).astype(np.float32)
    region = np.zeros(COARSE.shape, bool)
    region[1:4, 1:4, 1:3] = True
    data = sampling.forward(estimate)
    np.testing.assert_allclose(Consistency(sampling)(estimate, data, region), estimate, atol=1e-5)
    data = rng.random(COARSE.shape).astype(np.float32)
    found = Consistency(sampling)(estimate, data, region)
    wild = np.where(region, data, 1e6).astype(np.float32)
    np.testing.assert_array_equal(Consistency(sampling)(estimate, wild, region), found)
    assert np.abs(found - estimate).max() > 0.05


def test_point_samples_do_not_become_spikes():
    lattice = Lattice((7, 7, 7), np.diag([3.0, 3.0, 3.0, 1.0]))
    sampling = operator('point', (3, 3, 3), lattice)
    data = np.zeros(lattice.shape, np.float32)
    data[3, 3, 3] = 1
    zero = np.zeros(sampling.fine_shape, np.float32)
    found = Consistency(sampling)(zero, data, np.ones(lattice.shape, bool))
    assert found[10, 10, 10] == pytest.approx(1, abs=0.05)
    for neighbour in (found[11, 10, 10], found[10, 9, 10], found[10, 10, 11]):
        assert 0.4 < neighbour < 0.8
    assert found.max() == found[10, 10, 10] and found.min() > -0.1


def problem(how):
    truth, mask = folded_head((32, 32, 32), seed=1)
    factors = (2, 2, 2) if how == 'cells' else (1, 1, 3)
    if how == 'cells':
        coarse = coarse_voxels(truth, 2)
    else:
        truth = type(truth)(truth.data[:, :, :30], truth.lattice.cropped((0, 0, 0), (32, 32, 30)))
        coarse = thick_slices(truth, axis=2, factor=3)
    fine = coarse.lattice.refined(factors)
    sampling = make_sampling(fine, coarse.lattice, voxel_profiles(coarse.lattice)).reversed()
    mask = mask[:, :, : truth.data.shape[2]].transpose(2, 1, 0)
    start = resample_to(coarse, fine, order=3)
    arrays = (np.ascontiguousarray(a.transpose(2, 1, 0)) / 500 for a in (start, coarse.data, truth.data))
    start, data, truth = arrays
    return start, data, truth, mask, sampling


@pytest.mark.parametrize('how', ['cells', 'slices'])
def test_turns_bring_cubic_nearer_to_the_truth_and_to_the_data(how):
    start, data, truth, mask, sampling = problem(how)
    region, turns = data > 0.02, []
    found = self_similar(start, sampling, data, region, lambda *state: turns.append(state))

    def rms(x, where):
        return np.sqrt(np.mean(x[where] ** 2))

    assert rms(found - truth, mask) < 0.9 * rms(start - truth, mask)
    assert rms(data - sampling.forward(found), region) < 0.1 * rms(data - sampling.forward(start), region)
    assert turns[-1] == ('self-similarity', len(turns), len(turns)) and len(turns) >= 2


@pytest.mark.parametrize(
    ('kind', 'factors', 'expected'),
    [('box', (2, 2, 2), [1, 2]), ('box', (3, 3, 3), [1, 2, 3, 4]), ('point', (3, 3, 3), [*range(1, 9), 16])],
)
def test_the_less_is_seen_the_more_turns(kind, factors, expected):
    # Of points 16 at the most, but nothing is gained here.
    sampling, turns = operator(kind, factors), []
    zero = np.zeros(sampling.fine_shape, np.float32)
    data = np.zeros(COARSE.shape, np.float32)
    self_similar(zero, sampling, data, data == 0, lambda *state: turns.append(state))
    assert [done for _, done, _ in turns] == expected


def test_points_take_more_turns_while_they_pay(monkeypatch):
    truth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(33, 33, 33)), 2.5).astype(
        np.float32
    )
    sampling = operator('point', (3, 3, 3), Lattice((11, 11, 11), np.diag([3.0, 3.0, 3.0, 1.0])))
    data = sampling.forward(truth)
    start = ndimage.zoom(data, 3, order=1).astype(np.float32)
    error, n_turns = [], []
    for more in (0, similarity.MOST_MORE_TURNS):
        monkeypatch.setattr(similarity, 'MOST_MORE_TURNS', more)
        turns = []
        found = self_similar(
            start, sampling, data, data > -1, lambda *state, turns=turns: turns.append(state)
        )
        error.append(np.linalg.norm(found - truth))
        n_turns.append(len(turns))
    assert n_turns[0] == 8 and 8 < n_turns[1] <= 16
    assert error[1] < error[0]


@pytest.mark.parametrize('value', [0.7, 1.0])
def test_a_constant_stays(value):
    sampling = operator()
    estimate = np.full(sampling.fine_shape, value, np.float32)
    data = np.full(COARSE.shape, value, np.float32)
    found = self_similar(estimate, sampling, data, np.ones(COARSE.shape, bool))
    np.testing.assert_allclose(found, value, atol=1e-3)
