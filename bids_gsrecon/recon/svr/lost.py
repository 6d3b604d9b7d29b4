"""Slices that lost their way: found by what the other stacks predict, sought from many starts.

A slice that is far from its place explains itself there and spoils the volume that others are aligned with. It is
therefore compared with volumes that it, and all others that are lost, had no part in.
"""

from __future__ import annotations

import numpy as np

from bids_gsrecon.imaging.metrics import ncc
from bids_gsrecon.recon.svr.motion import neighbour_means
from bids_gsrecon.recon.svr.poses import PoseProblem
from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.recon.svr.volume import solve_volume

LOST = 0.9  # of the median correlation with the other stacks' volume, below which a slice is sought
MOST_LOST = 0.6  # share of the slices: more leave too little to compare them with
SPACINGS = (4, 2)  # of the volumes, of the final one
START_MM = 5.0  # length of the steps of the starts around the neighbours' pose, translations and turns
N_STEPS = 5
N_TURNS = 3


def find_lost(run) -> None:
    """Move lost slices to where they agree with the others; in place in ``run.poses``.

    Parameters
    ----------
    run
        A reconstruction: pixels, poses, frame, backend, `level`, `leave_out`.
    """
    for _ in range(N_TURNS):
        score = np.nan_to_num(leave_out_ncc(run), nan=-1.0)
        lost = score < LOST * np.median(score)
        if not lost.any() or lost.mean() > MOST_LOST:
            return
        before = run.poses
        for voxels in SPACINGS:
            _seek(run, lost, voxels * run.options.resolution_mm)
        after = np.nan_to_num(leave_out_ncc(run), nan=-1.0)
        worse = lost & (after < score)
        run.poses = np.where(worse[:, None, None], before, run.poses)
        if not (lost & (after > score + 0.02)).any():
            return


def leave_out_ncc(run) -> np.ndarray:
    """(M,) correlation of every slice with a volume of the other stacks only, at twice the spacing."""
    pixels, lattice = run.level(2 * run.options.resolution_mm)
    images = run.leave_out(pixels, lattice)
    problem = PoseProblem(pixels, lattice, images, run.frame, run.backend)
    predicted = problem.predict(run.poses)
    parts = [slice(*ends) for ends in zip(pixels.starts[:-1], pixels.starts[1:])]
    inside = pixels.in_mask
    return np.array([
        ncc(predicted[part], pixels.values[part], inside[part]) if inside[part].sum() > 2 else np.nan
        for part in parts
    ])  # fmt: skip


def _seek(run, lost: np.ndarray, spacing_mm: float) -> None:
    pixels, lattice = run.level(spacing_mm)
    known = pixels.selected(~lost[pixels.slice_of])
    view = View.make(known, lattice, run.poses, run.backend)
    ones = np.ones(len(known.values))
    volume = solve_volume(view, ones, np.ones(pixels.n_slices), n_iterations=8, n_rounds=1)
    own = pixels.selected(lost[pixels.slice_of])
    problem = PoseProblem(own, lattice, [volume], run.frame, run.backend)
    each = np.arange(pixels.n_slices)
    best, least = problem.refine(run.poses, each, n_steps=N_STEPS)
    parameters = run.frame.parameters(run.poses)
    size = np.bincount(pixels.slice_of, minlength=pixels.n_slices)
    means = neighbour_means(parameters, pixels.stack_of, pixels.rank, size * ~lost)
    steps = START_MM * np.concatenate([np.zeros((1, 6)), np.eye(6), -np.eye(6)])
    for step in steps:
        poses, cost = problem.refine(run.frame.motions(means + step), each, n_steps=N_STEPS)
        better = cost < least
        best, least = np.where(better[:, None, None], poses, best), np.where(better, cost, least)
    run.poses = np.where(lost[:, None, None], best, run.poses)
