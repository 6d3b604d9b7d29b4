"""Stacks of one contrast agree, moved or not; another contrast is found, whatever the order."""

from functools import cache

import numpy as np
import pytest

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.simulate_stacks import moving_stacks
from bids_gsrecon.imaging.stack_contrast import stack_correlations, unlike_stacks
from tests.phantoms import folded_head


@cache
def stacks(motion=0.0):
    volume, mask = folded_head((60, 64, 60))
    return moving_stacks(
        volume, mask, in_plane_mm=1.5, thickness_mm=3.0, rotation_deg=motion, translation_mm=motion / 2
    )


def case(motion=0.0, inverted=()):
    volumes, masks = [], []
    for number, simulated in enumerate(stacks(motion)):
        stack = simulated.stack
        data = np.where(stack.mask, stack.data.max() - stack.data, 0) if number in inverted else stack.data
        volumes.append(Volume(data, stack.lattice))
        masks.append(stack.mask)
    return volumes, masks


def test_stacks_at_rest_correlate():
    correlations = stack_correlations(*case())
    assert correlations.min() > 0.9 and np.array_equal(correlations, correlations.T)
    assert unlike_stacks(correlations) == []


@pytest.mark.parametrize('motion', [0.0, 4.0])
@pytest.mark.parametrize('number', [0, 1, 2])
def test_an_inverted_stack_is_found(motion, number):
    assert unlike_stacks(stack_correlations(*case(motion))) == []
    assert unlike_stacks(stack_correlations(*case(motion, (number,)))) == [number]


def test_brightness_is_no_contrast():
    volumes, masks = case()
    brighter = [volumes[0], Volume(50 + 3 * volumes[1].data, volumes[1].lattice), volumes[2]]
    np.testing.assert_allclose(
        stack_correlations(brighter, masks), stack_correlations(volumes, masks), atol=2e-3
    )


def test_of_two_that_contradict_each_other_both_are_named():
    volumes, masks = case(inverted=(0,))
    assert unlike_stacks(stack_correlations(volumes[:2], masks[:2])) == [0, 1]


def test_what_has_nothing_in_common_is_not_judged():
    volumes, masks = case()
    shift = np.eye(4)
    shift[0, 3] = 500
    volumes[1] = Volume(volumes[1].data, volumes[1].lattice.moved(shift))
    correlations = stack_correlations(volumes, masks)
    assert np.isnan(correlations[0, 1]) and correlations[0, 2] > 0.9
    assert unlike_stacks(correlations) == []


def test_which_is_unlike():
    agree = np.array([[1, 0.9, 0.2], [0.9, 1, 0.3], [0.2, 0.3, 1]])
    assert unlike_stacks(agree) == [2]
    moved = np.array([[1, 0.5, 0.3], [0.5, 1, 0.35], [0.3, 0.35, 1]])
    assert unlike_stacks(moved) == [], 'stacks that moved agree less: no reason to accuse one'
    poor = np.array([[1, 0.2, 0.05], [0.2, 1, 0.0], [0.05, 0.0, 1]])
    assert unlike_stacks(poor) == []
