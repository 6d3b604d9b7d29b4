"""Rigid motions of slices: parameters in millimetres about one centre, and how they follow each other in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

_REACH = 2  # neighbours on each side in acquisition order, that a slice is likely to have moved with


@dataclass(frozen=True, eq=False)
class Frame:
    """About what slices turn, and the lever arm that makes rotations millimetres."""

    centre_mm: np.ndarray
    arm_mm: float

    @classmethod
    def around(cls, points_mm: np.ndarray) -> Frame:
        """Of a cloud of points (N, 3): its mean, and its root mean square distance from there."""
        centre = points_mm.mean(axis=0)
        return cls(centre, float(np.sqrt(np.mean(np.sum((points_mm - centre) ** 2, 1)))))

    def motions(self, parameters: np.ndarray) -> np.ndarray:
        """World motions (M, 4, 4) of parameters (M, 6), mm: lever arm x rotation vector, then translation."""
        parameters = np.atleast_2d(parameters)
        out = np.tile(np.eye(4), (len(parameters), 1, 1))
        out[:, :3, :3] = Rotation.from_rotvec(parameters[:, :3] / self.arm_mm).as_matrix()
        out[:, :3, 3] = parameters[:, 3:] + self.centre_mm - out[:, :3, :3] @ self.centre_mm
        return out

    def parameters(self, motions: np.ndarray) -> np.ndarray:
        """The inverse of `motions`."""
        rotation = Rotation.from_matrix(motions[:, :3, :3]).as_rotvec()
        shift = motions[:, :3, 3] - self.centre_mm + motions[:, :3, :3] @ self.centre_mm
        return np.concatenate([rotation * self.arm_mm, shift], 1)


def in_time(stack_of, rank) -> Iterator[np.ndarray]:
    """The slices (indices) of every stack in turn, in the order of their acquisition.

    Parameters
    ----------
    stack_of, rank
        (M,) stack of a slice, and when it was acquired there.
    """
    for stack in np.unique(stack_of):
        mine = np.flatnonzero(stack_of == stack)
        yield mine[np.argsort(rank[mine], kind='stable')]


def neighbour_means(parameters, stack_of, rank, information) -> np.ndarray:
    """(M, 6) weighted mean of every slice's two neighbours on each side in acquisition order.

    Parameters
    ----------
    parameters
        (M, 6) of all slices.
    stack_of, rank
        (M,) stack of a slice, and when it was acquired there.
    information
        (M,) how well each slice is known.
    """
    means = parameters.copy()
    for mine in in_time(stack_of, rank):
        own, known = parameters[mine], information[mine][:, None]
        total, weight = np.zeros_like(own), np.zeros((len(mine), 1))
        for d in range(1, min(_REACH, len(mine) - 1) + 1):
            w = known / d + 1e-12
            total[d:] += (w * own)[:-d]
            weight[d:] += w[:-d]
            total[:-d] += (w * own)[d:]
            weight[:-d] += w[d:]
        if len(mine) > 1:
            means[mine] = total / weight
    return means


def mean_motion(motions: np.ndarray, weights: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """One rigid motion (4, 4) in the middle of several (M, 4, 4) that are not far apart.

    It takes ``centre_mm`` to the mean of where they take it: wherever the world has its origin.
    """
    out = np.eye(4)
    out[:3, :3] = Rotation.from_matrix(motions[:, :3, :3]).mean(weights=weights).as_matrix()
    middle = np.average(motions[:, :3, :3] @ centre_mm + motions[:, :3, 3], axis=0, weights=weights)
    out[:3, 3] = middle - out[:3, :3] @ centre_mm
    return out
