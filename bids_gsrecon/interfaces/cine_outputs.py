"""What a cine reconstruction leaves behind: series, phase, model, motion maps, tables, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.kspace import CineKSpace
from bids_gsrecon.interfaces.cine_io import roi_rows, save_gif, save_series, save_table, worst_verdict
from bids_gsrecon.recon.cine.types import CineOptions, CineResult

MOTION_MAPS = ('motion', 'determinant', 'eigenvalue-ratio')
ROI_COLUMNS = ('label', 'frame', 'time_ms', 'mean')
RETRO_COLUMNS = ('slice', 'R', 'ssim', 'psnr', 'chi2', 'verdict')
MAX_FULL_ACCELERATION = 1.2  # up to here data are fully sampled


def load_labels(path, slices: Sequence[CineKSpace], affine: np.ndarray) -> np.ndarray:
    """Labels (x, y, slice) of regions drawn on the grid of the series.

    Raises
    ------
    InputError
        An image that cannot be read, or one on another grid.
    """
    from bids_gsrecon.imaging.lattice import Lattice
    from bids_gsrecon.interfaces.io import load_volume

    regions = load_volume(path)
    grid = Lattice((*slices[0].hybrid.shape[2:], len(slices)), affine)
    if not regions.lattice.same_as(grid, 0.1):
        raise InputError(f'{path} is not on the grid of the series: draw the regions on its output.')
    return np.rint(regions.data).astype(int)


def retro_rows(slices, accelerations, options: CineOptions, *, seed: int, progress=None) -> list[tuple]:
    """Rows of `RETRO_COLUMNS`: undersampled reconstructions against the fully sampled images."""
    from bids_gsrecon.imaging.cine_sampling import variable_density_lines
    from bids_gsrecon.imaging.kspace import retrospective
    from bids_gsrecon.imaging.metrics import evaluate_series
    from bids_gsrecon.recon.cine import method
    from bids_gsrecon.recon.cine.reference import coil_combined

    rows = []
    for acceleration in accelerations:
        for number, one in enumerate(slices):
            fewer = retrospective(one, acceleration, variable_density_lines)
            result = method.reconstruct_cine(fewer, options, seed=seed, progress=progress)
            full, support = coil_combined(one)
            scores = evaluate_series(result.images * support, full * support)
            figures = scores['ssim'], scores['psnr'], float(result.chi2)
            rows.append((number, float(acceleration), *figures, result.verdict))
    return rows


def write_series(
    paths: dict[str, Path], slices: Sequence[CineKSpace], results: Sequence[CineResult], affine: np.ndarray
) -> None:
    """Files ``magnitude``, ``phase``, ``gif``, ``model``, and `MOTION_MAPS` where ``paths`` has them."""
    from bids_gsrecon.fields.dynamic import save_cine

    images = np.stack([result.images for result in results])
    frame_ms = slices[0].frame_ms
    save_series(paths['magnitude'], np.abs(images), affine, frame_ms)
    save_series(paths['phase'], np.angle(images), affine, frame_ms)
    save_gif(paths['gif'], images, frame_ms)
    metadata = {'affine': affine.tolist(), 'shape': list(images.shape[2:]), 'frame_ms': frame_ms}
    save_cine(paths['model'], [result.field for result in results], metadata)
    if set(MOTION_MAPS) <= set(paths):
        _write_motion(paths, slices, results, affine)


def _write_motion(paths, slices, results, affine) -> None:
    from bids_gsrecon.interfaces.io import save_volume
    from bids_gsrecon.recon.cine.motion import motion_maps

    shape, frame_ms = slices[0].hybrid.shape[2:], slices[0].frame_ms
    sizes = np.array(slices[0].voxel_sizes_mm[:2], np.float32)
    maps = [motion_maps(result.field, shape) for result in results]
    moved = np.stack([one.displacement * sizes for one in maps])  # (slice, T, x, y, 2)
    moved = moved.transpose(2, 3, 0, 1, 4).reshape(*shape, len(maps), -1)
    save_volume(paths['motion'], moved, affine)
    save_series(paths['determinant'], np.stack([one.determinant for one in maps]), affine, frame_ms)
    save_series(paths['eigenvalue-ratio'], np.stack([one.eigenvalue_ratio for one in maps]), affine, frame_ms)


def write_roi(path, results: Sequence[CineResult], labels: np.ndarray, frame_ms: float) -> None:
    """The mean signal of every region over time."""
    images = np.stack([result.images for result in results])
    save_table(path, ROI_COLUMNS, roi_rows(images, labels, frame_ms))


def record(slices: Sequence[CineKSpace], results: Sequence[CineResult], retro=()) -> dict:
    """How the data were understood and what came of them, for sidecars."""
    verdict, reasons = worst_verdict(results)
    first = slices[0]
    content = {
        'Verdict': verdict,
        'Reasons': reasons,
        'FrameTime': first.frame_ms / 1000.0,
        'VoxelSizes': [round(float(v), 6) for v in first.voxel_sizes_mm],
        'PhaseEncodingDirection': 'j',
        'Acceleration': round(first.acceleration, 3),
        'NumberOfCoils': first.to_file.shape[0],
        'NumberOfVirtualCoils': first.hybrid.shape[1],
        'NoiseSource': first.noise.source,
        'NoiseStandardDeviation': float(first.noise.scale),
        'Slices': [{k: float(v) for k, v in r.figures.items()} | {'verdict': r.verdict} for r in results],
    }
    if retro:
        names = ('Slice', 'R', 'SSIM', 'PSNR', 'Chi2', 'Verdict')
        content['RetrospectiveUndersampling'] = [dict(zip(names, row)) for row in retro]
    return content
