"""Simulated acquisitions with known truth: thick slices and coarse voxels."""

from __future__ import annotations

from typing import Literal

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.profile import SliceProfile


def thick_slices(
    volume: Volume,
    *,
    axis: int,
    factor: float | None = None,
    thickness_mm: float | None = None,
    gap_mm: float = 0.0,
    profile: Literal['box', 'gaussian'] = 'box',
    noise: float = 0.0,
    seed: int = 0,
) -> Volume:
    """Average ``volume`` over thick slices along one stored axis.

    The first slab begins at the outer face of the first voxel; slabs that do not fit are dropped. The header
    is that of a scanner: the origin is the **centre** of the first slab, the step along ``axis`` is thickness
    plus gap.

    Parameters
    ----------
    volume
        The truth.
    axis
        Stored axis (0, 1, 2) to cut across.
    factor
        Slice thickness in voxels of ``volume``; give this or ``thickness_mm``.
    thickness_mm
        Slice thickness, mm.
    gap_mm
        Unseen distance between slabs, mm; negative: overlapping slices.
    profile
        ``box``: uniform slab; ``gaussian``: FWHM = thickness (cut at 3 sigma, edges extended).
    noise
        Standard deviation of Rician noise (independent Gaussian noise in the real and imaginary part), as a
        fraction of the 99th percentile of the positive slice values.
    seed
        Seed of the noise.

    Raises
    ------
    ValueError
        A thickness below one voxel; no slab fits; a gap that leaves no step; bad options.
    """
    if axis not in (0, 1, 2):
        raise ValueError(f'slice axis must be 0, 1 or 2, not {axis}')
    if profile not in ('box', 'gaussian'):
        raise ValueError(f'unknown slice profile {profile!r}: box or gaussian')
    if (factor is None) == (thickness_mm is None):
        raise ValueError('give either the factor or the thickness in mm')
    voxel = float(volume.lattice.voxel_sizes_mm[axis])
    thickness = float(thickness_mm) if factor is None else float(factor) * voxel
    spacing = thickness + float(gap_mm)
    if thickness < voxel * (1 - 1e-6):
        raise ValueError(f'slices of {thickness:g} mm are thinner than the voxels ({voxel:g} mm)')
    if not spacing > 0:
        raise ValueError(f'thickness {thickness:g} mm and gap {gap_mm:g} mm leave no step between slices')
    if not noise >= 0:
        raise ValueError('noise must not be negative')
    n_voxels = volume.data.shape[axis]
    n_slices = int(np.floor((n_voxels * voxel - thickness) / spacing + 1e-6)) + 1
    if n_slices < 1:
        raise ValueError(f'no slice of {thickness:g} mm fits in {n_voxels * voxel:g} mm')
    centres = 0.5 * (thickness - voxel) + spacing * np.arange(n_slices)
    weights = _cell_masses(SliceProfile(profile, thickness, axis), centres, n_voxels, voxel)
    data = np.moveaxis(np.tensordot(weights.astype(np.float32), volume.data, axes=(1, axis)), 0, axis)
    if noise:
        data = _rician(data, noise, seed)
    affine = volume.affine.copy()
    direction = affine[:3, axis] / voxel
    affine[:3, 3] += direction * centres[0]
    affine[:3, axis] = direction * spacing
    return Volume(np.ascontiguousarray(data, dtype=np.float32), Lattice(data.shape, affine))


