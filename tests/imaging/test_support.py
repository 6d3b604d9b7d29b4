import numpy as np

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.support import find_support
from tests.phantoms import head


def test_background_of_zeros_is_the_outside():
    t1w, _, mask, _ = head()
    data = t1w.data.copy()
    data[20, 22, 18] = 0  # a zero inside stays inside
    support, how = find_support(Volume(data, t1w.lattice))
    assert how == 'nonzero'
    assert support[20, 22, 18]
    assert np.mean(support != mask) < 0.01


def test_noisy_background_is_left_out_and_the_head_is_not():
    t1w, _, mask, _ = head()
    rng = np.random.default_rng(0)
    noise = 12 * rng.standard_normal((2, *t1w.data.shape))
    support, how = find_support(Volume(np.hypot(t1w.data + noise[0], noise[1]), t1w.lattice))
    assert how == 'foreground'
    assert (support & mask).sum() > 0.995 * mask.sum()
    assert (support & ~mask).sum() < 0.5 * mask.sum()


def test_a_cut_out_of_a_head_is_used_whole_or_up_to_its_background():
    t1w, _, mask, _ = head()
    inner = (slice(14, 26), slice(14, 30), slice(12, 24))
    support, how = find_support(Volume(t1w.data[inner], t1w.lattice.cropped((14, 14, 12), (26, 30, 24))))
    assert how == 'everything' and support.all()
    corner = (slice(4, 22), slice(4, 24), slice(4, 20))
    support, how = find_support(Volume(t1w.data[corner], t1w.lattice.cropped((4, 4, 4), (22, 24, 20))))
    assert how == 'nonzero'
    assert np.mean(support != mask[corner]) < 0.01


def test_rounded_noise_is_no_drawn_background():
    t1w, _, mask, _ = head()
    noise = np.abs(np.round(2.0 * np.random.default_rng(0).standard_normal(t1w.data.shape)))
    support, how = find_support(Volume(np.where(mask, t1w.data, noise), t1w.lattice))
    assert how == 'foreground'
    assert (support & mask).sum() > 0.995 * mask.sum()


def test_empty_corners_of_a_turned_scan_do_not_keep_its_air():
    t1w, _, mask, _ = head((48, 52, 44))
    noise = 12 * np.random.default_rng(0).standard_normal((2, *t1w.data.shape))
    data = np.hypot(t1w.data + noise[0], noise[1])
    i, j, _ = np.ogrid[:48, :52, :44]
    corners = np.broadcast_to((i + j < 14) | (i + j > 84), data.shape)
    assert corners.mean() > 0.05 and not (corners & mask).any()
    support, how = find_support(Volume(np.where(corners, 0, data), t1w.lattice))
    assert how == 'foreground'
    assert (support & mask).sum() > 0.995 * mask.sum()
    assert (support & ~mask).sum() < 0.5 * mask.sum()
    # The same corners beside a head that fills the rest: the zeros are the outside.
    support, how = find_support(Volume(np.where(corners, 0, 700 + noise[0]), t1w.lattice))
    assert how == 'nonzero' and np.array_equal(support, ~corners)
