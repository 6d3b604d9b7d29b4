"""Amplitudes of a field by least squares, and further Gaussians where it cannot say what it should.

``min_b |A W b - y|^2_D + mu |W b - goal|^2_M``: W renders the field (frozen geometry), A is how the image was
acquired, ``goal`` a voxel image that the field shall hold. The caller gives the normal operator
``A^T D A + mu M`` and the right-hand image ``A^T D y + mu M goal``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bids_gsrecon.fields.densify import isotropic_gaussians, residual_maxima
from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.fields.index_space import to_index_space
from bids_gsrecon.gpu import FrozenWeights
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.solvers.cg import conjugate_gradient

DETAIL_ROUNDS = 6
DETAIL_SIGMA = 0.55  # voxels
DETAIL_PER_VOXEL = 0.15  # at most, each round
FIELD_TO_GOAL_DB = 48.0  # the field re-encodes the goal: beyond this nothing is gained (< .03 dB)


class FrozenLayers:
    """Layers of frozen geometry as one linear operator from stacked amplitudes to images (i, j, k)."""

    def __init__(self, fields, lattice: Lattice):
        self.fields = []
        self.operators = []
        self.lattice = lattice
        for field in fields:
            self.append(field)

    def append(self, field: GaussianField) -> None:
        means, covariances = to_index_space(field, self.lattice.world_to_voxel)
        self.fields.append(field)
        self.operators.append(
            FrozenWeights.build(
                means, covariances, field.log_weights, self.lattice.shape, composition=field.composition
            )
        )

    @property
    def nbytes(self) -> int:
        return sum(operator.nbytes for operator in self.operators)

    def split(self, amplitudes):
        """Amplitudes of every layer."""
        return np.split(amplitudes, np.cumsum([len(field) for field in self.fields])[:-1])

    def forward(self, amplitudes) -> np.ndarray:
        parts = self.split(amplitudes)
        total = self.operators[0].forward(parts[0])
        for operator, part in zip(self.operators[1:], parts[1:]):
            total += operator.forward(part)
        return total

    def adjoint(self, image) -> np.ndarray:
        return np.concatenate([operator.adjoint(image) for operator in self.operators])

    def squares(self, weights) -> np.ndarray:
        """Diagonal of ``W^T diag(weights) W``."""
        return np.concatenate([operator.column_sums_of_squares(weights) for operator in self.operators])


@dataclass(eq=False)
class FieldFit:
    """Fitted layers, their image (i, j, k) on the lattice, and how well it holds the goal in the mask."""

    layers: list[GaussianField]
    image: np.ndarray
    goal_db: float
    frozen_gb: float


def fit_amplitudes(
    field: GaussianField,
    lattice: Lattice,
    normal: Callable[[np.ndarray], np.ndarray],
    right_image: np.ndarray,
    *,
    precondition_weights: np.ndarray,
    goal: np.ndarray,
    mask: np.ndarray,
    detail: bool = True,
    progress: Callable[[str, int, int], None],
) -> FieldFit:
    """Amplitudes of a one-channel field, and narrow Gaussians at what is left of the goal.

    Parameters
    ----------
    field
        Frozen geometry; its amplitudes are the start.
    normal, right_image
        See the module's text; images (i, j, k) on ``lattice``.
    precondition_weights
        (i, j, k), about the diagonal of ``normal`` seen by a smooth image.
    goal, mask
        (i, j, k) what the field shall hold, intensities about 1, and where it is judged.
    detail
        Add up to `DETAIL_ROUNDS` rounds of narrow Gaussians (composition ``sum``).
    """
    layers = FrozenLayers([field], lattice)

    def solve(amplitudes, iterations):
        diagonal = layers.squares(precondition_weights)
        return conjugate_gradient(
            lambda b: layers.adjoint(normal(layers.forward(b))),
            layers.adjoint(right_image),
            x0=amplitudes,
            inverse_diagonal=np.where(diagonal > 1e-9, 1.0 / np.maximum(diagonal, 1e-9), 0.0),
            max_iterations=iterations,
            tolerance=1e-6,
        ).x

    n_rounds = 1 + DETAIL_ROUNDS * bool(detail)
    progress('fitting amplitudes', 0, n_rounds)
    amplitudes = solve(field.amplitudes[:, 0].copy(), 15)
    image = layers.forward(amplitudes)
    n_voxels = int(mask.sum())
    sigma_mm = DETAIL_SIGMA * float(np.cbrt(np.prod(lattice.voxel_sizes_mm)))
    for round_ in range(1, n_rounds):
        progress('fitting amplitudes', round_, n_rounds)
        if psnr_db(image, goal, mask) >= FIELD_TO_GOAL_DB:
            break
        residual = goal - image
        threshold = 10 ** (-FIELD_TO_GOAL_DB / 20)
        peaks = residual_maxima(residual, mask, round(DETAIL_PER_VOXEL * n_voxels), threshold)
        if len(peaks) == 0:
            break
        start = 0.7 * residual[tuple(peaks.T)]
        layers.append(isotropic_gaussians(lattice.to_world(peaks), sigma_mm, start[:, None], field.channels))
        amplitudes = solve(np.concatenate([amplitudes, start]).astype(np.float32), 8)
        image = layers.forward(amplitudes)
    progress('fitting amplitudes', n_rounds, n_rounds)
    fields = [
        layer.with_amplitudes(part[:, None], layer.channels)
        for layer, part in zip(layers.fields, layers.split(amplitudes))
    ]
    return FieldFit(fields, image, psnr_db(image, goal, mask), layers.nbytes / 2**30)


def sampled_at(field: GaussianField, lattice: Lattice, image: np.ndarray) -> np.ndarray:
    """Values (N,) of an image (i, j, k) on ``lattice`` at the Gaussians' centres (nearest voxel)."""
    index = np.round(lattice.to_index(field.means_mm)).astype(int)
    index = np.clip(index, 0, np.array(image.shape) - 1)
    return image[tuple(index.T)].astype(np.float32)


def psnr_db(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal (1) to rms difference in the mask, dB."""
    error = float(np.mean((image[mask] - truth[mask]) ** 2, dtype=np.float64))
    return float(-10.0 * np.log10(max(error, 1e-30)))
