"""Pictures of a slice-to-volume reconstruction: how slices moved, and slices beside what is predicted of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_gsrecon.reports.figures import GAP, INK, PAPER, TARGET_WIDTH

AXES = (('x (left-right)', '#d1495b'), ('y (back-front)', '#2e8b57'), ('z (foot-head)', '#2b6cb0'))
TITLE_HEIGHT = 22


@dataclass(frozen=True, eq=False)
class StackMotion:
    """The slices of one stack in the order they were acquired.

    Attributes
    ----------
    title
        Name of the stack.
    rank
        (n,) when each was acquired, 0 first.
    rotation_deg, translation_mm
        (n, 3) rotation vector, and shift of the centre of the anatomy, along world RAS.
    excluded
        (n,) bool.
    """

    title: str
    rank: np.ndarray
    rotation_deg: np.ndarray
    translation_mm: np.ndarray
    excluded: np.ndarray


@dataclass(frozen=True, eq=False)
class SlicePair:
    """A slice and what the volume predicts of it (zero where it predicts nothing): (h, w) each, top row first."""

    title: str
    acquired: np.ndarray
    predicted: np.ndarray
    pixel_mm: tuple[float, float]


def motion_plot(stacks: Sequence[StackMotion]) -> bytes:
    """SVG: a row of two panels (degrees, millimetres) per stack, excluded slices crossed."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    # A fixed salt and no date: the same motion gives the same bytes.
    with matplotlib.rc_context({'svg.hashsalt': 'bids_gsrecon', 'svg.fonttype': 'none', 'font.size': 9}):
        figure = Figure(figsize=(11, 0.6 + 1.5 * len(stacks)), facecolor='white', layout='constrained')
        panels = figure.subplots(len(stacks), 2, sharey='col', squeeze=False)
        for row, stack in zip(panels, stacks):
            for panel, values, unit in zip(row, (stack.rotation_deg, stack.translation_mm), ('°', 'mm')):
                _draw_motion(panel, stack, values)
                panel.set_ylabel(unit)
            row[0].set_title(stack.title, loc='left', fontsize=9)
        panels[0, 0].set_title('rotation', loc='right', fontsize=9)
        panels[0, 1].set_title('translation of the centre', loc='right', fontsize=9)
        for panel in panels[-1]:
            panel.set_xlabel('slices in the order of acquisition')
        handles = [Line2D([], [], color=colour, marker='.', label=name) for name, colour in AXES]
        handles.append(Line2D([], [], color='black', marker='x', linestyle='', label='excluded'))
        figure.legend(handles=handles, loc='outside upper center', fontsize=8, ncols=4, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format='svg', metadata={'Date': None})
    return buffer.getvalue()


def _draw_motion(panel, stack: StackMotion, values: np.ndarray) -> None:
    order = np.argsort(stack.rank)
    rank, out = stack.rank[order], stack.excluded[order]
    for axis, (_, colour) in enumerate(AXES):
        panel.plot(rank, values[order, axis], '.-', color=colour, linewidth=0.8, markersize=3)
        panel.plot(rank[out], values[order, axis][out], 'x', color='black', markersize=6)
    panel.axhline(0, color='0.8', linewidth=0.6, zorder=0)
    panel.spines[['top', 'right']].set_visible(False)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.margins(x=0.02)


def slices_montage(pairs: Sequence[SlicePair]) -> bytes:
    """PNG: a row per slice: acquired, predicted, and their difference (red: the acquired is brighter)."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    table = (matplotlib.colormaps['RdBu_r'](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
    width = (TARGET_WIDTH - 4 * GAP) // 3
    rows = []
    for pair in pairs:
        white = max(float(np.percentile(pair.acquired, 99.7)), 1e-9)
        grays = [np.clip(data / white * 255 + 0.5, 0, 255) for data in (pair.acquired, pair.predicted)]
        tiles = [np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2) for gray in grays]
        level = (pair.acquired - pair.predicted) / white + 0.5
        difference = table[np.clip(level * 255, 0, 255).astype(np.uint8)]
        difference[pair.predicted == 0] = PAPER
        tiles.append(difference)
        height = round(
            width * pair.acquired.shape[0] * pair.pixel_mm[0] / (pair.acquired.shape[1] * pair.pixel_mm[1])
        )
        # Tall slices are drawn smaller, not the page longer.
        scale = min(1.0, 0.8 * width / max(height, 1))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rows.append(
            (pair.title, [Image.fromarray(tile).resize(size, Image.Resampling.NEAREST) for tile in tiles])
        )
    heights = [TITLE_HEIGHT + images[0].height + GAP for _, images in rows]
    canvas = Image.new('RGB', (TARGET_WIDTH, sum(heights) + GAP), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    y = GAP
    for (title, images), height in zip(rows, heights):
        draw.text((GAP, y + 3), title, fill=INK, font=font)
        for column, image in enumerate(images):
            x = GAP + column * (width + GAP) + (width - image.width) // 2
            canvas.paste(image, (x, y + TITLE_HEIGHT))
        y += height
    buffer = io.BytesIO()
    canvas.save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()
