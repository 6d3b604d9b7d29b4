"""Pairs: the reference on the slices of a target, and the files that keep them."""

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.interfaces import m2asr_pairs
from bids_gsrecon.interfaces.m2asr_pairs import PairFiles, load_pair, make_pair, reference_on, save_pair
from tests.phantoms import head


def wave(points_mm):
    """A smooth image with a known mean over any box along an axis: linear in y, a cosine along z."""
    return 100 + 2 * points_mm[..., 1] + 10 * np.cos(0.5 * points_mm[..., 2])


def sampled(shape, affine):
    lattice = Lattice(shape, affine)
    index = np.moveaxis(np.indices(shape), 0, -1)
    return Volume(wave(lattice.to_world(index)), lattice)


def test_slices_average_the_reference_over_their_thickness():
    reference = sampled((30, 30, 60), np.diag([1.0, 1.0, 0.5, 1.0]))
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = [5, 5, 6]
    lattice = Lattice((10, 10, 4), affine)
    z = 6 + 4 * np.arange(4)
    for thickness in (4.0, 2.0):
        guide = reference_on(reference, lattice, np.eye(4), slice_axis=2, slice_thickness_mm=thickness)
        half = 0.5 * thickness / 2
        truth = 110 + 10 * np.sin(half) / half * np.cos(0.5 * z)
        np.testing.assert_allclose(guide[4, 0], truth, atol=0.15)


def test_a_turned_reference_lands_where_the_transform_says():
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler('xyz', [4, -3, 6], degrees=True).as_matrix()
    motion[:3, 3] = [2, 1, -3]
    lattice = Lattice((12, 14, 5), np.array([[1, 0, 0, 9], [0, 0, 2.0, 11], [0, -1, 0, 21], [0, 0, 0, 1.0]]))
    reference = sampled((40, 40, 40), np.diag([1.0, 1.0, 1.0, 1.0]))
    guide = reference_on(reference, lattice, motion, slice_axis=2, slice_thickness_mm=1.0)
    index = np.moveaxis(np.indices(lattice.shape), 0, -1)
    world = lattice.to_world(index) @ motion[:3, :3].T + motion[:3, 3]
    np.testing.assert_allclose(guide, wave(world), atol=0.05)


def test_on_its_own_grid_it_is_itself():
    t1w, *_ = head()
    same = reference_on(t1w, t1w.lattice, np.eye(4), slice_axis=2, slice_thickness_mm=1.0)
    np.testing.assert_array_equal(same, t1w.data)
    part = t1w.lattice.cropped([-3, 4, 5], [10, 20, 30])
    cut = reference_on(t1w, part, np.eye(4), slice_axis=0, slice_thickness_mm=1.0)
    np.testing.assert_array_equal(cut[3:], t1w.data[:10, 4:20, 5:30])
    assert not cut[:3].any()


def test_it_is_zero_where_the_reference_does_not_reach_and_never_beyond_its_range():
    t1w, *_ = head()
    lattice = t1w.lattice.resampled((0.7, 0.7, 3.0)).moved(np.eye(4) + np.eye(4, k=3) * 15)
    guide = reference_on(t1w, lattice, np.eye(4), slice_axis=2, slice_thickness_mm=3.0)
    index = np.moveaxis(np.indices(lattice.shape), 0, -1)
    outside = (t1w.lattice.to_index(lattice.to_world(index)) > np.array(t1w.data.shape) - 0.5).any(-1)
    assert outside.any() and not guide[outside].any()
    assert guide.min() >= t1w.data.min() and guide.max() <= t1w.data.max()


def test_slices_beyond_the_reference_are_left_out_of_a_pair():
    t1w, t2w, mask, _ = head()
    far = Volume(t2w.data[:, :, 6:], t2w.lattice.cropped([0, 0, 6], t2w.data.shape))
    pair = make_pair(far, t2w, subject='a', slice_axis=2, mask=mask[:, :, 6:])
    assert pair.target.shape == (40, 44, 30)
    np.testing.assert_array_equal(pair.target, t2w.data[:, :, 6:])
    np.testing.assert_array_equal(pair.reference, pair.target)
    np.testing.assert_array_equal(pair.mask, mask[:, :, 6:])
    np.testing.assert_allclose(pair.lattice.to_world([0, 0, 0]), t2w.lattice.to_world([0, 0, 6]))
    away = np.eye(4)
    away[0, 3] = 100
    with pytest.raises(ValueError, match='outside of its reference'):
        make_pair(t1w, t2w, subject='a', target_to_reference=away)


def test_the_coarsest_axis_runs_across_slices_unless_told():
    t1w, t2w, *_ = head(affine=np.diag([2.0, 1.0, 1.0, 1.0]))
    assert make_pair(t1w, t2w, subject='a').slice_axis == 0
    assert make_pair(t1w, t2w, subject='a', slice_axis=1).slice_axis == 1


def test_a_pair_keeps_16_bits_in_a_small_file(tmp_path):
    t1w, t2w, mask, _ = head()
    pair = make_pair(t1w, t2w, subject='sub-01', contrast='T2w', slice_axis=1, mask=mask)
    path = save_pair(tmp_path / 'a.h5', pair, key='k', sources=['a', 'b'])
    again = load_pair(path)
    step = (t2w.data.max() - t2w.data.min()) / 65535
    np.testing.assert_allclose(again.target, pair.target, atol=0.51 * step)
    np.testing.assert_array_equal(again.mask, mask)
    assert (again.subject, again.contrast, again.slice_axis) == ('sub-01', 'T2w', 1)
    assert again.lattice.same_as(pair.lattice, 1e-9)
    assert path.stat().st_size < 0.5 * (pair.target.nbytes + pair.reference.nbytes)


def test_damaged_pairs_are_one_sentence(tmp_path):
    t1w, t2w, *_ = head()
    path = save_pair(tmp_path / 'a.h5', make_pair(t1w, t2w, subject='a'))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r'a\.h5'):
        load_pair(path)
    with h5py.File(path, 'w') as file:
        file.attrs.update(format=m2asr_pairs.FORMAT, version=1, metadata='{"subject": "a"}')
    with pytest.raises(InputError, match='another version'):
        PairFiles([path])
    with pytest.raises(InputError, match='cannot be read as a pair'):
        load_pair(path)
    with pytest.raises(InputError, match=r'none\.h5'):
        PairFiles([tmp_path / 'none.h5'])


def test_pairs_are_read_when_asked_for_and_few_are_held(tmp_path):
    t1w, t2w, *_ = head()
    paths = []
    for n in range(5):
        named = make_pair(t1w, t2w, subject=f's{n}')
        paths.append(save_pair(tmp_path / f'{n}.h5', named, key=str(n), sources=[f'{n}']))
    size = 2 * t2w.data.nbytes
    files = PairFiles(paths, held_gb=2.5 * size / 1024**3)
    assert files.subjects == [f's{n}' for n in range(5)] and len(files) == 5
    assert [one.subject for one in files] == files.subjects
    assert files[-1].subject == 's4' and [one.subject for one in files[1:3]] == ['s1', 's2']
    assert len(files._held) == 2
    paths[2].unlink()
    assert files[2].subject == 's2', 'it is held'
    with pytest.raises(IndexError):
        files[5]
