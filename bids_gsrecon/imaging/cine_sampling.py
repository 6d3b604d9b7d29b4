"""Which lines of k-space a simulated cine acquires in every frame."""

from __future__ import annotations

import numpy as np

GOLDEN_RATIO = (np.sqrt(5.0) - 1.0) / 2.0


def variable_density_lines(
    n_lines: int, n_frames: int, per_frame: int, *, centre_density: float = 2.2, power: float = 3.0
) -> np.ndarray:
    """(T, ky) bool: golden-ratio shifted, equally spaced lines, warped to be dense at the centre.

    A generic pattern (equidistant quantiles of a smooth density, shifted from frame to frame by the golden ratio);
    lines that fall together are moved to the nearest free one, so that every frame has ``per_frame`` lines.

    Parameters
    ----------
    centre_density
        How many times denser than on average the centre is.
    power
        How quickly the density falls off.
    """
    if not 1 <= per_frame <= n_lines:
        raise ValueError(f'a frame has 1 to {n_lines} lines, not {per_frame}')
    mask = np.zeros((n_frames, n_lines), bool)
    for frame in range(n_frames):
        quantile = 2.0 * np.mod((np.arange(per_frame) + frame * GOLDEN_RATIO) / per_frame, 1.0) - 1.0
        inner = quantile / centre_density
        outer = (1.0 - 1.0 / centre_density) * np.sign(quantile) * np.abs(quantile) ** power
        wanted = (inner + outer + 1.0) / 2.0 * n_lines - 0.5
        free = np.ones(n_lines, bool)
        for place in wanted[np.argsort(np.abs(quantile), kind='stable')]:
            candidates = np.flatnonzero(free)
            line = candidates[np.argmin(np.abs(candidates - place))]
            free[line] = False
        mask[frame] = ~free
    return mask
