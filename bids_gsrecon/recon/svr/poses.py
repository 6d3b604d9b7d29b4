"""Rigid poses: Levenberg-Marquardt for groups of slices, and jointly with the volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.svr.pixels import Pixels, View, motion, motion_parameters

_UPPER = np.triu_indices(6)


@dataclass(frozen=True, eq=False)
class Frame:
    """About what slices turn, and the lever arm that makes rotations millimetres."""

    centre_mm: np.ndarray
    arm_mm: float


def normal_equations(jacobian, residual, weights, group_of, n_groups):
    """Sums over groups: matrices (G, 6, 6) and right-hand sides (G, 6)."""
    matrix = np.zeros((n_groups, 6, 6))
    right = np.empty((n_groups, 6))
    for a in range(6):
        right[:, a] = np.bincount(group_of, weights * jacobian[:, a] * residual, n_groups)
        for b in range(a, 6):
            matrix[:, a, b] = np.bincount(group_of, weights * jacobian[:, a] * jacobian[:, b], n_groups)
            matrix[:, b, a] = matrix[:, a, b]
    return matrix, right


def neighbour_means(parameters: np.ndarray, pixels: Pixels, information: np.ndarray) -> np.ndarray:
    """(M, 6) weighted mean of every slice's two neighbours on each side in acquisition order."""
    means = parameters.copy()
    for stack in np.unique(pixels.stack_of):
        mine = np.flatnonzero(pixels.stack_of == stack)
        mine = mine[np.argsort(pixels.rank[mine], kind='stable')]
        for place, index in enumerate(mine):
            near = [(abs(d), mine[place + d]) for d in (-2, -1, 1, 2) if 0 <= place + d < len(mine)]
            if near:
                weights = np.array([information[j] / d for d, j in near]) + 1e-12
                means[index] = np.average(parameters[[j for _, j in near]], axis=0, weights=weights)
    return means


def slice_gains(
    view_values, values, weights, slice_of, n_slices, in_mask, *, spread: float = 0.3
) -> np.ndarray:
    """Least-squares gain of every slice (value = gain x prediction), mean one, within ``1 +- spread``."""
    w = weights * in_mask
    cross = np.bincount(slice_of, w * view_values * values, n_slices)
    power = np.bincount(slice_of, w * view_values**2, n_slices)
    gains = np.where(power > 1e-9, cross / np.maximum(power, 1e-9), 1.0)
    gains = np.clip(gains, 1.0 - spread, 1.0 + spread)
    return gains / np.average(gains, weights=power + 1e-12)


def refine_groups(
    pixels: Pixels,
    lattice: Lattice,
    images: list[np.ndarray],
    poses: np.ndarray,
    group_of_slice: np.ndarray,
    frame: Frame,
    *,
    n_steps: int,
    prior: float = 0.0,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Levenberg-Marquardt on groups of slices that move together, against fixed volumes.

    Parameters
    ----------
    images
        One volume per stack: what its slices are compared with (made without that stack, for instance).
    group_of_slice
        (M,) group of each slice.
    prior
        Pull towards the acquisition's neighbours, of the mean information (groups of one slice only).
    weights
        (N,) of the pixels; ones if absent.
    """
    n_groups = int(group_of_slice.max()) + 1
    group_of = group_of_slice[pixels.slice_of]
    weights = np.ones(len(pixels.values)) if weights is None else weights
    damping = np.full(n_groups, 1e-2)
    stack_of_pixel = pixels.stack_of[pixels.slice_of]

    def predict(poses, derivative):
        view = View.make(pixels, lattice, poses)
        value = np.empty(len(pixels.values))
        jacobian = np.empty((len(value), 6)) if derivative else None
        for stack, image in enumerate(images):
            mine = stack_of_pixel == stack
            if not mine.any():
                continue
            part = view if len(images) == 1 else View.make(pixels.selected(mine), lattice, poses)
            rows = slice(None) if len(images) == 1 else mine
            value[rows] = part.weights.forward(image)
            if derivative:
                jacobian[rows] = part.jacobian(image, frame.centre_mm, frame.arm_mm)
        return value, jacobian

    def gained(value):
        gain = slice_gains(value, pixels.values, weights, pixels.slice_of, pixels.n_slices, pixels.in_mask)
        return gain[pixels.slice_of]

    value, jacobian = predict(poses, True)
    gain = gained(value)
    residual = pixels.values - gain * value
    cost = np.bincount(group_of, weights * residual**2, n_groups)
    for _ in range(n_steps):
        matrix, right = normal_equations(jacobian * gain[:, None], residual, weights, group_of, n_groups)
        information = np.trace(matrix, axis1=1, axis2=2) / 6
        pull = prior * float(np.mean(information))
        if prior and n_groups == pixels.n_slices:
            parameters = motion_parameters(poses, frame.centre_mm, frame.arm_mm)
            means = neighbour_means(parameters, pixels, information)
            matrix = matrix + pull * np.eye(6)
            right = right + pull * (means - parameters)
        floor = 1e-3 * float(np.mean(information)) + 1e-12
        lifted = matrix + damping[:, None, None] * (matrix * np.eye(6)) + floor * np.eye(6)
        step = np.linalg.solve(lifted, right[..., None])[..., 0]
        size = np.abs(step).max(1, keepdims=True)
        step = step * np.minimum(1.0, 8.0 / np.maximum(size, 1e-12))
        candidate = motion(step, frame.centre_mm, frame.arm_mm)[group_of_slice] @ poses
        new_value, new_jacobian = predict(candidate, True)
        new_gain = gained(new_value)
        new_residual = pixels.values - new_gain * new_value
        new_cost = np.bincount(group_of, weights * new_residual**2, n_groups)
        better = new_cost <= cost * (1 + 1e-9) if not prior else new_cost <= cost * 1.01
        damping = np.where(better, np.maximum(damping / 4, 1e-4), damping * 6)
        poses = np.where(better[group_of_slice][:, None, None], candidate, poses)
        take = better[group_of]
        value = np.where(take, new_value, value)
        jacobian = np.where(take[:, None], new_jacobian, jacobian)
        gain = np.where(take, new_gain, gain)
        residual = pixels.values - gain * value
        cost = np.bincount(group_of, weights * residual**2, n_groups)
    return poses
