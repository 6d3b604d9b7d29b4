"""What moved, on the image grid: displacement and change of shape of the Gaussians around every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_gsrecon.fields.dynamic import DynamicField2D
from bids_gsrecon.gpu.splat2d import splat


@dataclass(frozen=True, eq=False)
class MotionMaps:
    """Weighted means of the Gaussians at every pixel, all (T, x, y) float32; rest where nothing is seen.

    Attributes
    ----------
    displacement
        (T, x, y, 2) pixels along x and y, from the mean position to that of the frame.
    determinant
        Area of the Gaussians over that at their mean shape: below 1 where tissue is compressed.
    eigenvalue_ratio
        Longest over shortest axis of the Gaussians, 1 where they are round.
    """

    displacement: np.ndarray
    determinant: np.ndarray
    eigenvalue_ratio: np.ndarray


def motion_maps(field: DynamicField2D, shape: tuple[int, int]) -> MotionMaps:
    """Motion of a fitted field on the grid ``shape`` of the acquired slice.

    A Gaussian counts by its brightness; Gaussians that rest count too, so that edges of motion are not blurred
    outwards.
    """
    moving = field.dynamic_parameters()
    n_frames = len(moving)
    resting = np.repeat(field.static_parameters(), n_frames, 0)
    rest_of_movers = field.clipped(field.base[None, : field.n_dynamic].copy())
    shift = moving[..., :2] - rest_of_movers[..., :2]
    area = (moving[..., 2] * moving[..., 4]) / (rest_of_movers[..., 2] * rest_of_movers[..., 4])
    everything = np.concatenate([moving, resting], 1)
    weight = np.hypot(everything[..., 5], everything[..., 6])
    still = np.zeros(resting.shape[:2], np.float32)
    values = {
        'x': np.concatenate([shift[..., 0], still], 1),
        'y': np.concatenate([shift[..., 1], still], 1),
        'area': np.concatenate([area, still + 1], 1),
        'ratio': _axis_ratio(everything),
    }

    def spread(first, second):
        painted = everything.copy()
        painted[..., 5], painted[..., 6] = first * weight, second * weight
        return splat(painted, shape)

    total = spread(np.ones_like(weight), values['x'])
    rest = [total[:, 1], *np.moveaxis(spread(values['y'], values['area']), 1, 0)]
    rest.append(spread(values['ratio'], values['ratio'])[:, 0])
    floor = 1e-3 * float(total[:, 0].max()) if total.size else 0.0
    seen = total[:, 0] > floor
    safe = np.where(seen, total[:, 0], 1.0)
    x, y, determinant, ratio = (np.where(seen, one / safe, empty) for one, empty in zip(rest, (0, 0, 1, 1)))
    return MotionMaps(
        np.stack([x, y], -1).astype(np.float32), determinant.astype(np.float32), ratio.astype(np.float32)
    )


def _axis_ratio(parameters):
    """(T, M) square root of the ratio of the eigenvalues of L L^T."""
    l11, l21, l22 = parameters[..., 2], parameters[..., 3], parameters[..., 4]
    trace, root = l11**2 + l21**2 + l22**2, l11 * l22
    spread = np.sqrt(np.maximum(trace**2 / 4 - root**2, 0))
    return np.sqrt((trace / 2 + spread) / np.maximum(trace / 2 - spread, 1e-6)).astype(np.float32)
