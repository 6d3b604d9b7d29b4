"""What is recorded of an image that a trained network made finer: figures of merit, warnings, a verdict."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from bids_gsrecon.imaging.kspace_crop import replace_measured, zero_filled
from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.recon.m2asr.types import Applied, Model

VERDICTS = ('trust', 'check', 'do not use')
# Of the bright tissue: by how much what was measured may differ from what the result says of it.
CONTRADICTION_CHECK, CONTRADICTION_REFUSE = 4.0, 12.0
COVERAGE_CHECK = 90.0


def before_network(target: Volume, lattice, slice_axis: int) -> Volume:
    """What the network was given: the target with its k-space padded with zeros, on the finer grid."""
    return Volume(zero_filled(target.data, target.lattice, lattice, slice_axis), lattice)


def application_record(
    model: Model,
    weights,
    applied: Applied,
    target: Volume,
    before: Volume,
    *,
    slice_axis: int,
    mask: np.ndarray,
    seen: np.ndarray | None = None,
    reference_contrast: str = '',
) -> dict:
    """For sidecars: the network, the factors, figures of merit, warnings, verdict and reasons.

    Parameters
    ----------
    model, weights
        The network, and its file.
    applied, target, before
        The result, the image that it was made of, and that image before the network.
    slice_axis
        Stored axis across slices.
    mask
        (X, Y, Z) bool on the result's grid: where figures are taken.
    seen
        The same: where the reference reaches; none: everywhere.
    reference_contrast
        BIDS suffix of the reference; empty: unknown.
    """
    warnings = list(applied.warnings)
    theirs = model.card.get('reference_contrast', '')
    if reference_contrast and theirs and reference_contrast != theirs:
        warnings.append(f'the network was trained with a {theirs} as reference, not a {reference_contrast}')
    figures = figures_of_merit(applied, target, before, slice_axis=slice_axis, mask=mask, seen=seen)
    verdict, reasons = judge(warnings, figures)
    return {
        'Network': network_record(model, weights),
        'InPlaneFactors': [round(float(factor), 5) for factor in applied.scale],
        'FiguresOfMerit': figures,
        'Warnings': warnings,
        'Verdict': verdict,
        'Reasons': reasons,
    }


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


def figures_of_merit(
    applied: Applied, target: Volume, before: Volume, *, slice_axis: int, mask: np.ndarray, seen=None
) -> dict[str, float]:
    """What can be said of a result without the truth, as shares of the bright tissue or of the mask."""
    inside = mask if mask.any() else np.ones(mask.shape, bool)
    bright = float(np.percentile(before.data[inside], 99)) or 1.0
    measured = measured_difference(applied.image, target, before, slice_axis)
    figures = {
        'in_plane_factor': max(float(factor) for factor in applied.scale),
        'contradiction_percent': 100 * _rms(measured[inside]) / bright,
        'change_percent': 100 * _rms((applied.image - before.data)[inside]) / bright,
        'reference_coverage_percent': 100.0 if seen is None else 100 * float(seen[inside].mean()),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def measured_difference(image: np.ndarray, target: Volume, before: Volume, slice_axis: int) -> np.ndarray:
    """(X, Y, Z) what was measured minus what the result says of it: within the frequencies that were measured."""
    args = (target.data, target.lattice, before.lattice, slice_axis)
    return (replace_measured(image, *args) - image).astype(np.float32)


def judge(warnings: list[str], figures: dict[str, float]) -> tuple[str, list[str]]:
    """One of `VERDICTS`, and the reasons for it.

    Nothing is known of the truth: ``trust`` says that the input is like what the network was trained on, and that the
    result does not contradict what was measured.
    """
    level, reasons = (1 if warnings else 0), list(warnings)
    contradiction, coverage = figures['contradiction_percent'], figures['reference_coverage_percent']
    if contradiction > CONTRADICTION_CHECK:
        level = 2 if contradiction > CONTRADICTION_REFUSE else max(level, 1)
        reasons.append(
            f'the result contradicts what was measured by {contradiction:.1f} % of the bright tissue'
        )
    if coverage < COVERAGE_CHECK:
        level = max(level, 1)
        reasons.append(
            f'the reference shows {coverage:.0f} % of the image only; elsewhere pixels are interpolated'
        )
    return VERDICTS[level], reasons


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
