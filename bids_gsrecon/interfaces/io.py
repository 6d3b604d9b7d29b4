"""Reading and writing images at the edge of the package: every bad file ends in one clear sentence."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_gsrecon.atomic import write_atomically
from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.support import find_support


def open_image(path):
    """The image (nothing read but its header) and its voxel sizes as stored, (3,) or as many axes as it has.

    nibabel takes a voxel size of 0 for 1 and drops the sign of a negative one, with a line on standard error;
    both are errors here, and for the caller to tell.
    """
    logger = nib.imageglobals.logger
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        image = nib.load(path)
    finally:
        logger.setLevel(level)
    sizes = np.asarray(image.header.get_zooms()[:3], dtype=float)
    if isinstance(image.header, nib.Nifti1Header):
        holder = image.file_map.get('header', image.file_map['image'])
        with holder.get_prepare_fileobj('rb') as file:
            stored = type(image.header).from_fileobj(file, check=False)
        sizes = np.asarray(stored['pixdim'], dtype=float)[1 : 1 + sizes.size]
    return image, sizes


def load_volume(path, *, allow_4d_mean: bool = False) -> Volume:
    """Read a 3D image as a `Volume` (float32, world RAS mm).

    Parameters
    ----------
    path
        NIfTI file (anything nibabel reads).
    allow_4d_mean
        Average a series over time (ASL, M0) instead of refusing it.

    Raises
    ------
    InputError
        As `load_array`, and for NaN or infinite values and for a constant image.
    """
    data, lattice = load_array(path, allow_4d_mean=allow_4d_mean)
    if not np.isfinite(data).all():
        raise InputError(f'{path} holds NaN or infinite values: replace them (for instance by 0) first.')
    if data.min() == data.max():
        raise InputError(f'{path} is constant ({data.flat[0]:g}): there is nothing to reconstruct.')
    return Volume(data, lattice)


def load_array(path, *, allow_4d_mean: bool = False) -> tuple[np.ndarray, Lattice]:
    """The voxels of a 3D image (i, j, k) float32, whatever their values, and its lattice.

    Raises
    ------
    InputError
        Missing, unreadable or truncated file; not 3D; complex or RGB; broken affine or voxel sizes.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f'{path} does not exist: check the path.')
    try:
        image, header_zooms = open_image(path)
        if image.dataobj.dtype.fields is not None or np.issubdtype(image.dataobj.dtype, np.complexfloating):
            raise InputError(f'{path} holds RGB or complex values: give a real (magnitude) image.')
        data = np.asarray(image.dataobj, dtype=np.float32)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f'{path} cannot be read ({type(error).__name__}: {str(error)[:120]}): the file is truncated or '
            'not a NIfTI image; copy or convert it again.'
        ) from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 4 and allow_4d_mean:
        data = data.mean(-1, dtype=np.float64).astype(np.float32)
    if data.ndim != 3:
        raise InputError(
            f'{path} has {data.ndim} dimensions where 3 are needed: extract one volume (or average).'
        )
    affine = image.affine
    if (
        affine is None
        or not np.isfinite(affine).all()
        or abs(np.linalg.det(affine[:3, :3])) < 1e-9
        or not (header_zooms > 0).all()
    ):
        raise InputError(
            f'{path} has a broken affine or a zero or negative voxel size: repair its header (sform/qform).'
        )
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    if zooms.max() > 50 or zooms.min() < 0.02:
        raise InputError(
            f'{path} has voxels of {np.round(zooms, 4)} mm: the header is not in mm; repair its units.'
        )
    cosines = affine[:3, :3] / zooms
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > 0.02:
        raise InputError(f'{path} has a sheared affine: resample it to a rectangular grid first.')
    return data, Lattice(data.shape, affine)


def load_mask(path, lattice: Lattice | None = None) -> np.ndarray:
    """Read a mask (> 0.5) as booleans; with ``lattice``, resampled (nearest) to it where the grids differ.

    Raises
    ------
    InputError
        As `load_volume`, and for an empty mask or one that misses ``lattice``.
    """
    path = Path(path)
    try:
        volume = load_volume(path)
    except InputError as error:
        if 'is constant (0)' in str(error):
            raise InputError(f'{path} is an empty mask: draw it again or leave it out.') from error
        if 'is constant' not in str(error):
            raise
        image = nib.load(path)  # a mask of ones everywhere is a mask
        volume = Volume(np.ones(image.shape[:3]), Lattice(image.shape[:3], image.affine))
    mask = volume.data > 0.5
    if lattice is not None and not volume.lattice.same_as(lattice, 0.05):
        from scipy import ndimage

        matrix = volume.lattice.world_to_voxel @ lattice.affine
        mask = (
            ndimage.affine_transform(
                mask.astype(np.float32), matrix[:3, :3], matrix[:3, 3], lattice.shape, order=0
            )
            > 0.5
        )
    if not mask.any():
        raise InputError(
            f'{path} is an empty mask (on the grid of the image): draw it again or leave it out.'
        )
    return mask


def load_or_find_mask(path, volume: Volume) -> tuple[np.ndarray, str]:
    """The mask at ``path`` on the grid of ``volume`` (``given``), or without a path what `find_support` finds."""
    return (load_mask(path, volume.lattice), 'given') if path else find_support(volume)


def load_scaffold(path, reference: Volume):
    """The first layer (`GaussianField`) of an HDF5 field, checked to lie in the reference's field of view.

    Raises
    ------
    InputError
        Missing, not a field, or of another head or position.
    """
    from bids_gsrecon.fields.io import load_field

    if not Path(path).exists():
        raise InputError(f'{path} does not exist: check the path.')
    scaffold = load_field(path)[0][0]
    inside = reference.lattice.to_index(scaffold.means_mm)
    share = ((inside >= -3) & (inside <= np.array(reference.data.shape) + 2)).all(1).mean()
    if share < 0.5:
        raise InputError(f'{path} was learned on another head or position: leave it out to learn it again.')
    return scaffold


def save_volume(path, data, affine, *, dtype=np.float32, frame_time_s: float | None = None) -> Path:
    """Write ``data`` (i, j, k[, t]) as NIfTI with both forms set to ``affine``; appears atomically.

    ``frame_time_s``: time between the volumes of a series.
    """
    path = Path(path)
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), np.asarray(affine, dtype=np.float64))
    image.header.set_xyzt_units('mm', None if frame_time_s is None else 'sec')
    if frame_time_s is not None:
        image.header.set_zooms((*image.header.get_zooms()[:3], frame_time_s))
    image.set_sform(affine, code='scanner')
    image.set_qform(affine, code='scanner')
    write_atomically(path, lambda temporary: nib.save(image, temporary))
    return path


def save_json(path, content: dict) -> Path:
    """Write ``content`` as indented JSON; appears atomically."""
    path = Path(path)
    text = json.dumps(content, indent=2) + '\n'
    write_atomically(path, lambda temporary: Path(temporary).write_text(text))
    return path
