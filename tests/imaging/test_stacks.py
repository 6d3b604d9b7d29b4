"""Stacks of slices: axes, acquisition order, point spread, refusals."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.stacks import SLICE_ORDERS, SliceStack, as_stored, named_order, timed_order

SHAPE = (5, 6, 4)
FLIPPED = np.diag([-0.8, 1.1, -3.0, 1.0])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler('xyz', [20, -35, 10], degrees=True).as_matrix() @ np.diag(
    [0.8, -1.1, 3.0]
)
OBLIQUE[:3, 3] = [-12, 30, 5]


def stack_of(affine=FLIPPED, shape=SHAPE, thickness=3.0, **options):
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return SliceStack(data, Lattice(shape, affine), data > 7, thickness, **options)


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('affine', [np.eye(4), FLIPPED, OBLIQUE])
def test_along_keeps_every_pixel_in_its_place(axis, affine):
    data = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    stack = SliceStack.along(data, Lattice(SHAPE, affine), data > 50, axis, 2.5, profile='box')
    assert stack.data.shape[2] == SHAPE[axis]
    assert (stack.thickness_mm, stack.profile) == (2.5, 'box')
    for value in (0, 17, 63, 119):
        before = Lattice(SHAPE, affine).to_world(np.argwhere(data == value)[0])
        after = np.argwhere(stack.data == value)[0]
        np.testing.assert_allclose(stack.lattice.to_world(after), before, atol=1e-12)
        assert stack.mask[tuple(after)] == (value > 50)
    step = stack.lattice.voxel_sizes_mm[2]
    assert step == pytest.approx(Lattice(SHAPE, affine).voxel_sizes_mm[axis])


def test_along_the_third_axis_changes_nothing():
    stack = stack_of(OBLIQUE)
    same = SliceStack.along(stack.data, stack.lattice, stack.mask, 2, 3.0)
    assert same.lattice.same_as(stack.lattice) and np.array_equal(same.data, stack.data)


@pytest.mark.parametrize(('n', 'rank'), [(4, [0, 2, 1, 3]), (5, [0, 3, 1, 4, 2]), (2, [0, 1])])
def test_every_second_slice_is_acquired_first(n, rank):
    assert stack_of(shape=(3, 3, n)).acquisition_rank().tolist() == rank


def test_given_order_of_acquisition():
    # Slice 2 first, then 0, 3, 1.
    assert stack_of(order=(2, 0, 3, 1)).acquisition_rank().tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(('profile', 'across'), [('gaussian', (3 / 2.354820) ** 2), ('box', 9 / 12)])
def test_variances_of_the_point_spread(profile, across):
    in_plane = (1.2 * np.array([0.8, 1.1]) / 2.354820) ** 2
    for affine in (FLIPPED, OBLIQUE):
        variance = stack_of(affine, profile=profile).psf_variance_mm2()
        np.testing.assert_allclose(variance, [*in_plane, across], rtol=1e-6)


def test_thickness_and_not_the_spacing_sets_the_spread():
    assert stack_of(thickness=2.0, profile='box').psf_variance_mm2()[2] == pytest.approx(4 / 12)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'shape': (5, 6, 1)}, 'two slices'),
        ({'thickness': 0.0}, 'thickness'),
        ({'thickness': -1.0}, 'thickness'),
        ({'thickness': float('nan')}, 'thickness'),
        ({'order': (0, 1, 2)}, 'order'),
        ({'order': (0, 1, 2, 2)}, 'order'),
        ({'profile': 'sinc'}, 'profile'),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        stack_of(**options)


@pytest.mark.parametrize('wrong', ['data', 'mask'])
def test_shapes_must_agree(wrong):
    arrays = {'data': np.zeros(SHAPE, np.float32), 'mask': np.ones(SHAPE, bool)}
    arrays[wrong] = arrays[wrong][:-1]
    with pytest.raises(ValueError, match='differ in shape'):
        SliceStack(lattice=Lattice(SHAPE, np.eye(4)), thickness_mm=1.0, **arrays)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_stored_order_is_found_again(axis):
    data = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    stack = SliceStack.along(data, Lattice(SHAPE, OBLIQUE), data > 50, axis, 2.5)
    np.testing.assert_array_equal(as_stored(stack.data, axis), data)


@pytest.mark.parametrize(
    ('name', 'five', 'four'),
    [
        ('interleaved', (0, 2, 4, 1, 3), (0, 2, 1, 3)),
        ('interleaved-second', (1, 3, 0, 2, 4), (1, 3, 0, 2)),
        ('interleaved-reversed', (4, 2, 0, 3, 1), (3, 1, 2, 0)),
        ('ascending', (0, 1, 2, 3, 4), (0, 1, 2, 3)),
        ('descending', (4, 3, 2, 1, 0), (3, 2, 1, 0)),
    ],
)
def test_named_orders(name, five, four):
    assert name in SLICE_ORDERS
    assert (named_order(name, 5), named_order(name, 4)) == (five, four)


def test_unknown_order():
    with pytest.raises(ValueError, match='unknown slice order'):
        named_order('random', 4)


def test_order_of_times():
    assert timed_order([0.5, 1.5, 0.0, 1.0]) == (2, 0, 3, 1)
    assert timed_order([0.5, 1.5, 0.0, 1.0], from_last=True) == (1, 3, 0, 2)
    assert timed_order([0, 1, 0, 1]) == (0, 2, 1, 3), 'slices acquired at once: the lower one first'
    for bad in ([1, 1, 1], [0, 1, np.nan]):
        with pytest.raises(ValueError, match='times'):
            timed_order(bad)
