"""Image quality against a truth, under named conventions.

The same image scores several dB apart under different conventions: every figure carries the name of its own.

``masked``
    Primary. PSNR over the mask, range = 99.5th percentile (or maximum) of the truth in the mask; SSIM in 3D
    with a Gaussian window of sigma 1.5 voxels, averaged over the mask; NRMSE = rms error / (max - min of the
    truth in the mask); NCC = Pearson correlation in the mask.
``volume``
    The whole grid, both images mapped by the affine intensity map that takes the truth to [0, 1]; range 1.
``slice``
    2D measures (SSIM window 11 x 11, sigma 1.5) of every slice that holds any mask, averaged over slices;
    range of the whole truth.

The prediction is resampled to the truth's grid by its header and never rescaled to the truth's intensities.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice, Volume

CONVENTIONS = ('masked', 'volume', 'slice')
RANGES = ('p99.5', 'max')
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # int(3.5 * sigma + 0.5): the 11-voxel window of Wang et al. 2004

Convention = Literal['masked', 'volume', 'slice']
Range = Literal['p99.5', 'max']


def resample_to(volume: Volume, lattice: Lattice, *, order: int = 3, world_motion=None) -> np.ndarray:
    """Values (i, j, k) float32 of ``volume`` at the voxel centres of ``lattice``, by spline interpolation.

    Parameters
    ----------
    volume
        Image to sample; beyond its edges the nearest value is used.
    lattice
        Grid to sample on.
    order
        Spline order: 0 nearest, 1 linear, 3 cubic.
    world_motion
        4x4 world-to-world matrix from ``lattice``'s world to that of ``volume``; default identity.
    """
    if world_motion is None and volume.lattice.same_as(lattice, 1e-4):
        return volume.data.copy()
    motion = np.eye(4) if world_motion is None else np.asarray(world_motion, dtype=np.float64)
    matrix = volume.lattice.world_to_voxel @ motion @ lattice.affine
    return ndimage.affine_transform(
        volume.data, matrix[:3, :3], matrix[:3, 3], lattice.shape, order=order, mode='nearest'
    )


def data_range(truth: np.ndarray, mask: np.ndarray, kind: Range = 'p99.5') -> float:
    """The peak value that PSNR and SSIM refer to, from ``truth`` inside ``mask``."""
    inside = truth[mask]
    return float(inside.max() if kind == 'max' else np.percentile(inside, 99.5))


def psnr(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray, *, peak: float) -> float:
    """Peak signal-to-noise ratio in ``mask``, dB; infinite for equal images."""
    error = np.mean((prediction[mask] - truth[mask]) ** 2, dtype=np.float64)
    with np.errstate(divide='ignore'):
        return float(10.0 * np.log10(peak**2 / error)) if error > 0 else float('inf')


def ssim(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray, *, peak: float) -> float:
    """Structural similarity (2D or 3D, Gaussian window), averaged over ``mask``.

    Only the box of the mask and one window radius around it are filtered: the values inside the mask are
    those of the whole grid, at a fraction of the memory.
    """
    from skimage.metrics import structural_similarity

    box = _box(mask, margin=SSIM_RADIUS + 1)
    local = structural_similarity(
        truth[box],
        prediction[box],
        data_range=peak,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
        full=True,
    )[1]
    return float(local[mask[box]].mean(dtype=np.float64))


def nrmse(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Root-mean-square error in ``mask`` over the truth's span (max - min) there."""
    span = float(np.ptp(truth[mask]))
    rms = float(np.sqrt(np.mean((prediction[mask] - truth[mask]) ** 2, dtype=np.float64)))
    return rms / span if span > 0 else float('nan')


