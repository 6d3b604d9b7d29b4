"""Lines of k-space that cannot be as the scanner meant them, seen before anything is reconstructed."""

from __future__ import annotations

import numpy as np

# A line whose energy is so many times above or below that of the same lines in other frames is not used.
ENERGY_RATIO = 8.0
# Difference between frames as a share of the energy: hearts stay below the first in the strongest lines (those with
# the share STRONG of the largest energy), and below the second in all that stand out of the noise.
STRONG_DIFFERENCE, ANY_DIFFERENCE, STRONG, ABOVE_NOISE = 0.6, 2.0, 0.1, 30.0


def suspicious_lines(hybrid: np.ndarray, acquired: np.ndarray) -> tuple[np.ndarray, int]:
    """Lines to leave out, (T, ky) bool, and how many places of k-space are in doubt besides.

    Parameters
    ----------
    hybrid
        (T, coil, x, ky) complex, noise of standard deviation 1.
    acquired
        (T, ky) bool.

    Notes
    -----
    An empty line, one of another size than its neighbours, or one that differs from the same line of most other
    frames by more than hearts move. Where two frames disagree and there is no third, nobody can tell which is right.
    """
    energy = np.where(acquired, (np.abs(hybrid) ** 2).mean((1, 2)), np.nan)
    bad = _of_another_size(energy)
    doubtful = 0
    strongest = np.nanmax(np.where(bad, np.nan, energy))
    for y in range(energy.shape[1]):
        frames = np.flatnonzero(acquired[:, y] & ~bad[:, y])
        if len(frames) < 2:
            continue
        lines = hybrid[frames, :, :, y].reshape(len(frames), -1)
        difference = (np.abs(lines[:, None] - lines[None]) ** 2).mean(2) - 4.0 * (1 - np.eye(len(frames)))
        middle = int(np.argmin(np.median(difference, axis=1)))
        reference = float(energy[frames[middle], y])
        if reference < ABOVE_NOISE:
            continue
        limit = STRONG_DIFFERENCE if reference > STRONG * strongest else ANY_DIFFERENCE
        apart = difference[middle] > limit * reference
        # As many on one side as on the other: nothing to choose by.
        if 2 * apart.sum() < len(frames):
            bad[frames[apart], y] = True
        elif apart.any():
            doubtful += 1
    return bad, doubtful


def _of_another_size(energy):
    """(T, ky) bool: empty, or far from its neighbourhood and from any other acquisition of the same line.

    Near a sharp centre of k-space a line differs from its neighbours, but as its own acquisitions do; where most of
    those are wrong, one that is right still tells.
    """
    n_y = energy.shape[1]
    with np.errstate(invalid='ignore'):
        bad = energy < 0.1 * np.nanquantile(energy, 0.2)
    for y in range(n_y):
        near = energy[:, max(0, y - 1) : y + 2]
        if np.isfinite(near).sum() < 3:
            continue
        # 2 is the energy of noise alone; below a few times that, a line says too little to be judged.
        typical = float(np.nanmedian(near))
        for t in np.flatnonzero(np.isfinite(energy[:, y])):
            others = np.delete(energy[:, y], t)
            others = others[np.isfinite(others) & ~np.delete(bad[:, y], t)]
            low, high = (others.min(), others.max()) if len(others) else (typical, typical)
            own = energy[t, y]
            strong = own > ENERGY_RATIO * max(typical, low, 4.0)
            weak = own < min(typical, high) / ENERGY_RATIO and typical > 8.0 * ENERGY_RATIO
            bad[t, y] |= strong or weak
    return bad
