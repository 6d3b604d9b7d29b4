"""Synthetic multi-contrast heads with known truth, from tissue probability maps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice, Volume


@dataclass(frozen=True)
class TissueValues:
    """Signal of each tissue in one contrast (1 = bright); ``texture`` scales the T1w's fine structure."""

    white: float
    gray: float
    fluid: float
    lesion_gain: float  # added where the lesion map is one
    texture: float


T1W = TissueValues(white=1.0, gray=0.66, fluid=0.2, lesion_gain=0.0, texture=0.6)
T2W = TissueValues(white=0.36, gray=0.56, fluid=1.0, lesion_gain=0.42, texture=-0.35)
FLAIR = TissueValues(white=0.52, gray=0.70, fluid=0.12, lesion_gain=0.48, texture=0.15)


@dataclass(frozen=True, eq=False)
class Head:
    """Tissue maps on one lattice, all (i, j, k) float32 in [0, 1], zero outside ``mask``."""

    lattice: Lattice
    mask: np.ndarray
    white: np.ndarray
    gray: np.ndarray
    fluid: np.ndarray
    texture: np.ndarray  # high-pass of the T1w, about +-0.1
    lesion: np.ndarray

    def contrast(self, values: TissueValues) -> Volume:
        """The noise-free image of one contrast."""
        image = values.white * self.white + values.gray * self.gray + values.fluid * self.fluid
        image += values.texture * self.texture + values.lesion_gain * self.lesion
        return Volume(np.where(self.mask, np.maximum(image, 0.02), 0), self.lattice)


def head_from_maps(t1w: Volume, gray, white, *, rng: np.random.Generator, warp_mm: float = 2.0) -> Head:
    """A subject from a skull-stripped T1w template and its tissue probability maps.

    The maps are warped smoothly (so that no subject is the template itself) and sharpened (an average of many
    heads is softer than a head). No lesion yet.

    Parameters
    ----------
    t1w
        Template in [0, 1], zero outside the brain.
    gray, white
        Probabilities (i, j, k) on the same grid.
    rng
        Source of the warp.
    warp_mm
        Root-mean-square displacement per direction, mm.
    """
    shape = t1w.data.shape
    steps = t1w.lattice.voxel_sizes_mm
    offsets = [
        (warp_mm / step) * smooth_field(shape, rng, scale_voxels=25.0 / step).astype(np.float32)
        for step in steps
    ]
    grid = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing='ij', sparse=True)
    where = np.stack([g + o for g, o in zip(grid, offsets)])

    def warped(data):
        return ndimage.map_coordinates(np.asarray(data, dtype=np.float32), where, order=1, mode='constant')

    image, gray, white = warped(t1w.data), warped(gray), warped(white)
    mask = ndimage.binary_fill_holes(_largest_part(image > 0.2 * image.max()))
    fluid = np.clip(1.0 - gray - white, 0.0, 1.0)
    # Squaring moves mixed voxels towards their main tissue.
    squares = np.stack([white, gray, fluid]) ** 2
    squares /= np.maximum(squares.sum(0), 1e-6)
    squares *= mask
    inside = np.where(mask, image, 0)
    weight = np.maximum(ndimage.gaussian_filter(mask.astype(np.float32), 4.0 / steps), 1e-3)
    texture = np.where(mask, inside - ndimage.gaussian_filter(inside, 4.0 / steps) / weight, 0)
    flat = squares[0] * T1W.white + squares[1] * T1W.gray + squares[2] * T1W.fluid
    flat = np.where(mask, flat - ndimage.gaussian_filter(flat, 4.0 / steps) / weight, 0)
    # What the tissue classes already explain of the template's detail is taken out of the texture.
    slope = float((texture * flat).sum() / max(float((flat * flat).sum()), 1e-6))
    texture = np.clip(texture - slope * flat, -0.2, 0.2)
    white, gray, fluid = (s.astype(np.float32) for s in squares)
    return Head(
        t1w.lattice, mask, white, gray, fluid, texture.astype(np.float32), np.zeros(shape, np.float32)
    )


def with_lesions(head: Head, radii_mm, *, rng: np.random.Generator, lowest_mm: float = -np.inf) -> Head:
    """The head with soft-edged round lesions of the given radii deep in white matter, well apart.

    Only world positions with z above ``lowest_mm`` are used.

    Raises
    ------
    ValueError
        No room for them.
    """
    steps = head.lattice.voxel_sizes_mm
    depth = ndimage.distance_transform_edt(head.white > 0.6, sampling=steps)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in head.mask.shape], indexing='ij', sparse=False))
    world = head.lattice.to_world(np.moveaxis(index, 0, -1)).astype(np.float32)
    lesion = np.zeros(head.mask.shape, np.float32)
    centres = []
    for radius in radii_mm:
        room = (depth > 0.7 * radius) & (world[..., 2] > lowest_mm)
        for centre in centres:
            room &= np.linalg.norm(world - centre, axis=-1) > 25.0
        candidates = np.argwhere(room)
        if len(candidates) == 0:
            raise ValueError(f'no white matter deep enough for a lesion of {radius} mm')
        centre = world[tuple(candidates[rng.integers(len(candidates))])]
        centres.append(centre)
        distance = np.linalg.norm(world - centre, axis=-1)
        lesion = np.maximum(lesion, np.clip((radius - distance) / 1.0 + 0.5, 0, 1))  # a 1 mm wide edge
    return replace(head, lesion=(lesion * head.mask * (1 - head.fluid)).astype(np.float32))


def smooth_field(shape, rng: np.random.Generator, *, scale_voxels: float) -> np.ndarray:
    """A smooth random field (i, j, k), mean 0, standard deviation 1, correlated over ``scale_voxels``."""
    values = rng.standard_normal([_n_knots(n, scale_voxels) for n in shape]).astype(np.float32)
    for axis, n in enumerate(shape):
        # Separable: the spline basis of one axis at a time.
        k = values.shape[axis]
        where = np.linspace(1, k - 2, n)
        basis = np.stack(
            [ndimage.map_coordinates(unit, [where], order=3, mode='nearest') for unit in np.eye(k)]
        )
        values = np.moveaxis(np.tensordot(basis.astype(np.float32), values, axes=(0, axis)), 0, axis)
    return (values - values.mean()) / values.std()


def _n_knots(n: int, scale_voxels: float) -> int:
    return max(int(np.ceil(n / scale_voxels)) + 3, 4)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    labels, n = ndimage.label(mask)
    if n <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()
