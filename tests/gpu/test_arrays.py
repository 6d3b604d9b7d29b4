"""Plans on numpy arrays, and the two ways to scatter on the CPU."""

import numba
import numpy as np
import pytest
import torch

from bids_gsrecon.gpu import _linear, get_backend, thread_limit
from bids_gsrecon.gpu._volume import PaddedVolume, padded_view
from tests.gpu import fields

SHAPE = (30, 27, 33)


def crowded():
    """Narrow Gaussians, giants and needles, some of them partly outside the lattice."""
    return fields.concatenated(
        fields.random_field(2500, SHAPE, scale=1.3, seed=1),
        fields.random_field(6, SHAPE, scale=9.0, seed=2),
        fields.needle((12.0, 12.0, 15.0), (1, 1, 0.5), 9.0, 0.3),
    )


def test_arrays_in_arrays_out_on_every_backend(backend):
    """The same numbers as with tensors, from every method."""
    field = crowded()
    rng = np.random.default_rng(3)
    plan, arrays = backend.plan(*field[:3], SHAPE), backend.array_plan(*(t.numpy() for t in field[:3]), SHAPE)
    amplitudes, image = field[3].numpy(), rng.normal(size=SHAPE).astype(np.float32)
    sums = plan.forward(field[3])
    assert arrays.shape == SHAPE and arrays.n_gaussians == len(amplitudes)
    np.testing.assert_array_equal(arrays.forward(amplitudes), sums.cpu().numpy())
    for mine, theirs in zip(arrays.backward(amplitudes, sums.numpy()), plan.backward(field[3], sums)):
        np.testing.assert_array_equal(mine, theirs.cpu().numpy())
    np.testing.assert_array_equal(arrays.scatter(amplitudes[:, 0]), plan.scatter(field[3][:, 0]).numpy())
    np.testing.assert_array_equal(arrays.gather(image), plan.gather(torch.from_numpy(image)).numpy())


@pytest.mark.parametrize('threads', [1, pytest.param(2, id='more threads')])
def test_copies_and_bricks_add_up_to_the_same(monkeypatch, threads):
    """And copies give the same bits on any number of threads."""
    if threads > numba.config.NUMBA_NUM_THREADS:
        pytest.skip('numba was started with one thread')
    field = crowded()
    plan = get_backend('cpu').array_plan(*(t.numpy() for t in field[:3]), SHAPE)
    values = field[3].numpy()[:, 0]
    assert _linear.few_bricks(len(values), PaddedVolume.size((1, *SHAPE))) is False  # as it decides here
    in_bricks = plan.scatter(values)
    monkeypatch.setattr(_linear, 'few_bricks', lambda n, size: True)
    in_copies = plan.scatter(values)
    np.testing.assert_allclose(in_copies, in_bricks, atol=2e-6 * np.abs(in_bricks).max())
    with thread_limit(threads):
        np.testing.assert_array_equal(plan.scatter(values), in_copies)


def test_many_gaussians_on_a_small_lattice_are_scattered_in_copies():
    small = PaddedVolume.size((1, 20, 20, 20))
    assert _linear.few_bricks(20_000, small) and not _linear.few_bricks(2_000, small)


def test_padded_volumes_are_recognised():
    """By their strides and the memory behind them: else they are copied."""
    volume = PaddedVolume((5, 6, 7), 2, zero=True)
    public = volume.as_public()
    assert padded_view(public).flat.ctypes.data == volume.flat.ctypes.data
    assert padded_view(public[:1]) is None  # the strides of two channels
    assert padded_view(np.ascontiguousarray(public)) is None
    single = PaddedVolume((5, 6, 7), 1, zero=True)
    one = single.as_public()
    assert padded_view(one[0][None]).flat.size == PaddedVolume.size((1, 5, 6, 7))
    assert padded_view(one[:, :, :, 1:]).flat.size == PaddedVolume.size((1, 5, 6, 6))
    short = np.ndarray(one.shape, np.float32, single.flat[:-1].copy(), 0, one.strides)
    assert padded_view(short) is None
    assert padded_view(one.astype(np.float64)) is None