def ncc(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Pearson correlation in ``mask``; nan where either image is constant."""
    x = prediction[mask].astype(np.float64)
    t = truth[mask].astype(np.float64)
    x -= x.mean()
    t -= t.mean()
    norm = np.sqrt((x @ x) * (t @ t))
    return float(x @ t / norm) if norm > 0 else float('nan')


def evaluate(
    prediction: Volume,
    truth: Volume,
    mask: np.ndarray | None = None,
    *,
    convention: Convention = 'masked',
    range_kind: Range = 'p99.5',
    slice_axis: int = 2,
) -> dict[str, float | int | str]:
    """Score ``prediction`` against ``truth`` under one convention (see the module's text).

    Parameters
    ----------
    prediction
        Any grid; it is resampled (cubic) to that of ``truth``.
    truth
        Reference image.
    mask
        Boolean (i, j, k) on the truth's grid; default ``truth > 0``. ``volume`` ignores it.
    convention
        ``masked``, ``volume`` or ``slice``.
    range_kind
        ``p99.5`` or ``max`` (``volume`` always has range 1).
    slice_axis
        Stored axis across which slices are cut (``slice`` only).

    Returns
    -------
    dict
        ``psnr`` (dB), ``ssim``, ``nrmse``, ``ncc``, ``data_range``, ``n_voxels``, ``convention``, ``range``.

    Raises
    ------
    ValueError
        Unknown convention or range; empty mask; mask on another grid.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f'unknown convention {convention!r}: one of {", ".join(CONVENTIONS)}')
    if range_kind not in RANGES:
        raise ValueError(f'unknown range {range_kind!r}: one of {", ".join(RANGES)}')
    t = truth.data
    x = resample_to(prediction, truth.lattice)
    mask = t > 0 if mask is None else np.asarray(mask) > 0
    if mask.shape != t.shape:
        raise ValueError(f'the mask {mask.shape} is not on the grid of the truth {t.shape}')
    if convention == 'volume':
        low, span = float(t.min()), float(np.ptp(t))
        if span == 0:
            raise ValueError('the truth is constant')
        t, x, mask, peak = (t - low) / span, (x - low) / span, np.ones(t.shape, bool), 1.0
        range_kind = 'unit'
    elif not mask.any():
        raise ValueError('the mask is empty')
    else:
        peak = data_range(t, mask, range_kind)
    if not peak > 0:
        raise ValueError('the truth has no positive values in the mask: no data range')
    scores = {
        'psnr': psnr(x, t, mask, peak=peak),
        'ssim': None,
        'nrmse': nrmse(x, t, mask),
        'ncc': ncc(x, t, mask),
    }
    if convention == 'slice':
        scores['psnr'], scores['ssim'] = _by_slice(x, t, mask, peak, slice_axis)
    else:
        scores['ssim'] = ssim(x, t, mask, peak=peak)
    return {
        **scores,
        'data_range': peak,
        'n_voxels': int(mask.sum()),
        'convention': convention,
        'range': range_kind,
    }


def evaluate_series(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Score a 2D series (T, x, y), on magnitudes: convention ``series``.

    SSIM (7 x 7 window) and PSNR (dB) of every frame, averaged; range = maximum of the truth over the series. One
    gain (least squares), returned with the scores, is given to the prediction.
    """
    from skimage.metrics import structural_similarity

    x, t = np.abs(prediction).astype(np.float64), np.abs(truth).astype(np.float64)
    if x.shape != t.shape:
        raise ValueError(f'the series {x.shape} and the truth {t.shape} differ in shape')
    gain = float((x * t).sum() / max((x * x).sum(), 1e-30))
    x, peak = gain * x, float(t.max())
    mse = np.maximum(((x - t) ** 2).mean((1, 2)), 1e-20 * peak**2)
    window = min(7, *(n - 1 + n % 2 for n in t.shape[1:]))
    ssims = [structural_similarity(b, a, data_range=peak, win_size=window) for a, b in zip(x, t)]
    psnrs = 10.0 * np.log10(peak**2 / mse)
    return {'psnr': float(psnrs.mean()), 'ssim': float(np.mean(ssims)), 'gain': gain}


def _by_slice(x: np.ndarray, t: np.ndarray, mask: np.ndarray, peak: float, axis: int) -> tuple[float, float]:
    """Mean over slices of 2D PSNR (whole slice) and 2D SSIM (whole slice)."""
    x, t, mask = (np.moveaxis(a, axis, 0) for a in (x, t, mask))
    rows = []
    for x2, t2, m2 in zip(x, t, mask):
        if m2.any() and min(t2.shape) > 2 * SSIM_RADIUS:
            everywhere = np.ones(t2.shape, bool)
            # An exactly reproduced slice would make the mean infinite: 100 dB is beyond float32 images.
            rows.append(
                (min(psnr(x2, t2, everywhere, peak=peak), 100.0), ssim(x2, t2, everywhere, peak=peak))
            )
    if not rows:
        raise ValueError('no slice holds any mask and is at least 11 voxels wide')
    return tuple(float(v) for v in np.mean(rows, axis=0))


def _box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Slices of the bounding box of ``mask``, grown by ``margin`` and clipped to the grid.

    At least one window wide along every axis, where the grid allows it.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        where = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(int(where[0]) - margin, 0), min(int(where[-1]) + 1 + margin, mask.shape[axis])))
    return tuple(box)
