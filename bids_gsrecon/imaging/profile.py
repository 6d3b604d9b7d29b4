"""Slice profiles: how thick a slice is, and how it weighs the tissue across it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

FWHM_TO_SIGMA = 1.0 / (2.0 * np.sqrt(2.0 * np.log(2.0)))


@dataclass(frozen=True)
class SliceProfile:
    """The through-plane point spread function of a slice.

    Attributes
    ----------
    kind
        ``box``: uniform slab of ``thickness_mm``; ``gaussian``: FWHM = ``thickness_mm``;
        ``point``: the value at the slice centre.
    thickness_mm
        Slice thickness, mm (not the spacing: they differ where slices have a gap or overlap).
    axis
        Stored axis (0, 1, 2) of the image along which slices are stacked.
    """

    kind: Literal['box', 'gaussian', 'point']
    thickness_mm: float
    axis: int

    def __post_init__(self):
        if self.kind not in ('box', 'gaussian', 'point'):
            raise ValueError(f'unknown slice profile {self.kind!r}: box, gaussian or point')
        if not self.thickness_mm > 0:
            raise ValueError(f'slice thickness must be positive, not {self.thickness_mm}')
        if self.axis not in (0, 1, 2):
            raise ValueError(f'slice axis must be 0, 1 or 2, not {self.axis}')

    @property
    def half_width_mm(self) -> float:
        """Distance from the slice centre beyond which the profile is zero, mm."""
        if self.kind == 'gaussian':
            return 3.0 * self.thickness_mm * FWHM_TO_SIGMA
        return 0.5 * self.thickness_mm if self.kind == 'box' else 0.0

    def cumulative(self, offset_mm) -> np.ndarray:
        """Integral of the (unit-mass, cut) profile from -inf to ``offset_mm``."""
        offset = np.asarray(offset_mm, dtype=np.float64)
        if self.kind == 'box':
            return np.clip(offset / self.thickness_mm + 0.5, 0.0, 1.0)
        if self.kind == 'point':
            return (offset >= 0).astype(np.float64)
        sigma = self.thickness_mm * FWHM_TO_SIGMA
        low, high = special.ndtr(-3.0), special.ndtr(3.0)
        return np.clip((special.ndtr(offset / sigma) - low) / (high - low), 0.0, 1.0)

    def cell_weights(self, n_slices: int, spacing_mm: float, factor: int, margin: int = 0) -> np.ndarray:
        """Weights (n_slices, n_slices * factor + 2 * margin) of fine cells in each slice.

        Every slice spacing is cut into ``factor`` equal cells, with ``margin`` more at both ends; a
        weight is the profile's mass inside the cell. Rows sum to one (mass beyond the ends goes to
        the nearest kept cells by renormalising).
        """
        cell = spacing_mm / factor
        edges = (np.arange(n_slices * factor + 2 * margin + 1) - margin) * cell - 0.5 * spacing_mm
        centres = np.arange(n_slices) * spacing_mm
        weights = np.diff(self.cumulative(edges[None, :] - centres[:, None]), axis=1)
        return weights / weights.sum(1, keepdims=True)
