"""A trained network applied to one image, and what is recorded of it: figures of merit, warnings, a verdict."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_gsrecon.imaging.kspace_crop import crop_kspace, in_plane_axes
from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.metrics import data_range, psnr
from bids_gsrecon.interfaces.m2asr_relation import as_coarse, edge_correlation, unlike_relation
from bids_gsrecon.recon.m2asr import method
from bids_gsrecon.recon.m2asr.types import Applied, Model

VERDICTS = ('trust', 'check', 'do not use')
GAIN_CHECK_DB, GAIN_REFUSE_DB = 0.2, -0.5
COVERAGE_CHECK = 90.0
COARSER = 2.0  # in-plane factor of the trial on the image itself, at most
SMALLEST = 8  # side of a slice of that trial, pixels


@dataclass(frozen=True, eq=False)
class Application:
    """An image with finer pixels.

    Attributes
    ----------
    image, before
        The result, and what the network was given: zero-filled, on the same grid.
    applied
        What the method returned.
    record
        For sidecars: the network, the factors, figures of merit, warnings, verdict and reasons.
    """

    image: Volume
    before: Volume
    applied: Applied
    record: dict


def apply_network(
    model: Model,
    weights,
    guide: Volume,
    target: Volume,
    *,
    slice_axis: int,
    mask: np.ndarray,
    seen: np.ndarray | None = None,
    contrast: str = '',
    reference_contrast: str = '',
    n_threads: int = 0,
    device: str = 'auto',
    progress=None,
) -> Application:
    """Make an image finer in plane, and judge the result.

    Parameters
    ----------
    model, weights
        The network, and its file.
    guide
        The reference on the grid of the result.
    target
        The image: the same slices, larger pixels.
    slice_axis
        Stored axis across slices.
    mask
        (X, Y, Z) bool on that grid: where the network works and figures are taken.
    seen
        The same: where the reference reaches; none: everywhere.
    contrast, reference_contrast
        BIDS suffixes; empty: unknown.

    Raises
    ------
    ValueError
        As `bids_gsrecon.recon.m2asr.apply`.
    """
    if not mask.any():
        mask = np.ones(mask.shape, bool)
    settings = {'slice_axis': slice_axis, 'n_threads': n_threads, 'device': device}
    applied = method.apply(
        model,
        guide.data,
        guide.lattice,
        target.data,
        target.lattice,
        mask=mask,
        contrast=contrast,
        progress=progress,
        **settings,
    )
    before = Volume(applied.zero_filled, guide.lattice)
    warnings = list(applied.warnings)
    theirs = model.card.get('reference_contrast', '')
    if reference_contrast and theirs and reference_contrast != theirs:
        warnings.append(f'The network was trained with a {theirs} as reference, not a {reference_contrast}.')
    reference, inside = as_coarse(guide, target, mask, slice_axis)
    correlation = edge_correlation(reference, target.data, inside, slice_axis)
    warnings += unlike_relation(model.card, correlation)
    bright = float(np.percentile(before.data[mask], 99)) or 1.0
    change = float(np.sqrt(np.mean(np.square(applied.image - before.data, dtype=np.float64)[mask])))
    figures = {
        'in_plane_factor': max(float(factor) for factor in applied.scale),
        'own_gain_db': gain_on_itself(model, applied, reference, target, inside, **settings),
        'edge_correlation': correlation if np.isfinite(correlation) else None,
        'change_percent': 100 * change / bright,
        'reference_coverage_percent': 100.0 if seen is None else 100 * float(seen[mask].mean()),
    }
    figures = {name: round(value, 4) for name, value in figures.items() if value is not None}
    verdict, reasons = judge(warnings, figures)
    record = {
        'Network': network_record(model, weights),
        'InPlaneFactors': [round(float(factor), 5) for factor in applied.scale],
        'FiguresOfMerit': figures,
        'Warnings': warnings,
        'Verdict': verdict,
        'Reasons': reasons,
    }
    return Application(Volume(applied.image, guide.lattice), before, applied, record)


def gain_on_itself(
    model: Model,
    applied: Applied,
    reference: np.ndarray,
    target: Volume,
    inside: np.ndarray,
    *,
    slice_axis: int,
    **settings,
) -> float | None:
    """dB by which the network betters zero-filling where the truth is known: of the image made coarser still.

    The image as acquired takes the place of the truth, its own copy with cropped k-space that of the image, by the
    factor of the result, at most 2; ``reference`` and the mask ``inside`` are on its grid (`as_coarse`). None: the slices
    are too small for it.
    """
    lattice = target.lattice
    factor = float(np.clip(np.prod(applied.scale) ** 0.5, 1.25, COARSER))
    if min(lattice.shape[axis] for axis in in_plane_axes(slice_axis)) < SMALLEST * factor:
        return None
    if not inside.any() or reference.min() == reference.max():
        return None
    coarse, coarse_lattice = crop_kspace(target.data, lattice, slice_axis, factor)
    result = method.apply(
        model, reference, lattice, coarse, coarse_lattice, mask=inside, slice_axis=slice_axis, **settings
    )
    peak = data_range(target.data, inside)
    ours, theirs = (psnr(v, target.data, inside, peak=peak) for v in (result.image, result.zero_filled))
    return float(ours - theirs)


def judge(warnings: list[str], figures: dict[str, float]) -> tuple[str, list[str]]:
    """One of `VERDICTS`, and the reasons for it.

    Nothing is known of the truth: ``trust`` says that the image is like what the network was trained on, and that the
    network does well on its own coarser copy.
    """
    level, reasons = (1 if warnings else 0), [text.rstrip('.') for text in warnings]
    gain, coverage = figures.get('own_gain_db'), figures['reference_coverage_percent']
    if gain is not None and gain < GAIN_CHECK_DB:
        level = 2 if gain < GAIN_REFUSE_DB else max(level, 1)
        reasons.append(f'on a coarser copy of this image the network is {gain:+.1f} dB against zero-filling')
    if coverage < COVERAGE_CHECK:
        level = max(level, 1)
        reasons.append(f'the reference shows {coverage:.0f} % of it only')
    return VERDICTS[level], reasons


def network_record(model: Model, weights) -> dict:
    """Which network it was: its file by content, and what it was trained on."""
    names = ('size', 'n_parameters', 'contrasts', 'reference_contrast', 'scales', 'voxel_mm', 'steps')
    known = {name: model.card[name] for name in names if name in model.card}
    return {
        'Weights': str(weights),
        'WeightsSHA256': hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        **known,
        'n_subjects': len(model.card.get('subjects', [])),
    }
