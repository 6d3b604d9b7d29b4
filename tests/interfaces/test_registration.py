"""Rigid registration against known motions; transform files against ANTs and nitransforms."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.mutual_information import MutualInformation, rigid_from_parameters
from bids_gsrecon.interfaces.ants_bridge import from_ants, import_ants, to_ants
from bids_gsrecon.interfaces.registration import (
    averaged_over_voxel,
    header_overlap,
    load_itk_transform,
    register_rigid,
    save_itk_transform,
)
from tests.helpers import require_data
from tests.phantoms import head

MOTION = rigid_from_parameters([0.05, -0.08, 0.1, 4.0, -3.0, 5.0], [3.0, 4.0, 5.0])
OBLIQUE = rigid_from_parameters([0.3, 0.1, -0.2, 12.0, -7.0, 30.0], [0.0, 0.0, 0.0])
FLIPS = [np.eye(4), np.diag([-1.0, 1, 1, 1]), np.diag([-1.0, -1, 1, 1])]


def thick_of(volume, lattice, *, axis, factor):
    """Box slabs of ``volume`` on ``lattice``, whose step along ``axis`` is the slab."""
    factors = np.ones(3, int)
    factors[axis] = factor
    fine = lattice.refined(factors)
    matrix = volume.lattice.world_to_voxel @ fine.affine
    data = ndimage.affine_transform(volume.data, matrix[:3, :3], matrix[:3, 3], fine.shape, order=3)
    shape = list(lattice.shape)
    shape.insert(axis + 1, factor)
    return Volume(data.reshape(shape).mean(axis + 1), lattice)


def error_mm(found, true_motion, mask, lattice):
    """Mean distance by which ``found`` misses undoing ``true_motion``, over ``mask``."""
    points = lattice.to_world(np.argwhere(mask)[::17])
    residual = found @ true_motion
    return float(np.linalg.norm(points @ residual[:3, :3].T + residual[:3, 3] - points, axis=1).mean())


@pytest.fixture(scope='module')
def pair():
    affine = OBLIQUE @ np.diag([1.2, 1.2, 1.2, 1.0])
    return head((64, 72, 60), affine=affine)


@pytest.mark.parametrize('flip', FLIPS, ids=['plain', 'mirrored', 'turned'])
def test_image_conversion_keeps_voxel_positions(flip):
    rng = np.random.default_rng(0)
    lattice = Lattice((5, 6, 7), OBLIQUE @ flip @ np.diag([1.0, 2.0, 3.0, 1.0]))
    volume = Volume(rng.random((5, 6, 7)), lattice)
    image = to_ants(volume)
    point = import_ants().transform_index_to_physical_point(image, (1, 2, 3))
    world = lattice.to_world([1, 2, 3])
    assert np.allclose(np.array(point) * [-1, -1, 1], world, atol=1e-4)
    back = from_ants(image)
    assert back.lattice.same_as(lattice)
    assert np.array_equal(back.data, volume.data)


@pytest.mark.parametrize('axis', [0, 2])
def test_finds_a_known_motion_of_a_thick_contrast(pair, axis):
    t1w, t2w, mask, _ = pair
    sizes = np.full(3, 1.2)
    sizes[axis] = 5.0
    lattice = t2w.lattice.resampled(sizes).moved(
        rigid_from_parameters([0.05, 0.03, -0.04, 0.3, 0.2, 0.1], t2w.lattice.centre_mm)
    )
    thick = thick_of(t2w, lattice, axis=axis, factor=5)
    moved = Volume(thick.data, lattice.moved(MOTION))
    found = register_rigid(t1w, moved)
    assert error_mm(np.eye(4), MOTION, mask, t1w.lattice) > 5.0
    assert error_mm(found.moving_to_fixed, MOTION, mask, t1w.lattice) < 0.4
    assert found.metric > found.initial_metric
    assert 5.0 < found.moved_mm < 20.0
    assert np.allclose(found.moving_to_fixed[:3, :3] @ found.moving_to_fixed[:3, :3].T, np.eye(3), atol=1e-5)
    again = register_rigid(t1w, moved, n_threads=2)
    assert np.array_equal(again.moving_to_fixed, found.moving_to_fixed)


def test_a_right_header_is_kept(pair):
    t1w, t2w, _, _ = pair
    lattice = t2w.lattice.resampled([1.2, 1.2, 4.8])
    found = register_rigid(t1w, thick_of(t2w, lattice, axis=2, factor=4))
    assert np.array_equal(found.moving_to_fixed, np.eye(4))
    assert found.moved_mm == 0
    assert 'headers kept' in found.how


def test_half_the_head_is_enough(pair):
    t1w, t2w, mask, _ = pair
    lattice = t2w.lattice.resampled([1.2, 1.2, 3.6])
    lattice = lattice.cropped((0, 0, lattice.shape[2] // 2), lattice.shape)
    small = rigid_from_parameters([0.05, -0.03, 0.04, 3.0, -2.0, 2.0], t1w.lattice.centre_mm)
    moved = Volume(thick_of(t2w, lattice, axis=2, factor=3).data, lattice.moved(small))
    found = register_rigid(t1w, moved, fixed_mask=mask)
    assert error_mm(found.moving_to_fixed, small, mask, t1w.lattice) < 0.6


def test_no_overlap_is_said(pair):
    t1w, t2w, _, _ = pair
    away = np.eye(4)
    away[:3, 3] = 500.0
    assert header_overlap(t1w, t2w) == 1.0
    with pytest.raises(ValueError, match='does not overlap the reference'):
        register_rigid(t1w, Volume(t2w.data, t2w.lattice.moved(away)))


def test_averaging_over_a_slab_matches_the_slab(pair):
    t1w, _, _, _ = pair
    lattice = t1w.lattice.resampled([1.2, 1.2, 6.0])
    slabs = thick_of(t1w, lattice, axis=2, factor=5)
    averaged = averaged_over_voxel(t1w, slabs, np.eye(4))
    matrix = averaged.lattice.world_to_voxel @ lattice.affine
    sampled = ndimage.affine_transform(averaged.data, matrix[:3, :3], matrix[:3, 3], lattice.shape, order=1)
    core = (slice(12, -12), slice(12, -12), slice(2, -2))
    error = np.abs(sampled - slabs.data)[core].mean()
    unaveraged = ndimage.affine_transform(
        t1w.data, *_to(t1w.lattice, lattice), output_shape=lattice.shape, order=1
    )
    assert error < 0.25 * np.abs(unaveraged - slabs.data)[core].mean()
    assert averaged_over_voxel(t1w, t1w, np.eye(4)) is t1w


def _to(source, target):
    matrix = source.world_to_voxel @ target.affine
    return matrix[:3, :3], matrix[:3, 3]


def test_mutual_information_peaks_at_the_truth_and_ignores_little_overlap(pair):
    t1w, t2w, _, _ = pair
    metric = MutualInformation(t1w, t2w, 2.4)
    at_truth = metric(np.eye(4))
    for axis in range(6):
        off = np.zeros(6)
        off[axis] = 0.06 if axis < 3 else 3.0
        assert metric(rigid_from_parameters(off, t1w.lattice.centre_mm)) < at_truth
    away = np.eye(4)
    away[0, 3] = 1e4
    assert metric(away) == 0.0


def test_transform_file_round_trip(tmp_path):
    path = save_itk_transform(tmp_path / 'deep' / 'x.txt', MOTION)
    assert np.allclose(load_itk_transform(path), MOTION, atol=1e-12)
    assert [p.name for p in path.parent.iterdir()] == ['x.txt']


@pytest.mark.parametrize(
    'angles', [(0.1, -0.2, 3.0), (np.pi / 2, 0.4, 0.3), (-np.pi / 2, 0.0, 2.0), (3, 2, 1)]
)
def test_rigid_transform_file_round_trip(tmp_path, angles):
    """Also where two of the three angles are one (a right angle about x), and as ANTs reads it."""
    motion = rigid_from_parameters(np.zeros(6), np.zeros(3))
    motion[:3, :3] = Rotation.from_euler('ZXY', [angles[2], angles[0], angles[1]]).as_matrix()
    motion[:3, 3] = [4, -3, 5]
    path = save_itk_transform(tmp_path / 'x.tfm', motion, rigid=True)
    assert np.allclose(load_itk_transform(path), motion, atol=1e-9)
    transform = import_ants().read_transform(str(path))
    lps, point = np.array([-1, -1, 1]), np.array([7.0, 11, -13])
    placed = motion[:3, :3] @ point + motion[:3, 3]
    back = lps * import_ants().apply_ants_transform_to_point(transform, lps * placed)
    assert np.allclose(back, point, atol=1e-5)


def test_transform_file_resamples_as_ants_does(tmp_path, pair):
    _, t2w, _, _ = pair
    moving = Volume(t2w.data, t2w.lattice.moved(MOTION))
    path = save_itk_transform(tmp_path / 'x.txt', np.linalg.inv(MOTION))
    ants = import_ants()
    back = ants.apply_transforms(to_ants(t2w), to_ants(moving), [str(path)]).numpy()
    inner = (slice(2, -2),) * 3
    assert np.abs(back - t2w.data)[inner].max() < 0.02 * t2w.data.max()
    transform = ants.read_transform(str(path))
    binary = tmp_path / 'y.mat'
    ants.write_transform(transform, str(binary))
    assert np.allclose(load_itk_transform(binary), np.linalg.inv(MOTION), atol=1e-6)


def test_transform_file_as_nitransforms_reads_it(tmp_path):
    from nitransforms.linear import load

    path = save_itk_transform(tmp_path / 'x.txt', MOTION)
    # nitransforms too holds the resampling direction: from the reference's points to the moving ones.
    assert np.allclose(load(path, fmt='itk').matrix.squeeze(), np.linalg.inv(MOTION), atol=1e-6)


@pytest.mark.parametrize(
    'text',
    [
        '',
        'something else',
        '#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 2 3\n',
        '#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\nParameters: 1\n'
        'FixedParameters: 0 0 0\n',
        '#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n'
        'Parameters: 0 0 0 0 0 0 0 0 0 1 2 3\nFixedParameters: 0 0 0\n',
    ],
    ids=['empty', 'other', 'short', 'bspline', 'singular'],
)
def test_bad_transform_files_name_themselves(tmp_path, text):
    path = tmp_path / 'bad.txt'
    path.write_text(text)
    with pytest.raises(InputError, match=r'bad\.txt'):
        load_itk_transform(path)
    with pytest.raises(InputError, match=r'absent\.txt'):
        load_itk_transform(tmp_path / 'absent.txt')


def test_real_pair_within_a_third_of_a_millimetre():
    from bids_gsrecon.imaging.foreground import bounding_box
    from bids_gsrecon.interfaces.io import load_volume

    images = [
        load_volume(require_data('multicontrast', 'sub-m12', 'anat', f'sub-m12_{suffix}.nii.gz'))
        for suffix in ('T1w', 'T2w')
    ]
    start, stop = bounding_box(images[0].data > 0)
    box = tuple(slice(a, b) for a, b in zip(start, stop))
    t1w, t2w = (Volume(v.data[box], v.lattice.cropped(start, stop)) for v in images)
    lattice = t2w.lattice.resampled([0.8, 0.8, 4.0])
    true = rigid_from_parameters([0.06, -0.05, 0.08, 3.0, -4.0, 5.0], t1w.lattice.centre_mm)
    moved = Volume(thick_of(t2w, lattice, axis=2, factor=5).data, lattice.moved(true))
    found = register_rigid(t1w, moved)
    assert error_mm(found.moving_to_fixed, true, t1w.data > 0, t1w.lattice) < 0.3
