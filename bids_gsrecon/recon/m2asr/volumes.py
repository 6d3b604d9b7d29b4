"""A network on a whole volume, and its scores on volumes whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bids_gsrecon.imaging.foreground import bounding_box
from bids_gsrecon.imaging.kspace_crop import crop_kspace, in_plane_axes, replace_measured, zero_filled
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.metrics import data_range, psnr
from bids_gsrecon.recon.m2asr.network import Network
from bids_gsrecon.recon.m2asr.samples import intensity_range, signal
from bids_gsrecon.recon.m2asr.slices import predict
from bids_gsrecon.recon.m2asr.types import Pair

MARGIN = 8  # voxels around the mask that the network sees too
SCORED_SCALES = (1.5, 2.0, 3.0, 4.0)
SCORED_SLICES = 12  # of a subject, spread over its mask


def restore(
    network: Network,
    coarse: np.ndarray,
    reference: np.ndarray,
    slice_axis: int,
    scale: float,
    *,
    mask: np.ndarray | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """A zero-filled volume (X, Y, Z) sharpened slice by slice, in its own units.

    One affine map of the intensities per volume, undone at the end; slices without mask, and what lies more than a
    margin outside the box of the mask, stay as they are.
    """
    low, span = intensity_range(coarse, mask)
    low_reference, span_reference = intensity_range(reference, mask)
    if mask is None:
        mask = np.ones(coarse.shape, bool)
    if not mask.any():
        return coarse.copy()
    start, stop = bounding_box(mask)
    for axis in in_plane_axes(slice_axis):
        start[axis], stop[axis] = max(0, start[axis] - MARGIN), stop[axis] + MARGIN
    box = tuple(slice(a, b) for a, b in zip(start, stop))
    out = coarse.copy()
    by_slice = [np.moveaxis(v[box], slice_axis, 0) for v in (out, coarse, reference, mask)]
    used = by_slice[3].any((1, 2))
    sharp = predict(
        network, (by_slice[1][used] - low) / span, (by_slice[2][used] - low_reference) / span_reference, scale,
        progress=progress,
    )  # fmt: skip
    by_slice[0][used] = sharp * span + low
    return out


def sharpen(
    network: Network,
    coarse: np.ndarray,
    coarse_lattice: Lattice,
    reference: np.ndarray,
    lattice: Lattice,
    slice_axis: int,
    *,
    mask: np.ndarray | None = None,
    consistent: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """A coarse image on the grid of its reference: zero-filled, `restore`, measured frequencies kept; and zero-filled alone.

    ``consistent``: the frequencies that the coarse image holds are put back at the end.
    """
    filled = zero_filled(coarse, coarse_lattice, lattice, slice_axis)
    ratio = coarse_lattice.voxel_sizes_mm / lattice.voxel_sizes_mm
    scale = float(np.prod([ratio[a] for a in in_plane_axes(slice_axis)]) ** 0.5)
    out = restore(network, filled, reference, slice_axis, scale, mask=mask, progress=progress)
    if consistent:
        out = replace_measured(out, coarse, coarse_lattice, lattice, slice_axis)
    return out, filled


def scores(
    network: Network, readers: Sequence[Callable[[], Pair]], scales: Sequence[float] = SCORED_SCALES
) -> dict:
    """PSNR (dB, in the mask, range its 99.5th percentile) by scale: of the network and of its zero-filled input.

    Of some slices of every pair that ``readers`` return, averaged over pairs.
    """
    rows: dict[float, list] = {scale: [] for scale in scales}
    for read in readers:
        pair = read()
        mask = signal(pair)
        axis = pair.slice_axis
        where = np.flatnonzero(mask.any(in_plane_axes(axis)))
        some = where[np.unique(np.linspace(0, len(where) - 1, SCORED_SLICES).round().astype(int))]
        target, reference, inside = (np.take(v, some, axis) for v in (pair.target, pair.reference, mask))
        lattice = Lattice(target.shape, pair.lattice.affine)
        peak = data_range(target, inside)
        for scale in scales:
            coarse, coarse_lattice = crop_kspace(target, lattice, axis, scale)
            out, filled = sharpen(network, coarse, coarse_lattice, reference, lattice, axis, mask=inside)
            rows[scale].append([psnr(v, target, inside, peak=peak) for v in (out, filled)])
    table = {}
    for scale, found in rows.items():
        ours, zero = np.mean(found, 0)
        table[f'{scale:g}'] = {'psnr_db': round(float(ours), 2), 'zero_filled_db': round(float(zero), 2)}
    return table
