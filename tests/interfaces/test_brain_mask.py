"""Brain masks of brains, heads and other things; bias fields of known shape."""

import functools

import numpy as np
import pytest
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.mutual_information import rigid_from_parameters
from bids_gsrecon.interfaces.bias_field import correct_bias_field, estimate_bias_field
from bids_gsrecon.interfaces.brain_mask import find_brain_mask, load_template
from bids_gsrecon.interfaces.io import save_volume
from tests.helpers import require_data

VALUES = {'T1w': (20.0, 1.0, 300.0), 'FLAIR': (15.0, -1.0, 180.0)}  # fluid and bone, sign of contrast, scalp


@functools.cache
def synthetic_head(contrast='T1w', voxel_mm=3.0):
    """The template brain, made smaller and turned, inside bone and scalp: (head, brain mask)."""
    template = load_template()
    bone, sign, scalp_value = VALUES[contrast]
    motion = rigid_from_parameters([0.12, 0.05, -0.08, 8.0, -10.0, 12.0], template.image.lattice.centre_mm)
    shrunk = motion @ np.diag([0.9, 0.92, 0.88, 1.0])
    box = Volume(template.image.data, template.image.lattice.moved(motion))
    lattice = box.lattice.resampled(voxel_mm).cropped((-8, -8, -12), (74, 86, 74))
    matrix = np.linalg.inv(shrunk @ template.image.affine) @ lattice.affine

    def placed(data):
        return ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], lattice.shape, order=1)

    brain = placed(template.mask.astype(np.float32)) > 0.5
    t1w = placed(template.image.data)
    tissue = 100 + sign * 60 * (t1w - 0.75) / 0.25
    tissue = np.where(t1w < 0.45, bone, tissue)
    distance = ndimage.distance_transform_edt(~brain, sampling=lattice.voxel_sizes_mm)
    head = np.where(brain, np.maximum(tissue, bone), np.where(distance < 9, bone, scalp_value))
    head = np.where(distance > 15, 0.0, head)
    rng = np.random.default_rng(0)
    head = np.abs(ndimage.gaussian_filter(head, 0.5) + 3 * rng.standard_normal(head.shape))
    return Volume(head, lattice), brain


@pytest.mark.parametrize('contrast', ['T1w', 'FLAIR'])
def test_brain_of_a_head(contrast):
    head, brain = synthetic_head(contrast)
    mask, how = find_brain_mask(head, seed=3)
    dice = 2 * (mask & brain).sum() / (mask.sum() + brain.sum())
    assert dice > 0.93, how
    assert (mask & brain).sum() > 0.93 * brain.sum()  # its rim is fluid, as dark as bone
    assert 'ANTs' in how
    if contrast == 'T1w':
        assert np.array_equal(find_brain_mask(head, seed=3, n_threads=2)[0], mask)


def test_stripped_brain_is_taken_as_it_is():
    head, brain = synthetic_head()
    mask, how = find_brain_mask(Volume(np.where(brain, head.data + 1, 0), head.lattice))
    assert np.array_equal(mask, ndimage.binary_fill_holes(brain))
    assert 'skull-stripped' in how


def test_crop_of_a_brain_is_taken_whole():
    head, brain = synthetic_head()
    box = (slice(24, 52), slice(28, 56), slice(28, 50))
    assert brain[box].mean() > 0.8
    part = head.lattice.cropped([s.start for s in box], [s.stop for s in box])
    mask, how = find_brain_mask(Volume(np.where(brain, head.data + 1, 0)[box], part))
    assert 'smaller than a head' in how
    assert mask[brain[box]].mean() > 0.999


@pytest.mark.parametrize('kind', ['noise', 'ball'])
def test_no_brain_no_mask(kind):
    rng = np.random.default_rng(0)
    data = rng.random((50, 50, 50))
    if kind == 'ball':
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 50)] * 3, indexing='ij'))
        data += 50 * ((grid**2).sum(0) < 0.6)
    with pytest.raises(ValueError, match='--derivatives'):
        find_brain_mask(Volume.from_affine(data, np.diag([4.2, 4.2, 4.2, 1.0])))


def test_own_template(tmp_path):
    template = load_template()
    path = save_volume(tmp_path / 'tpl-x_T1w.nii.gz', template.image.data, template.image.affine)
    with pytest.raises(ValueError, match='tpl-x_desc-brain_mask'):
        load_template(path)
    save_volume(tmp_path / 'tpl-x_desc-brain_mask.nii.gz', template.mask, template.image.affine)
    own = load_template(path)
    assert np.array_equal(own.mask, template.mask)
    with pytest.raises(ValueError, match=r'not named \*_T1w'):
        load_template(save_volume(tmp_path / 'x.nii.gz', template.image.data, template.image.affine))


@pytest.mark.parametrize('suffix', ['T1w', 'FLAIR'])
def test_clinical_head(suffix):
    from bids_gsrecon.interfaces.io import load_volume

    path = require_data('clinical', 'sub-ms12', 'ses-1', 'anat', f'sub-ms12_ses-1_{suffix}.nii.gz')
    volume = load_volume(path)
    mask, _ = find_brain_mask(volume)
    litres = mask.sum() * abs(np.linalg.det(volume.affine[:3, :3])) / 1e6
    assert 1.3 < litres < 1.8


def smooth_gain(shape):
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'))
    return np.exp(0.35 * grid[0] - 0.25 * grid[1] + 0.2 * grid[2] ** 2)


def test_bias_field_is_found_and_the_scale_kept():
    head, brain = synthetic_head()
    gain = smooth_gain(head.data.shape)
    biased = Volume(head.data * gain, head.lattice)
    before = estimate_bias_field(head, brain)
    ratio = np.log(estimate_bias_field(biased, brain) / before / gain)[brain]
    assert np.log(gain[brain]).std() > 0.1
    assert ratio.std() < 0.3 * np.log(gain[brain]).std()
    corrected = correct_bias_field(biased, brain)
    assert np.median(corrected.data[brain]) == pytest.approx(np.median(biased.data[brain]), rel=1e-3)
    assert np.array_equal(corrected.data, correct_bias_field(biased, brain).data)


def test_bias_correction_is_safe_with_zeros_and_negative_values():
    head, brain = synthetic_head()
    data = np.where(brain, head.data, 0.0)
    data[30:34, 36:40, 36:40] = -5.0
    corrected = correct_bias_field(Volume(data, head.lattice), brain)
    assert np.isfinite(corrected.data).all()
    assert (corrected.data[data == 0] == 0).all()
    assert (corrected.data[data < 0] < 0).all()


def test_bias_field_refuses_bad_masks():
    head, brain = synthetic_head()
    with pytest.raises(ValueError, match='too few voxels'):
        estimate_bias_field(head, np.zeros_like(brain))
    with pytest.raises(ValueError, match='shape'):
        estimate_bias_field(head, brain[1:])
