"""The last level: volume and all poses in one Gauss-Newton step, by conjugate gradients."""

from __future__ import annotations

import numpy as np

from bids_gsrecon.recon.svr.pixels import View, motion, motion_parameters
from bids_gsrecon.recon.svr.poses import Frame, neighbour_means, normal_equations
from bids_gsrecon.recon.svr.volume import EMPTY, SMOOTHNESS, EdgePrior


def joint_step(
    view: View,
    image: np.ndarray,
    gains: np.ndarray,
    weights: np.ndarray,
    frame: Frame,
    *,
    prior: float,
    n_iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    """New amplitudes and poses after one damped step on ``sum w (y - g A(pose) a)^2 + priors``."""
    pixels = view.pixels
    m = pixels.n_slices
    gain = gains[pixels.slice_of]
    weight = weights.astype(np.float64)
    jacobian = view.jacobian(image, frame.centre_mm, frame.arm_mm) * gain[:, None]
    residual = pixels.values - gain * view.weights.forward(image)
    w32 = (weight * gain**2).astype(np.float32)
    seen = view.weights.adjoint(w32)
    data_diagonal = view.weights.squares(w32)
    core = seen > 0.1 * seen.max()
    scale = float(data_diagonal[core].mean())
    edges = EdgePrior(image, SMOOTHNESS * scale)
    tiny = np.float32(EMPTY * scale)
    blocks, right_pose = normal_equations(jacobian, residual, weight, pixels.slice_of, m)
    information = np.trace(blocks, axis1=1, axis2=2) / 6
    mean_information = float(information.mean())
    pull = prior * mean_information
    parameters = motion_parameters(view.poses, frame.centre_mm, frame.arm_mm)
    right_pose = right_pose + pull * (neighbour_means(parameters, pixels, information) - parameters)
    damping = (pull + 1e-3 * mean_information + 1e-12) * np.eye(6)
    right_image = (
        view.weights.adjoint((weight * gain * residual).astype(np.float32))
        - edges.product(image)
        - tiny * image
    )
    inverse_image = 1.0 / (0.5 * seen + edges.diagonal() + tiny + 1e-12)
    inverse_blocks = np.linalg.inv(blocks + damping)

    def product(da, dp):
        change = gain * view.weights.forward(da) + np.einsum('nk,nk->n', jacobian, dp[pixels.slice_of])
        change = weight * change
        out = view.weights.adjoint((gain * change).astype(np.float32)) + edges.product(da) + tiny * da
        pose = np.stack([np.bincount(pixels.slice_of, change * jacobian[:, k], m) for k in range(6)], 1)
        return out, pose + dp @ damping

    # Conjugate gradients on the pair (amplitudes, poses).
    da, dp = np.zeros_like(image), np.zeros((m, 6))
    ra, rp = right_image.astype(np.float64), right_pose
    za, zp = inverse_image * ra, np.einsum('mij,mj->mi', inverse_blocks, rp)
    pa, pp = za, zp
    rho = float((ra * za).sum() + (rp * zp).sum())
    start = rho
    for _ in range(n_iterations):
        ha, hp = product(pa.astype(np.float32), pp)
        curvature = float((pa * ha).sum() + (pp * hp).sum())
        if curvature <= 0:
            break
        alpha = rho / curvature
        da, dp = da + alpha * pa, dp + alpha * pp
        ra, rp = ra - alpha * ha, rp - alpha * hp
        za, zp = inverse_image * ra, np.einsum('mij,mj->mi', inverse_blocks, rp)
        rho, before = float((ra * za).sum() + (rp * zp).sum()), rho
        if rho < 1e-6 * start:
            break
        pa, pp = za + rho / before * pa, zp + rho / before * pp
    largest = np.abs(dp).max(1, keepdims=True)
    dp = dp * np.minimum(1.0, 3.0 / np.maximum(largest, 1e-12))
    poses = motion(dp, frame.centre_mm, frame.arm_mm) @ view.poses
    return (image + da).astype(np.float32), poses
