"""Cine in and out: raw data to slices, results to NIfTI, GIF, tables and a model file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bids_gsrecon.atomic import write_atomically
from bids_gsrecon.errors import InputError, about
from bids_gsrecon.imaging.ismrmrd_files import read_raw
from bids_gsrecon.imaging.kspace import CineKSpace, cine_slices
from bids_gsrecon.interfaces.io import save_volume
from bids_gsrecon.recon.cine.types import VERDICTS


def load_cine_kspace(path, **options) -> list[CineKSpace]:
    """Slices of an ISMRMRD file, parallel and equally spaced; options of `cine_slices`.

    Raises
    ------
    InputError
        As `read_raw` and `cine_slices`; slices that are no stack.
    """
    with about(path):
        slices = cine_slices(read_raw(path), **options)
    stack_affine(path, [one.affine for one in slices])
    return slices


def stack_affine(path, affines: list[np.ndarray]) -> np.ndarray:
    """4x4, index (x, y, slice) to world RAS mm, of slices with these affines.

    Raises
    ------
    InputError
        Slices that are not parallel or not equally spaced.
    """
    affine = affines[0].copy()
    if len(affines) == 1:
        return affine
    steps = np.diff([one[:3, 3] for one in affines], axis=0)
    parallel = all(np.allclose(one[:3, :3], affine[:3, :3], atol=1e-3) for one in affines)
    if not parallel or np.abs(steps - steps[0]).max() > 0.1 or not np.linalg.norm(steps[0]) > 0:
        raise InputError(
            f'{path} holds slices that are not parallel and equally spaced: choose one (gsrecon cine --slice).'
        )
    affine[:3, 2] = steps.mean(0)
    return affine


def save_series(path, images: np.ndarray, affine: np.ndarray, frame_ms: float) -> None:
    """Write (slice, T, x, y) as NIfTI (x, y, slice, frame) with the time of a frame in seconds."""
    data = np.ascontiguousarray(images.transpose(2, 3, 0, 1))
    save_volume(path, data, affine, frame_time_s=frame_ms / 1000.0)


def save_gif(path, images: np.ndarray, frame_ms: float, *, min_height: int = 256) -> None:
    """Write magnitudes (slice, T, x, y) as a looping picture, slices side by side, in real time."""
    from PIL import Image

    montage = np.concatenate(list(np.abs(images)), axis=1)
    top = float(np.percentile(montage, 99.7)) or 1.0
    gray = (np.clip(montage / top, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 1)
    zoom = max(1, -(-min_height // gray.shape[1]))
    frames = [Image.fromarray(one).resize((gray.shape[2] * zoom, gray.shape[1] * zoom)) for one in gray]
    # GIF counts in hundredths of a second, and most viewers slow down below two.
    duration = max(20, round((frame_ms or 50.0) / 10) * 10)
    write_atomically(
        path,
        lambda temporary: frames[0].save(
            temporary, format='GIF', save_all=True, append_images=frames[1:], duration=duration, loop=0
        ),
    )


def save_table(path, header, rows) -> None:
    """Write a TSV; floats with six digits."""
    lines = ['\t'.join(header)]
    lines += ['\t'.join(f'{v:.6g}' if isinstance(v, float) else str(v) for v in row) for row in rows]
    write_atomically(path, lambda temporary: Path(temporary).write_text('\n'.join(lines) + '\n'))


def roi_rows(images: np.ndarray, labels: np.ndarray, frame_ms: float):
    """Rows (label, frame, time_ms, mean) of magnitudes (slice, T, x, y) in labels (x, y, slice)."""
    magnitudes = np.abs(images).transpose(1, 2, 3, 0)
    for label in np.unique(labels[labels > 0]):
        where = labels == label
        for frame, one in enumerate(magnitudes):
            yield int(label), frame, float(frame * frame_ms), float(one[where].mean())


def worst_verdict(results) -> tuple[str, list[str]]:
    """Of several slices: the lowest verdict, and all reasons."""
    worst = max((r.verdict for r in results), key=VERDICTS.index)
    many = len(results) > 1
    reasons = [
        f'slice {i}: {reason}' if many else reason for i, r in enumerate(results) for reason in r.reasons
    ]
    return worst, reasons
