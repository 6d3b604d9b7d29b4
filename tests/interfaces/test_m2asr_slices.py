"""Prepared slices on the disk."""

import numpy as np
import pytest

from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.m2asr_pairs import drawn_box
from bids_gsrecon.interfaces.m2asr_slices import SliceStore, prepared_bytes
from bids_gsrecon.recon.m2asr.samples import Subject
from tests.m2asr_cases import make_pair


def never():
    raise AssertionError('it is there already')


def kept(store, name='a', make=None, with_labels=True):
    return Subject.kept(store, name, make or (lambda: Subject.of(make_pair(), 24, with_labels)))


def is_mapped(array):
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def test_a_subject_comes_back_from_the_disk_and_stays_there(tmp_path):
    store = SliceStore(tmp_path / 'slices', 'key')
    plain = Subject.of(make_pair(), 24, True)
    for subject in (kept(store), kept(store, make=never)):
        assert (subject.shape, subject.start, subject.full) == (plain.shape, plain.start, plain.full)
        assert subject.facts == plain.facts and subject.axes == plain.axes == (0, 1, 2)
        np.testing.assert_array_equal(subject.places, plain.places)
        for axis in plain.axes:
            np.testing.assert_array_equal(subject.planes[axis], plain.planes[axis])
            np.testing.assert_array_equal(subject.labels[axis], plain.labels[axis])
            # A slice is one piece of the file, and nothing of it is in memory before it is looked at.
            assert subject.planes[axis][3].flags.c_contiguous and subject.planes[axis].flags.aligned
            assert is_mapped(subject.planes[axis]) and is_mapped(subject.labels[axis])
        assert is_mapped(subject.places)


@pytest.mark.parametrize('with_labels', [False, True])
def test_the_size_that_is_said_is_that_of_the_file(tmp_path, with_labels):
    store, pair = SliceStore(tmp_path / 'slices', 'key'), make_pair(shape=(90, 80, 100))
    kept(store, make=lambda: Subject.of(pair, 64, with_labels))
    (path,) = store.folder.iterdir()
    said = prepared_bytes([drawn_box(pair)], labels=with_labels)
    assert (
        0.8 < said / path.stat().st_size < 1.05
    )  # the box is two voxels wider than the mask, places are fewer


def test_other_data_are_not_read_and_go(tmp_path):
    folder = tmp_path / 'slices'
    kept(SliceStore(folder, 'old'))
    store = SliceStore(folder, 'new')
    assert store.load('a') is None
    store.keep_only_own()
    assert list(folder.iterdir()) == []
    kept(store)
    store.keep_only_own()
    kept(store, make=never)
    store.remove()
    assert not folder.exists()


def test_a_damaged_file_is_made_again(tmp_path):
    store = SliceStore(tmp_path / 'slices', 'key')
    kept(store)
    (path,) = store.folder.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    again = kept(store)
    np.testing.assert_array_equal(again.planes[0], Subject.of(make_pair(), 24, True).planes[0])
    assert path.stat().st_size == len(content)


def test_space_is_looked_at_before_and_what_is_there_counts(tmp_path, monkeypatch):
    store = SliceStore(tmp_path / 'slices', 'key')
    kept(store)
    size = next(store.folder.iterdir()).stat().st_size

    class Usage:
        free = 1000

    monkeypatch.setattr('shutil.disk_usage', lambda path: Usage)
    store.check_space(size)
    with pytest.raises(
        InputError, match=r'slices needs about 0\.00 GB for prepared slices and 0\.00 GB are free'
    ):
        store.check_space(size + 1001)


def test_a_process_that_waits_reads_what_another_made(tmp_path):
    import threading

    store = SliceStore(tmp_path / 'slices', 'key')
    made = threading.Timer(0.3, lambda: kept(store))
    made.start()
    other = kept(SliceStore(store.folder, 'key', waits=True), make=never)
    made.join()
    assert other.axes == (0, 1, 2)
