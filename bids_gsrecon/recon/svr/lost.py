"""Slices that lost their way: found by what the other stacks predict, sought from many starts.

A slice that is far from its place explains itself there and spoils the volume that others are aligned with. It is
therefore compared with volumes that it, and all others that are lost, had no part in.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.metrics import ncc
from bids_gsrecon.recon.svr.motion import in_time, neighbour_means
from bids_gsrecon.recon.svr.poses import PoseProblem, from_starts
from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.recon.svr.volume import solve_volume

LOST = 0.9  # of the median correlation with the other stacks' volume, below which a slice is sought
MOST_LOST = 0.6  # share of the slices: more leave too little to compare them with
SPACINGS = (4, 2)  # of the volumes, of the final one
ASTRAY_MM = 8.0  # of a slice's pose from the median of those about it in time; turns are lengths of arc
WINDOW = 11  # slices of that median
START_MM = 5.0  # length of the steps of the starts around the neighbours' pose, translations and turns
N_STEPS = 5
N_TURNS = 6  # at most: as long as slices are found
BETTER = 0.02  # correlation that a slice must have gained to count as found
SMALL = 0.4  # of the median slice's pixels: a slice that can explain itself anywhere


def find_lost(run) -> bool:
    """Move lost slices to where they agree with the others; in place in ``run.poses``.

    Parameters
    ----------
    run
        A reconstruction: pixels, poses, axes, frame, backend, report, `level`, `leave_out`.

    Returns
    -------
    bool
        Whether a slice of some size was found, so that others may be found with its help.
    """
    score, size = _score(run), run.pixels.n_masked
    large = size >= SMALL * np.median(size)
    any_found = False
    for turn in range(N_TURNS):
        run.report('looking for lost slices', turn, N_TURNS)
        low = score < LOST * np.median(score)
        lost = low | astray(run)
        if lost.mean() > MOST_LOST:
            lost = low
        if not lost.any() or lost.mean() > MOST_LOST:
            break
        before = run.poses
        for voxels in SPACINGS:
            pixels, lattice = run.level(voxels * run.options.resolution_mm)
            starts = _starts(run, pixels, lost)
            run.poses = align_apart(run, pixels, lattice, lost, starts, n_steps=N_STEPS, free_gains=True)
        after = _score(run)
        worse = lost & (after < score)
        run.poses = np.where(worse[:, None, None], before, run.poses)
        found = lost & large & (after > score + BETTER)
        score = np.where(worse, score, after)
        if not found.any():
            break
        any_found = True
    return any_found


def _score(run) -> np.ndarray:
    """(M,) `leave_out_ncc`; -1 of a slice that has none."""
    return np.nan_to_num(leave_out_ncc(run), nan=-1.0)


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


def align_apart(
    run, pixels, lattice, apart: np.ndarray, starts, *, n_steps: int, gains=None, image=None, free_gains=False
) -> np.ndarray:
    """Align some slices, each by itself, with a volume made of all the others.

    Parameters
    ----------
    run
        A reconstruction: poses, frame, backend.
    pixels, lattice
        Of all slices, and the grid of the volume.
    apart
        (M,) bool: the slices to be aligned.
    starts
        Poses (M, 4, 4) to start from, beside today's.
    gains, image
        (M,) of the slices (absent: one), and amplitudes to begin the volume with.
    free_gains
        See `PoseProblem`: lost slices often are dark ones; free, small ones would fit anywhere.

    Returns
    -------
    poses
        (M, 4, 4): the best of all starts; today's of the other slices.
    """
    others = pixels.selected(~apart[pixels.slice_of])
    view = View.make(others, lattice, run.poses, run.backend)
    gains = np.ones(pixels.n_slices) if gains is None else gains
    volume = solve_volume(view, np.ones(len(others.values)), gains, image, n_iterations=8, n_rounds=1)
    which = np.flatnonzero(apart)
    starts = np.stack([run.poses, *starts])[:, which]
    n_pixels = np.bincount(pixels.slice_of, minlength=pixels.n_slices)[which].sum()
    at_once = max(1, len(pixels.values) // max(1, n_pixels))  # starts, in the memory of all slices
    found, cost = [], []
    for first in range(0, len(starts), at_once):
        some = starts[first : first + at_once]
        own = pixels.repeated(which, len(some))
        problem = PoseProblem(own, lattice, [volume], run.frame, run.backend, free_gains=free_gains)
        ends, costs = from_starts(problem, some, n_steps=n_steps)
        found.append(ends)
        cost.append(costs)
    best = np.concatenate(cost).argmin(0)
    poses = run.poses.copy()
    poses[which] = np.concatenate(found)[best, np.arange(len(which))]
    return poses


def astray(run) -> np.ndarray:
    """(M,) bool: slices far from where most of their neighbours in time are; they may look right in a wrong place."""
    pixels, parameters = run.pixels, run.frame.parameters(run.poses)
    far = np.zeros(pixels.n_slices, bool)
    for mine in in_time(pixels.stack_of, pixels.rank):
        usual = ndimage.median_filter(parameters[mine], (WINDOW, 1), mode='nearest')
        far[mine] = np.linalg.norm(parameters[mine] - usual, axis=1) > ASTRAY_MM
    return far


def _starts(run, pixels, lost: np.ndarray):
    """Poses (M, 4, 4): between the neighbours in time that are not lost, and to all sides of that."""
    size = np.bincount(pixels.slice_of, minlength=pixels.n_slices)
    parameters = run.frame.parameters(run.poses)
    means = neighbour_means(parameters, pixels.stack_of, pixels.rank, size * ~lost)
    # Turns about and shifts along the stacks' own axes, whatever the world's.
    sides = START_MM * np.kron(np.eye(2), run.axes.T)
    return [run.frame.motions(means + step) for step in (np.zeros(6), *sides, *-sides)]
