"""Reading stacks: which axis the slices lie along, how thick they are, in which order they came."""

import nibabel as nib
import numpy as np
import pytest

from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.stacks import read_stack


def written(path, zooms=(1.0, 1.0, 3.0), shape=(8, 10, 6), data=None):
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) if data is None else data
    nib.save(nib.Nifti1Image(data, np.diag([*zooms, 1.0])), path)
    return path


@pytest.mark.parametrize(
    ('zooms', 'metadata', 'axis'),
    [
        ((1, 1, 3), {}, 2),
        ((3, 1, 1), {}, 0),
        ((1, 3, 1), {'SliceEncodingDirection': 'j'}, 1),
        ((1, 1, 1), {}, 2),
        ((1.1, 1, 1), {}, 2),
        ((1, 1, 1), {'SliceEncodingDirection': 'i'}, 0),
    ],
)
def test_slice_axis(tmp_path, zooms, metadata, axis):
    stack = read_stack(written(tmp_path / 'a.nii.gz', zooms), 1, metadata=metadata)
    assert stack.axis == axis and stack.remarks == ()
    assert stack.spacing_mm == pytest.approx(zooms[axis]) and stack.n_slices == (8, 10, 6)[axis]
    assert read_stack(tmp_path / 'a.nii.gz', 1, axis=1).axis == 1


def test_a_sidecar_that_contradicts_the_voxels_is_told(tmp_path):
    stack = read_stack(written(tmp_path / 'a.nii.gz'), 1, metadata={'SliceEncodingDirection': 'i'})
    assert stack.axis == 2 and 'SliceEncodingDirection' in stack.remarks[0]


def test_a_series_of_one_volume_is_a_stack(tmp_path):
    data = np.ones((8, 10, 6, 1), np.float32)
    data[2:4] = 5
    stack = read_stack(written(tmp_path / 'a.nii.gz', data=data), 1)
    assert stack.data.shape == (8, 10, 6)
    with pytest.raises(InputError, match='4 dimensions'):
        read_stack(written(tmp_path / 'b.nii.gz', data=np.concatenate([data, data], -1)), 1)


@pytest.mark.parametrize(
    ('metadata', 'name', 'order', 'source'),
    [
        ({}, None, (0, 2, 4, 1, 3, 5), 'interleaved (assumed)'),
        ({'SliceTiming': [0, 1, 2, 3, 4, 5]}, None, (0, 1, 2, 3, 4, 5), 'SliceTiming'),
        ({'SliceTiming': [0, 1, 2, 3, 4, 5], 'SliceEncodingDirection': 'k-'}, None, (5, 4, 3, 2, 1, 0), 'SliceTiming'),
        ({'SliceTiming': [0, 1, 2, 3, 4, 5]}, 'descending', (5, 4, 3, 2, 1, 0), 'descending'),
        ({'SliceTiming': [0, 0, 0, 0, 0, 0]}, None, (0, 2, 4, 1, 3, 5), 'interleaved (assumed)'),
        ({'SliceTiming': 'soon'}, None, (0, 2, 4, 1, 3, 5), 'interleaved (assumed)'),
        ({'SliceTiming': [0, 1, 2, None, 4, 5]}, None, (0, 2, 4, 1, 3, 5), 'interleaved (assumed)'),
    ],
)  # fmt: skip
def test_order(tmp_path, metadata, name, order, source):
    stack = read_stack(written(tmp_path / 'a.nii.gz'), 1, metadata=metadata, slice_order=name)
    assert (stack.order, stack.order_source) == (order, source)
    is_bad = 'SliceTiming' in metadata and source.endswith('(assumed)')
    assert bool(stack.remarks) == is_bad


@pytest.mark.parametrize(
    ('metadata', 'given', 'thickness', 'source', 'said'),
    [
        ({}, None, 3, 'slice spacing', ''),
        ({'SliceThickness': 3}, None, 3, 'SliceThickness', ''),
        ({'SliceThickness': 2}, None, 2, 'SliceThickness', 'gaps'),
        ({'SliceThickness': 4.5}, None, 4.5, 'SliceThickness', 'overlap'),
        ({'SliceThickness': 30}, None, 3, 'slice spacing', 'does not fit'),
        ({'SliceThickness': 2}, 2.5, 2.5, 'given', ''),
        ({'SpacingBetweenSlices': 4}, 2.5, 2.5, 'given', 'SpacingBetweenSlices'),
    ],
)
def test_thickness(tmp_path, metadata, given, thickness, source, said):
    stack = read_stack(written(tmp_path / 'a.nii.gz'), 1, metadata=metadata, thickness_mm=given)
    assert (stack.thickness_mm, stack.thickness_source) == (thickness, source)
    assert said in ' '.join(stack.remarks) and bool(said) == bool(stack.remarks)


def test_pixels_without_a_value_are_not_the_anatomy(tmp_path):
    data = np.ones((8, 10, 6), np.float32)
    data[0, 0, 0], data[1, 1, 1], data[2] = np.nan, -3, 9
    stack = read_stack(written(tmp_path / 'a.nii.gz', data=data), 1)
    assert stack.data[0, 0, 0] == stack.data[1, 1, 1] == 0 and len(stack.remarks) == 2
    mask = stack.stack(np.ones(data.shape, bool)).mask
    assert not mask[0, 0, 0] and mask.sum() == data.size - 1
