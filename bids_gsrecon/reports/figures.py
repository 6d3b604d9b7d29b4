"""Pictures of images for the report: arrays and affines in, PNG bytes out.

Every picture is a montage of three planes (columns) at a few positions (rows), cut along the axes of one
*view*. Pictures of one view agree pixel by pixel whatever image they show, so they can be flipped over each
other. The left of the head is on the left; letters name the sides.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice, Volume

TARGET_WIDTH = 1150  # pixels of a montage, about
GAP = 6
INK, PAPER = (235, 235, 235), (0, 0, 0)
MASK_COLOUR, EDGE_COLOUR = (255, 150, 40), (60, 220, 255)
PLANES = ('sagittal', 'coronal', 'axial')
# Horizontal and vertical display axes of each plane, and the letters at its left and right edge.
_AXES = {'sagittal': (1, 2), 'coronal': (0, 2), 'axial': (0, 1)}
_LETTERS = {'sagittal': ('P', 'A'), 'coronal': ('L', 'R'), 'axial': ('L', 'R')}


@dataclass(frozen=True, eq=False)
class View:
    """Where a montage cuts: an isotropic lattice, axes nearest to R, A, S, and an index triple per row."""

    lattice: Lattice
    rows: tuple[tuple[int, int, int], ...]

    @property
    def scale(self) -> int:
        """Screen pixels per voxel: a whole number, so that no voxel is drawn wider than another."""
        nx, ny, _ = self.lattice.shape
        return max(1, round((TARGET_WIDTH - 4 * GAP) / (ny + 2 * nx)))

    def world_points(self, plane: str, row: int) -> np.ndarray:
        """World mm (vertical, horizontal, 3) of the pixels of one tile, top row first."""
        horizontal, vertical = _AXES[plane]
        fixed = PLANES.index(plane)
        index = np.empty((self.lattice.shape[vertical], self.lattice.shape[horizontal], 3))
        index[..., fixed] = self.rows[row][fixed]
        index[..., horizontal] = np.arange(self.lattice.shape[horizontal])[None, :]
        index[..., vertical] = np.arange(self.lattice.shape[vertical])[::-1, None]
        return self.lattice.to_world(index)


def make_view(lattice: Lattice, mask: np.ndarray | None = None, *, n_rows: int = 2) -> View:
    """A view along the axes of ``lattice``, cropped to the mask (with a margin) where there is one.

    Parameters
    ----------
    lattice
        Grid of the image that must be shown without interpolation.
    mask
        Boolean (i, j, k) on it; rows are spread over the middle of the mask.
    n_rows
        Number of positions.
    """
    from nibabel.orientations import io_orientation

    orientation = io_orientation(lattice.affine)
    order = np.empty(3, int)
    order[orientation[:, 0].astype(int)] = np.arange(3)  # stored axis that runs along R, A, S
    flip = orientation[order, 1]
    sizes = lattice.voxel_sizes_mm
    mask = np.ones(lattice.shape, bool) if mask is None or not mask.any() else mask
    where = np.argwhere(mask)
    low, high = where.min(0), where.max(0)
    margin = np.ceil(3.0 / sizes).astype(int) if mask.sum() < mask.size else np.zeros(3, int)
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, np.array(lattice.shape) - 1)
    step = sizes.min()
    # Where voxels are anisotropic, the display steps are the finest voxel size, centred in the same box.
    counts = np.maximum(np.round((high - low + 1) * sizes / step), 1).astype(int)
    columns = lattice.affine[:3, :3] / sizes * step
    affine = np.eye(4)
    affine[:3, :3] = columns[:, order] * flip
    shape = counts[order]
    middle = lattice.to_world((low + high) / 2)
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    view = Lattice(tuple(int(n) for n in shape), affine)
    fractions = np.linspace(0.4, 0.62, n_rows) if n_rows > 1 else [0.5]
    rows = []
    for fraction in fractions:
        index = [_quantile_index(mask, axis, fraction, flip[order == axis][0] < 0) for axis in range(3)]
        rows.append(
            tuple(int(v) for v in np.clip(np.round(view.to_index(lattice.to_world(index))), 0, shape - 1))
        )
    return View(view, tuple(rows))


def _quantile_index(mask: np.ndarray, axis: int, fraction: float, backwards: bool) -> int:
    """Index along ``axis`` below which (from its end, if backwards) lies ``fraction`` of the mask."""
    counts = mask.sum(axis=tuple(a for a in range(3) if a != axis))
    counts = counts[::-1] if backwards else counts
    index = int(np.searchsorted(np.cumsum(counts), fraction * counts.sum()))
    return len(counts) - 1 - index if backwards else index


def sample_tile(volume: Volume, points_mm: np.ndarray, *, order: int = 0) -> np.ndarray:
    """Values of ``volume`` at world points (..., 3); zero outside its box; order 0 nearest, 1 linear."""
    index = np.moveaxis(volume.lattice.to_index(points_mm), -1, 0)
    size = np.array(volume.data.shape)[:, None, None]
    inside = ((index >= -0.5 - 1e-6) & (index <= size - 0.5 + 1e-6)).all(0)
    if order == 0:
        # A point midway between two voxels must fall to the same one in every picture.
        index = np.round(index - 1e-6)
    values = ndimage.map_coordinates(volume.data, index, order=order, mode='nearest')
    return np.where(inside, values, 0).astype(np.float32)


def sample_mask(mask: Volume, lattice: Lattice) -> np.ndarray:
    """A mask (> 0.5), boolean (i, j, k), on another grid (nearest)."""
    if mask.lattice.same_as(lattice, 1e-2):
        return mask.data > 0.5
    matrix = mask.lattice.world_to_voxel @ lattice.affine
    return ndimage.affine_transform(mask.data, matrix[:3, :3], matrix[:3, 3], lattice.shape, order=0) > 0.5


def intensity_window(volume: Volume, mask: np.ndarray | None = None) -> tuple[float, float]:
    """Black and white levels: 0 (or the 0.5th percentile, if below) to the 99.7th percentile in the mask."""
    values = volume.data[mask] if mask is not None and mask.any() else volume.data[volume.data != 0]
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, (0.5, 99.7))
    low = min(float(low), 0.0)
    return low, float(high) if high > low else low + 1.0


def gray_montage(
    volume: Volume, view: View, *, window: tuple[float, float], order: int = 0, mask: Volume | None = None
) -> bytes:
    """The image in gray; with ``mask`` (a `Volume` of 0 and 1) its contour on top."""
    tiles = []
    for row in range(len(view.rows)):
        for plane in PLANES:
            points = view.world_points(plane, row)
            tile = _gray(sample_tile(volume, points, order=order), window, view.scale)
            if mask is not None:
                inside = _enlarge(sample_tile(mask, points) > 0.5, view.scale)
                tile = _painted(tile, inside & ~ndimage.binary_erosion(inside, iterations=1), MASK_COLOUR)
            tiles.append(tile)
    return _assemble(tiles, view)


def registration_montage(
    target: Volume, reference: Volume, view: View, *, window: tuple[float, float], mask: Volume | None = None
) -> bytes:
    """The target (linear) and the edges of the reference: they must follow its tissue borders."""
    from skimage.feature import canny

    scale = (
        max(float(np.percentile(reference.data[reference.data > 0], 99)), 1e-9)
        if reference.data.max() > 0
        else 1
    )
    tiles = []
    for row in range(len(view.rows)):
        for plane in PLANES:
            points = view.world_points(plane, row)
            tile = _gray(sample_tile(target, points, order=1), window, view.scale)
            edges = canny(sample_tile(reference, points, order=1) / scale, sigma=1.2, low_threshold=0.06,
                          high_threshold=0.14)  # fmt: skip
            if mask is not None:
                edges &= sample_tile(mask, points) > 0.5
            tiles.append(_painted(tile, _thin(edges, view.scale), EDGE_COLOUR))
    return _assemble(tiles, view)


def map_montage(
    volume: Volume,
    view: View,
    *,
    limits: tuple[float, float],
    colours: str = 'magma',
    label: str = '',
    ticks: list[tuple[float, str]] | None = None,
    mask: Volume | None = None,
) -> bytes:
    """A quantitative map with its colour bar; black outside ``mask``."""
    import matplotlib

    table = (matplotlib.colormaps[colours](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
    low, high = limits
    tiles = []
    for row in range(len(view.rows)):
        for plane in PLANES:
            points = view.world_points(plane, row)
            values = sample_tile(volume, points)
            level = np.clip((values - low) / (high - low) * 255, 0, 255).astype(np.uint8)
            tile = table[level]
            if mask is not None:
                tile[sample_tile(mask, points) < 0.5] = PAPER
            tiles.append(_enlarge(tile, view.scale))
    if ticks is None:
        ticks = [(v, f'{v:.3g}') for v in np.linspace(low, high, 5)]
    positions = [((v - low) / (high - low), text) for v, text in ticks]
    return _assemble(tiles, view, bar=(table, positions, label))


def uncertainty_montage(
    uncertainty: Volume, view: View, mask: Volume, *, label: str = 'expected error'
) -> bytes:
    """The uncertainty map, from 0 to its 99th percentile in the mask."""
    inside = uncertainty.data[mask.data > 0.5]
    high = float(np.percentile(inside, 99)) if inside.size else 1.0
    return map_montage(uncertainty, view, limits=(0.0, max(high, 1e-9)), label=label, mask=mask)


def residual_montage(residual: Volume, *, noise_sigma: float | None = None, n_rows: int = 2) -> bytes:
    """Acquired minus predicted slices on the target's own grid, in units of the noise.

    Without ``noise_sigma`` the robust spread (1.4826 MAD) of the residual itself is the unit: structure, not
    size, is then what to look for.
    """
    known = noise_sigma is not None and noise_sigma > 0
    sigma = float(noise_sigma) if known else robust_sigma(residual.data)
    view = make_view(residual.lattice, residual.data != 0, n_rows=n_rows)
    ticks = [(n * sigma, f'{n:+d} SD' if n else '0') for n in (-4, -2, 0, 2, 4)]
    label = f'SD {sigma:.3g} ' + ('(noise)' if known else '(own)')
    seen = Volume(residual.data != 0, residual.lattice)
    return map_montage(
        residual, view, limits=(-4 * sigma, 4 * sigma), colours='RdBu_r', label=label, ticks=ticks, mask=seen
    )


def robust_sigma(values: np.ndarray) -> float:
    """1.4826 times the median absolute value of the non-zero ``values``; 1 where there are none."""
    values = values[values != 0]
    sigma = 1.4826 * float(np.median(np.abs(values))) if values.size else 0.0
    return sigma if sigma > 0 else 1.0


def _gray(values: np.ndarray, window: tuple[float, float], scale: int) -> np.ndarray:
    low, high = window
    level = np.clip((values - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)
    return _enlarge(level, scale)


def _enlarge(tile: np.ndarray, scale: int) -> np.ndarray:
    return tile.repeat(scale, axis=0).repeat(scale, axis=1)


def _thin(edges: np.ndarray, scale: int) -> np.ndarray:
    """One-voxel edges drawn one to two screen pixels wide in the middle of their voxels."""
    from skimage.morphology import skeletonize

    return skeletonize(_enlarge(edges, scale)) if scale > 1 else edges


def _painted(tile: np.ndarray, where: np.ndarray, colour) -> np.ndarray:
    rgb = np.repeat(tile[..., None], 3, axis=2) if tile.ndim == 2 else tile.copy()
    rgb[where] = colour
    return rgb


def _assemble(tiles: list[np.ndarray], view: View, bar=None) -> bytes:
    """Lay tiles out in rows of three, write the letters, add the colour bar; PNG bytes."""
    from PIL import Image, ImageDraw, ImageFont

    coloured = bar is not None or any(t.ndim == 3 for t in tiles)
    n_rows = len(tiles) // 3
    widths = [max(tiles[3 * r + c].shape[1] for r in range(n_rows)) for c in range(3)]
    heights = [max(t.shape[0] for t in tiles[3 * r : 3 * r + 3]) for r in range(n_rows)]
    bar_width = 130 if bar is not None else 0
    canvas = Image.new(
        'RGB' if coloured else 'L',
        (sum(widths) + 4 * GAP + bar_width, sum(heights) + (n_rows + 1) * GAP),
        PAPER if coloured else 0,
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    ink = INK if coloured else INK[0]
    y = GAP
    for r in range(n_rows):
        x = GAP
        for c, plane in enumerate(PLANES):
            tile = tiles[3 * r + c]
            if coloured and tile.ndim == 2:
                tile = np.repeat(tile[..., None], 3, axis=2)
            top = y + (heights[r] - tile.shape[0]) // 2
            canvas.paste(
                Image.fromarray(np.ascontiguousarray(tile)), (x + (widths[c] - tile.shape[1]) // 2, top)
            )
            left, right = _LETTERS[plane]
            draw.text((x + 3, y + heights[r] // 2), left, fill=ink, font=font, anchor='lm')
            draw.text((x + widths[c] - 3, y + heights[r] // 2), right, fill=ink, font=font, anchor='rm')
            x += widths[c] + GAP
        y += heights[r] + GAP
    if bar is not None:
        _draw_bar(canvas, draw, font, bar, left=canvas.width - bar_width + 10)
    buffer = io.BytesIO()
    canvas.save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()


def _draw_bar(canvas, draw, font, bar, *, left: int) -> None:
    from PIL import Image

    table, ticks, label = bar
    top, height, width = 40, min(canvas.height - 60, 320), 22
    column = table[np.round(np.linspace(255, 0, height)).astype(int)][:, None, :]
    canvas.paste(Image.fromarray(np.repeat(column, width, axis=1)), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=INK)
    for fraction, text in ticks:
        y = top + round((1 - fraction) * (height - 1))
        draw.line((left + width, y, left + width + 5, y), fill=INK)
        draw.text((left + width + 9, y), text, fill=INK, font=font, anchor='lm')
    draw.text((left, 12), label, fill=INK, font=font)
