"""Masks of stacks: repaired headers, masks carried over from other stacks, and no masks at all."""

import itertools
from functools import cache

import numpy as np
import pytest

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.simulate_stacks import moving_stacks
from bids_gsrecon.imaging.stack_masks import common_foreground, propagated_mask, repaired_mask
from tests.phantoms import folded_head

SHAPE = (20, 24, 8)
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])
STACK = Lattice(SHAPE, AFFINE)


def ball(lattice=STACK, radius_mm=9.0, centre_mm=None):
    grid = np.stack(np.meshgrid(*map(np.arange, lattice.shape), indexing='ij'), -1)
    centre = STACK.centre_mm if centre_mm is None else centre_mm
    return np.linalg.norm(lattice.to_world(grid) - centre, axis=-1) < radius_mm


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def shifted(mm, axis=0, lattice=STACK):
    motion = np.eye(4)
    motion[axis, 3] = mm
    return lattice.moved(motion)


def test_a_mask_on_the_grid_of_its_stack_is_not_touched():
    mask, remark = repaired_mask(ball(), [STACK], [STACK])
    assert remark == '' and np.array_equal(mask, ball())
    mask, remark = repaired_mask(ball(), [shifted(0.01)], [STACK])
    assert remark == '' and np.array_equal(mask, ball()), 'rounding of headers is not worth a word'


@pytest.mark.parametrize('mm', [0.2, 0.7])
def test_a_header_that_is_off_by_less_than_half_a_voxel_is_put_right(mm):
    mask, remark = repaired_mask(ball(), [shifted(mm)], [STACK])
    assert np.array_equal(mask, ball()) and f'{mm:g} mm' in remark and 'voxel by voxel' in remark


def test_voxel_sizes_off_by_rounding_are_put_right():
    affine = AFFINE.copy()
    affine[:3, 0] *= 1.004
    mask, remark = repaired_mask(ball(), [Lattice(SHAPE, affine)], [STACK])
    assert np.array_equal(mask, ball()) and 'voxel by voxel' in remark


@pytest.mark.parametrize('who', ['mask', 'stack'])
def test_forms_that_disagree(who):
    """One form of the header lies elsewhere, the other is that of the stack: nobody moved the mask."""
    forms = [shifted(25.0), STACK]
    given, own = (forms, [STACK]) if who == 'mask' else ([STACK], forms)
    mask, remark = repaired_mask(ball(), given, own)
    assert np.array_equal(mask, ball()) and 'qform' in remark


def test_a_displaced_mask_is_believed_where_its_header_says():
    lattice = shifted(6.0)
    mask, remark = repaired_mask(ball(), [lattice], [STACK])
    assert 'displaced by up to 6.0 mm' in remark and 'resampled' in remark
    centre = STACK.to_world(np.argwhere(mask)).mean(0)
    np.testing.assert_allclose(centre - STACK.centre_mm, [6, 0, 0], atol=0.4)


@pytest.mark.parametrize('zooms', [1.0, 2.0, (1.5, 1.5, 1.0)])
def test_a_mask_of_another_shape_is_resampled(zooms):
    lattice = STACK.resampled(zooms)
    mask, remark = repaired_mask(ball(lattice), [lattice], [STACK])
    assert 'voxels' in remark and 'resampled' in remark
    assert mask.shape == SHAPE and dice(mask, ball()) > 0.9


def test_mirrored_and_turned_storage_is_no_difference():
    order = [2, 0, 1]
    affine = AFFINE.copy()
    affine[:, :3] = affine[:, order]
    turned = Lattice(tuple(SHAPE[a] for a in order), affine)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    cases = [(ball().transpose(order), turned), (ball()[::-1], Lattice(SHAPE, AFFINE @ flip))]
    for stored, lattice in cases:
        mask, remark = repaired_mask(stored, [lattice], [STACK])
        assert remark == '' and np.array_equal(mask, ball())


def test_a_mask_of_a_part_of_the_stack_is_put_in_its_place():
    part = STACK.cropped((2, 3, 0), (SHAPE[0] - 2, SHAPE[1] - 3, SHAPE[2]))
    mask, remark = repaired_mask(ball()[2:-2, 3:-3], [part], [STACK])
    assert np.array_equal(mask, ball()) and '16x18x8 against 20x24x8 voxels' in remark


def test_masks_that_show_nothing_are_refused():
    with pytest.raises(ValueError, match='it is an empty mask'):
        repaired_mask(np.zeros(SHAPE, bool), [STACK], [STACK])
    with pytest.raises(ValueError, match='does not overlap .* copy the header of the stack'):
        repaired_mask(ball(), [shifted(300.0)], [STACK])
    small = shifted(300.0).resampled(2.0)
    with pytest.raises(ValueError, match='does not overlap') as refused:
        repaired_mask(np.ones(small.shape, bool), [small], [STACK])
    assert 'copy the header' not in str(refused.value)


