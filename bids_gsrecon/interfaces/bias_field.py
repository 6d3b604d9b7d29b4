"""Slow intensity variation of the coils: N4 (Tustison et al., IEEE TMI 2010) on a coarse copy."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.foreground import background_value, bounding_box, foreground_threshold
from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.mutual_information import box_downsampled
from bids_gsrecon.interfaces.ants_bridge import import_ants, to_ants


def estimate_bias_field(
    volume: Volume,
    mask: np.ndarray | None = None,
    *,
    spline_distance_mm: float = 150.0,
    voxel_mm: float = 6.0,
    iterations: tuple[int, ...] = (40, 30, 20),
) -> np.ndarray:
    """Multiplicative bias field, median one inside the mask.

    Parameters
    ----------
    volume
        Magnitude image; values at or below its background are left out.
    mask
        (i, j, k) bool where the field is estimated; the foreground if None. Beyond it the field is held
        within the range found inside (an extrapolated spline is not evidence).
    spline_distance_mm
        Knot distance of the first level; every further level halves it.
    voxel_mm
        The field is estimated on an image averaged down to about this size.

    Returns
    -------
    (i, j, k) float32, positive.

    Raises
    ------
    ValueError
        Mask of another shape, or with less than 100 usable voxels.
    """
    inside = _usable(volume, mask)
    if inside.sum() < 100:
        raise ValueError('too few voxels inside the mask to estimate a bias field: check the mask')
    start, stop = bounding_box(inside)
    box = tuple(slice(i, j) for i, j in zip(start, stop))
    part = volume.lattice.cropped(start, stop)
    coarse = box_downsampled(Volume(np.where(inside[box], volume.data[box], 0), part), voxel_mm)
    share = box_downsampled(Volume(inside[box], part), voxel_mm)
    keep = share.data > 0.3
    if keep.sum() < 20:
        raise ValueError('too few voxels inside the mask to estimate a bias field: check the mask')
    # The mean over the usable part of each block: air inside a block must not darken it.
    data = np.where(keep, coarse.data / np.maximum(share.data, 1e-6), 0.0)
    low = np.percentile(data[keep], 1)
    data = np.where(keep, np.maximum(data, max(low, 1e-6 * data.max())), 0.0)
    ants = import_ants()
    field = ants.n4_bias_field_correction(
        to_ants(Volume(data, coarse.lattice)),
        mask=to_ants(Volume(keep.astype(np.float32), coarse.lattice)),
        shrink_factor=1,
        convergence={'iters': list(iterations), 'tol': 1e-6},
        spline_param=spline_distance_mm,
        return_bias_field=True,
    ).numpy()
    log_field = np.log(np.maximum(field, 1e-6))
    log_field = np.clip(log_field, log_field[keep].min(), log_field[keep].max())
    matrix = coarse.lattice.world_to_voxel @ volume.affine
    full = ndimage.affine_transform(
        log_field,
        matrix[:3, :3],
        matrix[:3, 3],
        volume.data.shape,
        order=1,
        mode='nearest',
        output=np.float32,
    )
    full -= np.median(full[inside])
    return np.exp(full)


def correct_bias_field(volume: Volume, mask: np.ndarray | None = None, *, seed: int = 0, **options) -> Volume:
    """``volume`` divided by its bias field; the median inside the mask keeps its value.

    Parameters, errors: see `estimate_bias_field`. Zero stays zero, negative values keep their sign. ``seed`` is
    taken for symmetry with the other steps: N4 draws nothing at random.
    """
    field = estimate_bias_field(volume, mask, **options)
    inside = _usable(volume, mask)
    corrected = volume.data / field
    before, after = float(np.median(volume.data[inside])), float(np.median(corrected[inside]))
    return Volume(corrected * np.float32(before / after), volume.lattice)


def _usable(volume: Volume, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        return volume.data > max(foreground_threshold(volume.data), 0.0)
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != volume.data.shape:
        raise ValueError(f'the mask has shape {mask.shape}, the image {volume.data.shape}')
    return mask & (volume.data > max(background_value(volume.data), 0.0))
