"""Poses against fixed volumes: Levenberg-Marquardt for groups of slices that move together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numba import njit, prange

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.svr.motion import Frame, neighbour_means
from bids_gsrecon.recon.svr.pixels import Pixels
from bids_gsrecon.recon.svr.view import GRID_SIGMA, View

LONGEST_STEP_MM = 8.0
LEAST_GAIN, MOST_GAIN = 0.1, 1.3  # of a slice: motion while it is excited takes signal away, nothing adds any


@njit(parallel=True, cache=True)
def _normal_equations(starts, jacobian, residual, weights, gains, matrix, right):
    for s in prange(len(starts) - 1):
        m = np.zeros((6, 6))
        b = np.zeros(6)
        gain = gains[s]
        for i in range(starts[s], starts[s + 1]):
            w = weights[i] * gain
            for k in range(6):
                t = w * jacobian[i, k]
                b[k] += t * residual[i]
                for n in range(k + 1):
                    m[k, n] += t * gain * jacobian[i, n]
        for k in range(6):
            right[s, k] = b[k]
            for n in range(k + 1):
                matrix[s, k, n] = m[k, n]
                matrix[s, n, k] = m[k, n]


def normal_equations(pixels: Pixels, jacobian, residual, weights, gains):
    """Sums over slices: matrices (M, 6, 6) and right-hand sides (M, 6).

    ``jacobian`` (N, 6) is without the gains (M,); it, ``residual`` and ``weights`` (N,) are float32.
    """
    matrix, right = np.empty((pixels.n_slices, 6, 6)), np.empty((pixels.n_slices, 6))
    _normal_equations(pixels.starts, jacobian, residual, weights, gains, matrix, right)
    return matrix, right


@njit(parallel=True, cache=True)
def _gain_sums(starts, values, predicted, in_mask, weights, cross, power):
    for s in prange(len(starts) - 1):
        c = p = 0.0
        for i in range(starts[s], starts[s + 1]):
            if in_mask[i]:
                at = np.float64(predicted[i])
                c += weights[i] * at * values[i]
                p += weights[i] * at * at
        cross[s], power[s] = c, p


def slice_gains(predicted, pixels: Pixels, weights, *, free: bool = False) -> np.ndarray:
    """(M,) least-squares gain of every slice (value = gain x prediction), within limits; mean one unless ``free``.

    ``predicted`` and ``weights`` (N,) are float32.
    """
    cross, power = np.empty(pixels.n_slices), np.empty(pixels.n_slices)
    _gain_sums(pixels.starts, pixels.values, predicted, pixels.in_mask, weights, cross, power)
    gains = np.where(power > 1e-9, cross / np.maximum(power, 1e-9), 1.0)
    gains = np.clip(gains, LEAST_GAIN, MOST_GAIN)
    return gains if free else gains / np.average(gains, weights=power + 1e-12)


@njit(parallel=True, cache=True)
def _residuals(starts, values, predicted, gains, residual, cost):
    for s in prange(len(starts) - 1):
        total = 0.0
        for i in range(starts[s], starts[s + 1]):
            residual[i] = values[i] - gains[s] * predicted[i]
            total += np.float64(residual[i]) ** 2
        cost[s] = total


@njit(parallel=True, cache=True)
def _copy_slices(starts, which, residual, jacobian, new_residual, new_jacobian):
    for s in prange(len(starts) - 1):
        if which[s]:
            for i in range(starts[s], starts[s + 1]):
                residual[i] = new_residual[i]
                jacobian[i] = new_jacobian[i]


@dataclass(eq=False)
class _State:
    """Poses with what they explain."""

    poses: np.ndarray
    gains: np.ndarray
    residual: np.ndarray
    jacobian: np.ndarray
    cost: np.ndarray  # of every group

    def take(self, other: _State, better: np.ndarray, group_of_slice, starts) -> None:
        """Take from another state the groups that are better there."""
        slices = better[group_of_slice]
        self.poses = np.where(slices[:, None, None], other.poses, self.poses)
        self.gains = np.where(slices, other.gains, self.gains)
        _copy_slices(starts, slices, self.residual, self.jacobian, other.residual, other.jacobian)
        self.cost = np.where(better, other.cost, self.cost)


@dataclass(eq=False)
class PoseProblem:
    """Slices against fixed volumes.

    Attributes
    ----------
    images
        What slices are compared with: one volume for all, or one per stack (made without it, for instance).
    frame
        About what they turn.
    grid_sigma
        Of the images' Gaussians, in spacings of the grid.
    free_gains
        The gains of the slices need not have the mean one: where all of them may be dark.
    """

    pixels: Pixels
    lattice: Lattice
    images: list[np.ndarray]
    frame: Frame
    backend: object
    grid_sigma: float = GRID_SIGMA
    free_gains: bool = False

    @cached_property
    def _parts(self) -> list:
        """(where, pixels, image): all, or stack by stack, whose slices follow each other."""
        p = self.pixels
        if len(self.images) == 1:
            return [(slice(None), p, self.images[0])]
        first = p.starts[np.searchsorted(p.stack_of, np.arange(len(self.images) + 1))]
        ranges = [slice(*ends) for ends in pairwise(first)]
        return [(r, p.selected(r), image) for r, image in zip(ranges, self.images) if r.stop > r.start]

    def _views(self, poses):
        """(where, view, image) of all parts."""
        for where, pixels, image in self._parts:
            view = View.make(pixels, self.lattice, poses, self.backend, grid_sigma=self.grid_sigma)
            yield where, view, image

    def predict(self, poses: np.ndarray) -> np.ndarray:
        """(N,) what the volumes predict at these poses, without gains."""
        return np.concatenate([view.forward(image) for _, view, image in self._views(poses)])

    def explain(self, poses: np.ndarray, group_of_slice: np.ndarray) -> _State:
        """What the volumes predict at these poses, and its derivatives."""
        p = self.pixels
        n = len(p.values)
        value, jacobian = np.empty(n, np.float32), np.empty((n, 6), np.float32)
        for where, view, image in self._views(poses):
            value[where], jacobian[where] = view.derivative(image, self.frame)
        gains = slice_gains(value, p, np.ones(n, np.float32), free=self.free_gains)
        residual, cost = np.empty(n, np.float32), np.empty(p.n_slices)
        _residuals(p.starts, p.values, value, gains, residual, cost)
        return _State(poses, gains, residual, jacobian, np.bincount(group_of_slice, cost))

    def refine(self, poses, group_of_slice, *, n_steps: int, prior: float = 0.0):
        """Levenberg-Marquardt with acceptance by group.

        Parameters
        ----------
        poses
            (M, 4, 4) to start from.
        group_of_slice
            (M,) slices of a group move together.
        prior
            Pull towards the acquisition's neighbours, of the mean information (for groups of one slice).

        Returns
        -------
        poses
            (M, 4, 4).
        cost
            (groups,) sum of squared residuals there.
        """
        p = self.pixels
        n_groups = int(group_of_slice.max()) + 1
        damping = np.full(n_groups, 1e-2)
        state = self.explain(poses, group_of_slice)
        ones = np.ones(len(p.values), np.float32)
        for _ in range(n_steps):
            by_slice = normal_equations(p, state.jacobian, state.residual, ones, state.gains)
            matrix, right = np.zeros((n_groups, 6, 6)), np.zeros((n_groups, 6))
            np.add.at(matrix, group_of_slice, by_slice[0])
            np.add.at(right, group_of_slice, by_slice[1])
            information = np.trace(matrix, axis1=1, axis2=2) / 6
            mean_information = float(np.mean(information))
            pull = prior * mean_information if n_groups == p.n_slices else 0.0
            parameters = self.frame.parameters(state.poses) if pull else None
            means = neighbour_means(parameters, p.stack_of, p.rank, information) if pull else None
            if pull:
                matrix = matrix + pull * np.eye(6)
                right = right + pull * (means - parameters)
            # Multiples of the identity, not of the diagonal: steps do not depend on the world's axes.
            lift = damping * information + 1e-3 * mean_information + 1e-12
            step = np.linalg.solve(matrix + lift[:, None, None] * np.eye(6), right[..., None])[..., 0]
            step = shortened(step, LONGEST_STEP_MM)
            new = self.explain(self.frame.motions(step)[group_of_slice] @ state.poses, group_of_slice)
            rise = new.cost - state.cost
            if pull:
                there = self.frame.parameters(new.poses)
                rise += pull * (((there - means) ** 2).sum(1) - ((parameters - means) ** 2).sum(1))
            better = rise <= 0
            damping = np.where(better, np.maximum(damping / 4, 1e-4), damping * 6)
            state.take(new, better, group_of_slice, p.starts)
        return state.poses, state.cost


def shortened(steps: np.ndarray, longest: float) -> np.ndarray:
    """Steps (n, 6) scaled down where their turn or their shift is longer than ``longest``."""
    length = np.linalg.norm(steps.reshape(-1, 2, 3), axis=2).max(1, keepdims=True)
    return steps * np.minimum(1.0, longest / np.maximum(length, 1e-12))


def from_starts(
    problem: PoseProblem, starts: np.ndarray, *, n_steps: int, as_one: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Refine the poses of some slices from several starts at once.

    Parameters
    ----------
    problem
        Of n slices, repeated S times (`Pixels.repeated`).
    starts
        (S, n, 4, 4) poses.
    as_one
        The slices of a start move together.

    Returns
    -------
    poses
        (S, n, 4, 4).
    cost
        Sums of squared residuals there: (S, n), or (S, 1) as one.
    """
    n_starts, n_slices = starts.shape[:2]
    groups = np.arange(n_starts * n_slices) // (n_slices if as_one else 1)
    poses, cost = problem.refine(starts.reshape(-1, 4, 4), groups, n_steps=n_steps)
    return poses.reshape(starts.shape), cost.reshape(n_starts, -1)
