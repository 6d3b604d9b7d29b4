"""Gaussian geometry in the index space of a lattice."""

from __future__ import annotations

import numpy as np
from numba import njit, prange


@njit(inline='always')
def _rotation(w, x, y, z, r):
    r[0, 0], r[0, 1], r[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    r[1, 0], r[1, 1], r[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    r[2, 0], r[2, 1], r[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)


@njit(inline='always')
def fill_factor(quaternion, log_scale, linear, rotation, factor):
    """Rotation of the normalised quaternion, and factor = linear R diag(exp(s)); returns the norm."""
    norm = 0.0
    for a in range(4):
        norm += np.float64(quaternion[a]) ** 2
    norm = np.sqrt(norm)
    w, x, y, z = quaternion[0] / norm, quaternion[1] / norm, quaternion[2] / norm, quaternion[3] / norm
    _rotation(w, x, y, z, rotation)
    for k in range(3):
        scale = np.exp(np.float64(log_scale[k]))
        for a in range(3):
            factor[a, k] = scale * (
                linear[a, 0] * rotation[0, k] + linear[a, 1] * rotation[1, k] + linear[a, 2] * rotation[2, k]
            )
    return norm


@njit(parallel=True, cache=True)
def fill_covariances(log_scales, quaternions, linear, out):
    """Covariances (N, 6) from (N, 3) log scales, (N, 4) quaternions and the linear part (3, 3) of world to voxel."""
    n = len(out)
    for chunk in prange((n + 1023) // 1024):
        rotation, factor = np.empty((3, 3)), np.empty((3, 3))
        for i in range(chunk * 1024, min(n, chunk * 1024 + 1024)):
            fill_factor(quaternions[i], log_scales[i], linear, rotation, factor)
            j = 0
            for a in range(3):
                for b in range(a, 3):
                    total = 0.0
                    for k in range(3):
                        total += factor[a, k] * factor[b, k]
                    out[i, j] = total
                    j += 1


def to_index_space(field, world_to_voxel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres (N, 3) and covariances (N, 6: xx, xy, xz, yy, yz, zz) of a `GaussianField` in voxels, float64."""
    matrix = np.asarray(world_to_voxel, dtype=np.float64)
    means = field.means_mm @ matrix[:3, :3].T + matrix[:3, 3]
    covariances = np.empty((len(field.log_scales), 6))
    scales, quaternions = (np.asarray(a, np.float64) for a in (field.log_scales, field.quaternions))
    fill_covariances(scales, quaternions, np.ascontiguousarray(matrix[:3, :3]), covariances)
    return means, covariances