def coarse_voxels(
    volume: Volume,
    factors,
    how: Literal['cell', 'trilinear', 'kspace'] = 'cell',
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> Volume:
    """Sample ``volume`` on a coarser grid, with the header of a scanner that did so.

    ``cell``
        The mean over coarse voxels; the first begins at the outer faces of the grid, and those that do not
        fit are dropped.
    ``trilinear``
        Linear interpolation at the centres of the same coarse voxels, as
        ``torch.nn.functional.interpolate(mode='trilinear', align_corners=False)`` does: x2 is the mean of
        two voxels per axis, x3 every third voxel, x4 the mean of the central two of four.
    ``kspace``
        Magnitude of the inverse Fourier transform of the central block of k-space. The field of view
        stays, so that the factor along an axis of n voxels becomes n / round(n / factor), and the first
        coarse voxel is centred on the first voxel of ``volume`` (a property of the discrete transform).

    Parameters
    ----------
    volume
        The truth.
    factors
        How many times larger the voxels become: one number or one per stored axis, at least 1.
    how
        ``cell``, ``trilinear`` or ``kspace``.
    noise
        Standard deviation of Rician noise (independent Gaussian noise in the real and imaginary part), as a
        fraction of the 99th percentile of the positive values.
    seed
        Seed of the noise.

    Raises
    ------
    ValueError
        Not one or three factors, or one below 1; a factor that leaves no voxel; bad options.
    """
    try:
        factors = np.broadcast_to(np.asarray(factors, dtype=np.float64), 3)
    except ValueError as error:
        raise ValueError('give one factor, or one per stored axis') from error
    if not (np.isfinite(factors).all() and (factors >= 1).all()):
        raise ValueError('a factor must be a number of at least 1')
    if how not in ('cell', 'trilinear', 'kspace'):
        raise ValueError(f'unknown sampling {how!r}: cell, trilinear or kspace')
    if not noise >= 0:
        raise ValueError('noise must not be negative')
    shape = np.array(volume.data.shape)
    if how == 'kspace':
        coarse = np.round(shape / factors).astype(int)
        start, step = np.zeros(3), shape / np.maximum(coarse, 1)
    else:
        coarse = np.floor(shape / factors + 1e-6).astype(int)
        start, step = 0.5 * (factors - 1), factors
    if coarse.min() < 1:
        raise ValueError(f'no voxel is left of {tuple(volume.data.shape)} after division by {tuple(factors)}')
    if how == 'kspace':
        data = _central_block(volume.data, coarse)
    else:
        data = volume.data
        for axis in np.flatnonzero(factors > 1):
            centres = start[axis] + step[axis] * np.arange(coarse[axis])
            if how == 'cell':
                box = SliceProfile('box', step[axis], int(axis))
                weights = _cell_masses(box, centres, shape[axis], 1.0)
            else:
                weights = np.maximum(0.0, 1.0 - np.abs(np.arange(shape[axis]) - centres[:, None]))
            product = np.tensordot(weights.astype(np.float32), data, axes=(1, axis))
            data = np.moveaxis(product, 0, axis)
    if noise:
        data = _rician(data, noise, seed)
    affine = volume.affine @ np.diag([*step, 1.0])
    affine[:3, 3] = volume.lattice.to_world(start)
    return Volume(np.array(data, dtype=np.float32, order='C'), Lattice(data.shape, affine))


def _central_block(data: np.ndarray, shape) -> np.ndarray:
    """Magnitude image of the central ``shape`` block of k-space; constants keep their value."""
    kspace = np.fft.fftshift(np.fft.fftn(data))
    first = [n // 2 - m // 2 for n, m in zip(data.shape, shape)]
    block = kspace[tuple(slice(f, f + m) for f, m in zip(first, shape))]
    return np.abs(np.fft.ifftn(np.fft.ifftshift(block))) * (np.prod(shape) / data.size)


def _cell_masses(profile: SliceProfile, centres_mm, n_cells: int, cell_mm: float) -> np.ndarray:
    """Mass (n_slices, n_cells) of each slice's profile in each voxel; the rest goes to the end voxels."""
    edges = (np.arange(n_cells + 1) - 0.5) * cell_mm
    cumulative = profile.cumulative(edges[None, :] - np.asarray(centres_mm)[:, None])
    cumulative[:, 0], cumulative[:, -1] = 0.0, 1.0
    return np.diff(cumulative, axis=1)


def _rician(data: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    positive = data[data > 0]
    if positive.size == 0:
        raise ValueError('the image has no positive values to scale the noise by')
    rng = np.random.default_rng(seed)
    sigma = fraction * float(np.percentile(positive, 99))
    real, imaginary = sigma * rng.standard_normal((2, *data.shape), dtype=np.float32)
    return np.hypot(data + real, imaginary)
