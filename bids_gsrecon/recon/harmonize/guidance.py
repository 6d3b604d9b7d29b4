"""The guided voxel solve: slices explained exactly, everything between them as alike as the guide says.

``min_x |A x - y|^2_W + lambda x^T L x`` with A the slab mean, L the guided Laplacian.
"""

from __future__ import annotations

import numpy as np

from bids_gsrecon.recon.harmonize.slabs import SlabMean
from bids_gsrecon.solvers.cg import CGResult, conjugate_gradient
from bids_gsrecon.solvers.laplacian import GuidedLaplacian


def guided_solve(
    slabs: SlabMean,
    slices: np.ndarray,
    laplacian: GuidedLaplacian,
    strength: float,
    *,
    slice_weights: np.ndarray | None = None,
    x0: np.ndarray | None = None,
    max_iterations: int = 80,
    tolerance: float = 3e-5,
) -> CGResult:
    """Voxel image (nz, ny, nx) that explains ``slices`` (ns, ny, nx) under the guide's smoothness.

    Parameters
    ----------
    strength
        lambda, for slices in any intensity unit (the objective is homogeneous in the intensity).
    slice_weights
        (ns, ny, nx) weight of every pixel, 0 where it must not count.
    x0
        Start; the repeated slices if absent.
    """
    weights = np.ones_like(slices) if slice_weights is None else slice_weights

    def apply(p):
        out = slabs.adjoint(weights * slabs.forward(p))
        return laplacian.add_product(p, strength, out)

    diagonal = slabs.diagonal(weights) + np.float32(strength) * laplacian.diagonal
    inverse_diagonal = np.where(diagonal > 0, 1.0 / np.maximum(diagonal, 1e-12), 0.0).astype(np.float32)
    return conjugate_gradient(
        apply,
        slabs.adjoint(weights * slices),
        x0=slabs.nearest(slices) if x0 is None else x0,
        inverse_diagonal=inverse_diagonal,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
