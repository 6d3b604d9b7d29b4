"""The last level: volume and all poses in one damped Gauss-Newton step, by conjugate gradients."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.recon.svr.motion import Frame, neighbour_means
from bids_gsrecon.recon.svr.poses import normal_equations, shortened, slice_sums
from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.recon.svr.volume import EdgePrior, as_image, as_vector
from bids_gsrecon.solvers.cg import conjugate_gradient

LONGEST_STEP_MM = 3.0
DAMPING = 1e-3  # of the mean information


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
    right_image = view.adjoint(weight * gain * residual) - edges.product(image)
    seen_jacobian = jacobian * gain[:, None]

    def apply(vector):
        da = as_image(vector[:n_voxels], shape)
        dp = np.einsum('mij,mj->mi', white, vector[n_voxels:].reshape(m, 6))
        change = gain * view.forward(da)
        change += np.einsum('nk,nk->n', seen_jacobian, dp.astype(np.float32)[pixels.slice_of])
        change *= weight
        pose = np.einsum('mji,mj->mi', white, slice_sums(pixels, seen_jacobian, change) + damping * dp)
        return np.concatenate([as_vector(view.adjoint(gain * change) + edges.product(da)), pose.ravel()])

    right = np.einsum('mji,mj->mi', white, right_pose)
    inverse = np.concatenate([as_vector(1.0 / (0.5 * seen + edges.diagonal() + 1e-12)), np.ones(6 * m)])
    step = conjugate_gradient(
        apply,
        np.concatenate([as_vector(right_image), right.ravel()]),
        inverse_diagonal=inverse,
        max_iterations=n_iterations,
        tolerance=1e-3,
    ).x
    motions = np.einsum('mij,mj->mi', white, step[n_voxels:].reshape(m, 6))
    poses = frame.motions(shortened(motions, LONGEST_STEP_MM)) @ view.poses
    return image + as_image(step[:n_voxels], shape), poses
