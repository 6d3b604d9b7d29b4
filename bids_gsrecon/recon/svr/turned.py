"""Whole stacks that lie turned: sought from all quarter turns, before anything finer is tried.

Least squares from where the scanner believed a stack finds back from about 60 degrees. The 24 turns that take a cube
to itself leave no rotation further than 63 degrees from the nearest of them.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from bids_gsrecon.recon.svr.poses import PoseProblem, from_starts
from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.recon.svr.volume import solve_volume

# Of the squared error where the scanner believed the stack, that another turn must reach: a stack whose slices moved
# much fits a little better in many wrong places.
BETTER = 0.5
N_STEPS = (2, 5)  # from all starts, and on from the best
N_LEFT = 6  # of these, with where the scanner believed the stack
N_PIXELS = 4000  # of a stack: enough for six numbers


def find_turned(run, spacing_mm: float) -> None:
    """Turn whole stacks to where they agree with those before them; in place in ``run.poses``.

    Parameters
    ----------
    run
        A reconstruction: pixels, poses, axes, frame, backend, `level`.
    spacing_mm
        Of the volume that stacks are compared with.
    """
    pixels, lattice = run.level(spacing_mm)
    masked = run.pixels.selected(run.pixels.in_mask)
    number = masked.stack_of[masked.slice_of]
    ones = np.ones(pixels.n_slices)
    turns = run.axes @ Rotation.create_group('O').as_matrix() @ run.axes.T
    for stack in range(1, pixels.n_stacks):
        before = pixels.selected(pixels.stack_of[pixels.slice_of] < stack)
        view = View.make(before, lattice, run.poses, run.backend)
        volume = solve_volume(view, np.ones(len(before.values)), ones, n_iterations=7, n_rounds=1)
        which = np.flatnonzero(pixels.stack_of == stack)
        own = pixels.selected(pixels.of_stack(stack))
        own = own.thinned(N_PIXELS / max(1, len(own.values)))
        points = masked.placed(run.poses)
        centre, target = points[number == stack].mean(0), points[number < stack].mean(0)
        starts = np.tile(np.eye(4), (1 + len(turns), 1, 1))
        starts[1:, :3, :3] = turns
        starts[1:, :3, 3] = target - turns @ centre
        starts = starts[:, None] @ run.poses[which]
        for n_steps in N_STEPS:
            copies = own.repeated(which, len(starts))
            problem = PoseProblem(copies, lattice, [volume], run.frame, run.backend)
            starts, cost = from_starts(problem, starts, n_steps=n_steps, as_one=True)
            # The scanner's stays the first.
            first = np.r_[0, 1 + np.argsort(cost[1:, 0], kind='stable')[: N_LEFT - 1]]
            starts, cost = starts[first], cost[first, 0]
        best = cost.argmin()
        if cost[best] < BETTER * cost[0]:
            run.poses[which] = starts[best]
