"""The Gaussian representation: a set of anisotropic 3D Gaussians in world millimetres."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

COMPOSITIONS = ('sum', 'normalized')


@dataclass(eq=False)
class GaussianField:
    """N anisotropic Gaussians with C amplitudes each.

    ``w_i(x) = exp(log_weight_i) * (exp(-q_i / 2) - exp(-R^2 / 2))_+`` with the squared Mahalanobis distance
    ``q_i`` and the cut R; ``sum``: I_c(x) = sum_i w_i a_ic; ``normalized``: I_c = sum_i w_i a_ic / sum_i w_i.

    Attributes
    ----------
    means_mm
        (N, 3) float64, world RAS mm.
    log_scales
        (N, 3) float32, log of the standard deviations in mm along the rotated axes.
    quaternions
        (N, 4) float32, unit (w, x, y, z).
    log_weights
        (N,) float32.
    amplitudes
        (N, C) float32, one column per channel.
    composition
        ``sum`` or ``normalized``.
    channels
        C names.
    metadata
        Anything JSON can hold; travels with the file.
    """

    means_mm: np.ndarray
    log_scales: np.ndarray
    quaternions: np.ndarray
    log_weights: np.ndarray
    amplitudes: np.ndarray
    composition: str = 'normalized'
    channels: tuple[str, ...] = ()
    metadata: dict = field(default_factory=dict)

    def __post_init__(self):
        n = len(self.means_mm)
        self.means_mm = np.ascontiguousarray(self.means_mm, dtype=np.float64)
        for name in ('log_scales', 'quaternions', 'log_weights', 'amplitudes'):
            setattr(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        self.channels = tuple(self.channels) or tuple(f'channel{i}' for i in range(self.amplitudes.shape[1]))
        shapes = (
            self.means_mm.shape == (n, 3)
            and self.log_scales.shape == (n, 3)
            and self.quaternions.shape == (n, 4)
            and self.log_weights.shape == (n,)
            and self.amplitudes.shape == (n, len(self.channels))
        )
        if not shapes:
            raise ValueError(
                'the arrays of a Gaussian field must agree in their number of Gaussians and channels'
            )
        if self.composition not in COMPOSITIONS:
            raise ValueError(f'unknown composition {self.composition!r}: one of {COMPOSITIONS}')

    def __len__(self) -> int:
        return len(self.means_mm)

    def covariances_mm2(self) -> np.ndarray:
        """World covariances (N, 6) float64: xx, xy, xz, yy, yz, zz, mm^2."""
        return covariances_from(self.log_scales.astype(np.float64), self.quaternions.astype(np.float64))

    def with_amplitudes(self, amplitudes, channels) -> GaussianField:
        """The same geometry with other amplitudes (N, C): a scaffold is reused this way."""
        return replace(self, amplitudes=amplitudes, channels=tuple(channels), metadata=dict(self.metadata))

    def selected(self, index) -> GaussianField:
        """The Gaussians of a boolean or integer index."""
        return replace(
            self,
            means_mm=self.means_mm[index],
            log_scales=self.log_scales[index],
            quaternions=self.quaternions[index],
            log_weights=self.log_weights[index],
            amplitudes=self.amplitudes[index],
            metadata=dict(self.metadata),
        )

    def moved(self, rigid) -> GaussianField:
        """The field after a rigid world motion (4x4)."""
        from scipy.spatial.transform import Rotation

        rigid = np.asarray(rigid, dtype=np.float64)
        rotation = Rotation.from_matrix(rigid[:3, :3])
        old = Rotation.from_quat(self.quaternions[:, [1, 2, 3, 0]].astype(np.float64))
        quaternions = (rotation * old).as_quat()[:, [3, 0, 1, 2]]
        means = self.means_mm @ rigid[:3, :3].T + rigid[:3, 3]
        return replace(self, means_mm=means, quaternions=quaternions, metadata=dict(self.metadata))


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices (N, 3, 3) of quaternions (N, 4), normalised here."""
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def covariances_from(log_scales: np.ndarray, quaternions: np.ndarray) -> np.ndarray:
    """Covariances R diag(exp(2 s)) R^T as (N, 6): xx, xy, xz, yy, yz, zz."""
    factor = rotation_matrices(quaternions) * np.exp(log_scales)[:, None, :]
    full = factor @ factor.transpose(0, 2, 1)
    return full[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
