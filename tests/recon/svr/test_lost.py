"""Slices and whole stacks far from their place: told by the other stacks, and found again."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_gsrecon.recon.svr.frame import grid_axes
from bids_gsrecon.recon.svr.lost import LOST, astray, find_lost, leave_out_ncc
from bids_gsrecon.recon.svr.method import _Reconstruction
from bids_gsrecon.recon.svr.motion import Frame
from bids_gsrecon.recon.svr.pixels import collect_pixels
from bids_gsrecon.recon.svr.turned import find_turned
from bids_gsrecon.recon.svr.types import SvrOptions
from tests.moving_stacks import BACKEND, moving_stacks

TURN = np.eye(4)  # of the world
TURN[:3, :3] = Rotation.from_rotvec([0.4, -0.7, 0.5]).as_matrix()
TURN[:3, 3] = 20.0, -5.0, 8.0


def reconstruction(world):
    """One whose slices are where they belong, in a world that was turned."""
    stacks, poses, *_ = moving_stacks()
    stacks = [replace(s, lattice=replace(s.lattice, affine=world @ s.lattice.affine)) for s in stacks]
    poses = world @ poses @ np.linalg.inv(world)
    run = _Reconstruction(stacks, SvrOptions(resolution_mm=1.0), lambda stage, done, total: None, BACKEND)
    run.pixels, run.poses = collect_pixels(stacks), poses
    run.axes = grid_axes(run.pixels, 0)
    run.frame = Frame.around(run.pixels.points_mm[run.pixels.in_mask])
    return run


@pytest.fixture
def run():
    return reconstruction(np.eye(4))


def error_mm(run, poses):
    """(M,) mean distance of the masks' pixels of every slice from where ``poses`` puts them."""
    p = run.pixels.selected(run.pixels.in_mask)
    way = np.linalg.norm(p.placed(run.poses) - p.placed(poses), axis=1)
    return np.bincount(p.slice_of, way, p.n_slices) / p.n_masked


def lose(run):
    """Three of the slices that hold much go far from their place; which."""
    lost = np.argsort(-run.pixels.n_masked)[[1, 4, 9]]
    turns = [[6, 0, 0], [0, -6, 0], [0, 0, 6]] @ run.axes.T
    shifts = [[0, 5, 0], [0, 0, 5], [-5, 0, 0]] @ run.axes.T
    steps = np.zeros((len(run.poses), 6))
    steps[lost] = np.concatenate([turns, shifts], 1)
    run.poses = run.frame.motions(steps) @ run.poses
    return lost


def test_lost_slices_are_told_and_found(run):
    true = run.poses
    size = run.pixels.n_masked
    lost = lose(run)
    score = leave_out_ncc(run)
    assert (score[lost] < LOST * np.median(score)).all()
    assert error_mm(run, true)[lost].min() > 3
    find_lost(run)
    assert error_mm(run, true)[lost].max() < 1.0
    others = np.setdiff1d(np.flatnonzero(size > 150), lost)
    assert error_mm(run, true)[others].max() < 1.0


def test_slices_that_are_in_place_stay(run):
    true = run.poses
    find_lost(run)
    assert error_mm(run, true).max() < 1.0


def test_the_search_does_not_depend_on_the_axes_of_the_world(run):
    turned = reconstruction(TURN)
    for one in (run, turned):
        lose(one)
        find_lost(one)
    expected = TURN @ run.poses @ np.linalg.inv(TURN)
    assert error_mm(turned, expected).max() < 0.05


def test_slices_that_part_from_their_neighbours_in_time_are_astray(run):
    first = np.flatnonzero(run.pixels.stack_of == 1)
    gone = first[np.isin(run.pixels.rank[first], (4, 5, 6))]
    assert len(gone) > 1 and not astray(run).any()
    steps = np.zeros((len(run.poses), 6))
    steps[gone, 4] = 12.0
    run.poses = run.frame.motions(steps) @ run.poses
    np.testing.assert_array_equal(np.flatnonzero(astray(run)), gone)


@pytest.mark.parametrize('world', [np.eye(4), TURN], ids=['world', 'turned world'])
def test_a_stack_that_lies_turned_is_found(world):
    run = reconstruction(world)
    true = run.poses
    turn = Rotation.from_rotvec(run.axes[:, 1] * np.radians(100.0)).as_matrix()
    away = run.frame.motions(np.zeros((1, 6)))[0]
    away[:3, :3], away[:3, 3] = turn, run.frame.centre_mm - turn @ run.frame.centre_mm + 3.0
    mine = run.pixels.stack_of == 2
    run.poses = np.where(mine[:, None, None], away @ true, true)
    find_turned(run, 3.0)
    size = run.pixels.n_masked > 150
    assert error_mm(run, away @ true)[mine & size].min() > 5
    assert error_mm(run, true)[mine & size].max() < 2.0


def test_stacks_that_lie_as_they_should_are_not_turned(run):
    poses = run.poses.copy()
    find_turned(run, 3.0)
    np.testing.assert_array_equal(run.poses, poses)


def test_slices_repeated_are_the_same_slices(run):
    pixels, which = run.pixels, np.array([2, 5, 11])
    again = pixels.repeated(which, 4)
    assert again.n_slices == 12
    for copy in range(4):
        for i, number in enumerate(which):
            mine, source = again.slice_of == 3 * copy + i, pixels.slice_of == number
            np.testing.assert_array_equal(again.points_mm[mine], pixels.points_mm[source])
            np.testing.assert_array_equal(again.values[mine], pixels.values[source])
            np.testing.assert_array_equal(again.in_mask[mine], pixels.in_mask[source])
            np.testing.assert_array_equal(again.axes[3 * copy + i], pixels.axes[number])
    assert (np.diff(again.slice_of) >= 0).all()


def test_any_share_of_the_pixels_is_among_them(run):
    pixels = run.pixels.selected(np.zeros(15383, int))
    for n in (1, 999, 4000, 13000):
        assert abs(len(pixels.thinned(n / 15383).values) - n) <= 1
