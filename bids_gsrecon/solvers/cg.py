"""Preconditioned conjugate gradients for symmetric positive (semi-)definite systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bids_gsrecon.solvers.reductions import descend, dot, update_direction


@dataclass(frozen=True)
class CGResult:
    """Solution with what the iteration cost.

    Attributes
    ----------
    x
        Solution, the shape of the right-hand side, float32.
    n_iterations
        Products with the matrix that were made (without the one for a start value).
    relative_residual
        ``|b - H x| / |b|`` in the norm of the preconditioner.
    """

    x: np.ndarray
    n_iterations: int
    relative_residual: float


def conjugate_gradient(
    apply: Callable[[np.ndarray], np.ndarray],
    b: np.ndarray,
    *,
    x0: np.ndarray | None = None,
    inverse_diagonal: np.ndarray | float = 1.0,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    callback: Callable[[int, float], None] | None = None,
) -> CGResult:
    """Solve ``H x = b``.

    Parameters
    ----------
    apply
        ``apply(p)`` returns ``H p`` (same shape as ``b``, float32).
    b
        Right-hand side, any shape.
    x0
        Start (zeros if absent); not changed.
    inverse_diagonal
        Jacobi preconditioner: ``1 / diag(H)``, the shape of ``b`` or a number.
    max_iterations, tolerance
        Stop after so many products, or when the preconditioned residual fell below ``tolerance`` of b's.
    callback
        Called with (iteration, relative residual).

    Notes
    -----
    Vectors are float32, inner products double with a fixed order: the result does not depend on the
    number of threads unless ``apply`` does.
    """
    b = np.ascontiguousarray(b, dtype=np.float32)
    scale = np.asarray(inverse_diagonal, dtype=np.float32)
    if scale.shape != b.shape:
        scale = np.broadcast_to(scale, b.shape)
    scale = np.ascontiguousarray(scale)
    b_norm = np.sqrt(max(dot(b, scale * b), 0.0))
    if x0 is None:
        x = np.zeros_like(b)
        r = b.copy()
    else:
        x = np.array(x0, dtype=np.float32, order='C', copy=True)
        r = b - apply(x)
    if b_norm == 0.0:
        return CGResult(np.zeros_like(b), 0, 0.0)
    p = scale * r
    rz = dot(r, p)
    iteration = 0
    while iteration < max_iterations and np.sqrt(max(rz, 0.0)) > tolerance * b_norm:
        hp = np.ascontiguousarray(apply(p), dtype=np.float32)
        curvature = dot(p, hp)
        if curvature <= 0.0:  # converged to rounding, or H is not positive along p
            break
        rz_new = descend(x, r, p, hp, scale, rz / curvature)
        update_direction(p, r, scale, rz_new / rz)
        rz = rz_new
        iteration += 1
        if callback is not None:
            callback(iteration, float(np.sqrt(max(rz, 0.0)) / b_norm))
    return CGResult(x, iteration, float(np.sqrt(max(rz, 0.0)) / b_norm))
