"""The last level: volume and all poses in one damped Gauss-Newton step, by conjugate gradients."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from bids_gsrecon.recon.svr.motion import Frame, neighbour_means
from bids_gsrecon.recon.svr.poses import normal_equations, shortened
from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.recon.svr.volume import EdgePrior, as_image
from bids_gsrecon.solvers.cg import conjugate_gradient

LONGEST_STEP_MM = 3.0
DAMPING = 1e-3  # of the mean information


@njit(parallel=True, cache=True)
def _pose_products(starts, slices, white, damping, gains, weights, jacobian, seen, seen_change, pose):
    """What a change of whitened poses ``slices`` (M, 6), and of the volume, seen as ``seen`` (N,), does.

    ``seen_change`` (N,): the gain times the weighted change of the pixels, for the volume's adjoint. ``pose``
    (M, 6): the same gathered to the whitened poses, with their damping.
    """
    for s in prange(len(starts) - 1):
        step, total = np.zeros(6), np.zeros(6)
        for k in range(6):
            for n in range(6):
                step[k] += white[s, k, n] * slices[s, n]
        for i in range(starts[s], starts[s + 1]):
            change = np.float64(seen[i])
            for k in range(6):
                change += jacobian[i, k] * step[k]
            change *= gains[s] * weights[i] * gains[s]
            seen_change[i] = change
            for k in range(6):
                total[k] += jacobian[i, k] * change
        for k in range(6):
            pose[s, k] = 0.0
            for n in range(6):
                pose[s, k] += white[s, n, k] * (total[n] + damping * step[n])


def joint_step(
    view: View,
    image: np.ndarray,
    gains: np.ndarray,
    weights: np.ndarray,
    frame: Frame,
    *,
    smoothness: float,
    prior: float,
    n_iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    """New amplitudes and poses after one step on ``sum w (y - g A(pose) a)^2 + priors``.

    Parameters
    ----------
    view
        The pixels at today's poses.
    image
        (nx, ny, nz) today's amplitudes.
    gains, weights
        (M,) of slices, (N,) of pixels.
    smoothness
        Strength of the volume's edge-preserving prior.
    prior
        Pull of the poses towards their neighbours in time, of the mean information.
    """
    pixels = view.pixels
    m, shape, n_voxels = pixels.n_slices, image.shape, image.size
    gain = gains[pixels.slice_of].astype(np.float32)
    weight = weights.astype(np.float32)
    value, jacobian = view.derivative(image, frame)
    residual = pixels.values - gain * value
    squared = weight * gain**2
    seen = view.adjoint(squared)
    edges = EdgePrior(image, smoothness)
    blocks, right_pose = normal_equations(pixels, jacobian, residual, weight, gains)
    information = np.trace(blocks, axis1=1, axis2=2) / 6
    pull = prior * float(information.mean())
    parameters = frame.parameters(view.poses)
    means = neighbour_means(parameters, pixels.stack_of, pixels.rank, information)
    right_pose = right_pose + pull * (means - parameters)
    damping = pull + DAMPING * float(information.mean()) + 1e-12
    # Poses are whitened by their own 6 x 6 blocks: step = white q, so that the preconditioner for q is one.
    white = np.linalg.inv(np.linalg.cholesky(blocks + damping * np.eye(6))).transpose(0, 2, 1)
    white = np.ascontiguousarray(white)

    def apply(vector):
        da = as_image(vector[:n_voxels], shape)
        seen_change, pose = np.empty(len(gain), np.float32), np.empty((m, 6))
        _pose_products(
            pixels.starts, vector[n_voxels:].reshape(m, 6), white, damping, gains, weight, jacobian,
            view.forward(da), seen_change, pose,
        )  # fmt: skip
        out = np.empty_like(vector)
        edges.add_product(da, view.adjoint(seen_change), out[:n_voxels])
        out[n_voxels:] = pose.ravel()
        return out

    right = np.empty(n_voxels + 6 * m, np.float32)
    edges.add_product(-image, view.adjoint(weight * gain * residual), right[:n_voxels])
    right[n_voxels:] = np.einsum('mji,mj->mi', white, right_pose).ravel()
    inverse = np.ones_like(right)
    edges.preconditioner(seen, inverse[:n_voxels])
    step = conjugate_gradient(
        apply,
        right,
        inverse_diagonal=inverse,
        max_iterations=n_iterations,
        tolerance=1e-3,
    ).x
    motions = np.einsum('mij,mj->mi', white, step[n_voxels:].reshape(m, 6))
    poses = frame.motions(shortened(motions, LONGEST_STEP_MM)) @ view.poses
    return image + as_image(step[:n_voxels], shape), poses
