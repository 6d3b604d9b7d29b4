"""Pictures of a cine reconstruction: a line across the heart over time, and how well the data are described."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from bids_gsrecon.reports.figures import GAP, INK, PAPER, TARGET_WIDTH

LINE_COLOUR = (255, 150, 40)
TITLE_HEIGHT = 22
MOST_SLICES = 12  # rows of the profile; more are spread over the stack
BEATS = 2  # the series is drawn twice, one after the other: the beat goes on


def profile_montage(series: np.ndarray, pixel_mm: Sequence[float], frame_s: float) -> bytes:
    """PNG: a row per slice: mean image with a line, and the line over time (twice the series).

    Parameters
    ----------
    series
        (slice, T, x, y) magnitudes, drawn as in the looping picture: x to the right, y downwards.
    pixel_mm
        Sizes along x and y.
    frame_s
        Time of a frame; 0: unknown.
    """
    from PIL import Image, ImageDraw, ImageFont

    n_slices = len(series)
    shown = np.unique(np.linspace(0, n_slices - 1, min(n_slices, MOST_SLICES)).round().astype(int))
    white = float(np.percentile(series, 99.7)) or 1.0
    width, height = TARGET_WIDTH // 3, 0
    rows = []
    for number in shown:
        one = series[number]
        row = line_of_most_change(one)
        size = width, max(1, round(width * one.shape[2] * pixel_mm[1] / (one.shape[1] * pixel_mm[0])))
        mean = Image.fromarray(_gray(one.mean(0).T, white)).resize(size).convert('RGB')
        y = round((row + 0.5) / one.shape[2] * size[1])
        ImageDraw.Draw(mean).line((0, y, size[0], y), fill=LINE_COLOUR)
        # The line runs upwards in the profile: time to the right.
        over_time = np.tile(one[:, :, row].T[::-1], (1, BEATS))
        profile = Image.fromarray(_gray(over_time, white)).convert('RGB')
        profile = profile.resize((TARGET_WIDTH - width - 3 * GAP, size[1]), Image.Resampling.NEAREST)
        ms = f', {one.shape[0] * frame_s * 1000:.0f} ms' if frame_s else ''
        rows.append((f'slice {number}: mean of all frames; the line over {one.shape[0]} frames{ms}, drawn twice',
                     mean, profile))  # fmt: skip
        height += TITLE_HEIGHT + size[1] + GAP
    canvas = Image.new('RGB', (TARGET_WIDTH, height + GAP), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    top = GAP
    for title, mean, profile in rows:
        draw.text((GAP, top + 3), title, fill=INK, font=font)
        canvas.paste(mean, (GAP, top + TITLE_HEIGHT))
        canvas.paste(profile, (width + 2 * GAP, top + TITLE_HEIGHT))
        top += TITLE_HEIGHT + mean.height + GAP
    buffer = io.BytesIO()
    canvas.save(buffer, format='PNG', optimize=True)
    return buffer.getvalue()


def line_of_most_change(series: np.ndarray) -> int:
    """Index along y of the line (T, x, y) whose pixels change most over time."""
    return int(np.argmax(series.std(0).mean(0)))


def chi2_plot(chi2: Sequence[float]) -> bytes:
    """SVG: chi^2 of every slice, and where it calls for a second look."""
    import matplotlib
    from matplotlib.figure import Figure

    from bids_gsrecon.recon.cine.verdict import CHI2_CHECK, CHI2_REFUSE

    # A fixed salt and no date: the same figures give the same bytes.
    with matplotlib.rc_context({'svg.hashsalt': 'bids_gsrecon', 'svg.fonttype': 'none', 'font.size': 9}):
        figure = Figure(
            figsize=(max(4.0, 1.5 + 0.4 * len(chi2)), 2.4), facecolor='white', layout='constrained'
        )
        panel = figure.subplots()
        panel.bar(range(len(chi2)), np.nan_to_num(chi2, posinf=1e3), color='#2b6cb0', width=0.6)
        panel.axhline(1.0, color='0.6', linewidth=0.8)
        for level, colour in ((CHI2_CHECK, '#d08700'), (CHI2_REFUSE, '#d1495b')):
            panel.axhline(level, color=colour, linewidth=0.8, linestyle='--')
        panel.set_ylim(0, max(2.2, 1.1 * float(np.nan_to_num(max(chi2), posinf=1e3))))
        panel.set_xlabel('slice')
        panel.set_ylabel('chi^2')
        panel.spines[['top', 'right']].set_visible(False)
        panel.xaxis.get_major_locator().set_params(integer=True)
        buffer = io.BytesIO()
        figure.savefig(buffer, format='svg', metadata={'Date': None})
    return buffer.getvalue()


def _gray(values: np.ndarray, white: float) -> np.ndarray:
    return (np.clip(values / white, 0, 1) * 255 + 0.5).astype(np.uint8)
