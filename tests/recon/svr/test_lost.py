"""Slices far from their place: told by the other stacks, and found again."""

import numpy as np
import pytest

from bids_gsrecon.recon.svr.frame import grid_axes
from bids_gsrecon.recon.svr.lost import LOST, find_lost, leave_out_ncc
from bids_gsrecon.recon.svr.method import _Reconstruction
from bids_gsrecon.recon.svr.motion import Frame
from bids_gsrecon.recon.svr.pixels import collect_pixels
from bids_gsrecon.recon.svr.types import SvrOptions
from tests.moving_stacks import BACKEND, moving_stacks


@pytest.fixture
def run():
    """A reconstruction whose slices are where they belong, and their poses."""
    stacks, poses, *_ = moving_stacks()
    run = _Reconstruction(stacks, SvrOptions(resolution_mm=1.0), lambda stage, done, total: None)
    run.backend, run.pixels, run.poses = BACKEND, collect_pixels(stacks), poses
    run.axes = grid_axes(run.pixels, 0)
    run.frame = Frame.around(run.pixels.points_mm[run.pixels.in_mask])
    return run


def error_mm(run, poses):
    """(M,) mean distance of the masks' pixels of every slice from where ``poses`` puts them."""
    p = run.pixels.selected(run.pixels.in_mask)
    way = np.linalg.norm(p.placed(run.poses) - p.placed(poses), axis=1)
    return np.bincount(p.slice_of, way, p.n_slices) / p.n_masked


def test_lost_slices_are_told_and_found(run):
    true = run.poses
    size = run.pixels.n_masked
    lost = np.argsort(-size)[[1, 4, 9]]  # of the slices that hold much
    steps = np.zeros((len(true), 6))
    steps[lost] = [[6, 0, 0, 0, 5, 0], [0, -6, 0, 0, 0, 5], [0, 0, 6, -5, 0, 0]]
    run.poses = run.frame.motions(steps) @ true
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