@cache
def moved():
    """Three stacks of a head of 58 mm that moved a little."""
    volume, mask = folded_head((60, 64, 60))
    return moving_stacks(
        volume, mask, in_plane_mm=1.5, thickness_mm=3.0, rotation_deg=2.0, translation_mm=1.5, seed=1
    )


def test_a_mask_is_carried_over_to_a_stack_that_lacks_one():
    stacks = [simulated.stack for simulated in moved()]
    for missing in range(3):
        others = [s for n, s in enumerate(stacks) if n != missing]
        target = stacks[missing]
        mask = propagated_mask([s.mask for s in others], [s.lattice for s in others], target.lattice)
        # Grown by 2 mm all around a head of 25 mm radius, which moved by 2 mm itself.
        assert dice(mask, target.mask) > 0.83
        assert (mask & target.mask).sum() > 0.97 * target.mask.sum(), 'hardly any of the anatomy is lost'
        tight = propagated_mask(
            [s.mask for s in others], [s.lattice for s in others], target.lattice, motion_mm=0.0
        )
        assert dice(tight, target.mask) > 0.87 and not (tight & ~mask).any()


def test_masks_of_stacks_that_did_not_move_are_carried_over_exactly():
    volume, truth = folded_head()
    stacks = moving_stacks(
        volume, truth, in_plane_mm=1.0, thickness_mm=2.0, rotation_deg=0.0, translation_mm=0.0
    )
    one, two, three = (simulated.stack for simulated in stacks)
    tight = propagated_mask([two.mask, three.mask], [two.lattice, three.lattice], one.lattice, motion_mm=0.0)
    assert dice(tight, one.mask) > 0.95


def test_the_order_of_stacks_does_not_matter():
    stacks = [simulated.stack for simulated in moved()]
    lattice = stacks[0].lattice
    results = [
        propagated_mask([s.mask for s in order], [s.lattice for s in order], lattice)
        for order in itertools.permutations(stacks)
    ]
    assert all(np.array_equal(results[0], other) for other in results[1:])
    volumes = [Volume(s.data, s.lattice) for s in stacks]
    one, two = common_foreground(volumes), common_foreground(volumes[::-1])
    assert all(np.array_equal(a, b) for a, b in zip(one, two[::-1]))


def test_a_mask_reaches_as_far_as_the_field_of_view_and_no_farther():
    whole = ball(radius_mm=30.0)
    half = STACK.cropped((0, 0, 0), (SHAPE[0], SHAPE[1] // 2, SHAPE[2]))
    assert propagated_mask([whole], [STACK], half).shape == half.shape
    elsewhere = shifted(500.0)
    assert not propagated_mask([whole], [STACK], elsewhere).any()
    # The outermost slices are seen too: a pixel has a body, not only a centre.
    assert propagated_mask([np.ones(SHAPE, bool)], [STACK], STACK, motion_mm=0.0)[3:-3, 3:-3].all()


def test_without_masks_what_all_stacks_show():
    stacks = [simulated.stack for simulated in moved()]
    masks = common_foreground([Volume(s.data, s.lattice) for s in stacks])
    for mask, stack in zip(masks, stacks):
        assert dice(mask, stack.mask) > 0.8 and (mask & stack.mask).sum() > 0.95 * stack.mask.sum()


def test_without_masks_a_slice_without_signal_cuts_nothing_out():
    stacks = [simulated.stack for simulated in moved()]
    data = stacks[0].data.copy()
    middle = data.shape[2] // 2
    data[:, :, middle] *= 0.02
    volumes = [Volume(d, s.lattice) for d, s in zip([data, stacks[1].data, stacks[2].data], stacks)]
    mask = common_foreground(volumes)[0]
    assert (mask & stacks[0].mask)[:, :, middle].sum() > 0.9 * stacks[0].mask[:, :, middle].sum()


def test_without_masks_only_the_common_field_of_view_counts():
    stacks = [simulated.stack for simulated in moved()]
    n = stacks[2].data.shape[2]
    part = stacks[2].lattice.cropped((0, 0, n // 2), stacks[2].lattice.shape)
    volumes = [Volume(s.data, s.lattice) for s in stacks[:2]] + [Volume(stacks[2].data[:, :, n // 2 :], part)]
    masks = common_foreground(volumes)
    for volume, mask in zip(volumes, masks):
        index = part.to_index(volume.lattice.to_world(np.argwhere(mask)))
        assert ((index > -1.5) & (index < np.array(part.shape) + 0.5)).all()
    apart = [
        volumes[0],
        Volume(volumes[1].data, volumes[1].lattice.moved(shifted(400).affine @ np.linalg.inv(AFFINE))),
    ]
    assert not any(mask.any() for mask in common_foreground(apart))
