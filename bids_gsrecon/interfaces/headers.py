"""What an image's header says, read at planning time: problems are found before anything is computed."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.interfaces.io import open_image

THICK_RATIO = 2.0  # coarsest over finest voxel size
THICK_MM = 1.5
CLEARLY_COARSER = 1.15
B0_MAX = 50.0  # s/mm^2: scanners store b=5 or b=50 for "b=0"


@dataclass(frozen=True, eq=False)
class Header:
    """Geometry of an image.

    Attributes
    ----------
    shape
        As stored, 3 or 4 axes, trailing ones dropped.
    voxel_sizes_mm
        (3,) along the stored axes.
    affine
        4x4, index to world RAS mm.
    """

    shape: tuple[int, ...]
    voxel_sizes_mm: np.ndarray
    affine: np.ndarray

    @property
    def is_thick(self) -> bool:
        """Whether its slices are much thicker than they are fine: no scaffold can be learned from it."""
        return bool(
            self.voxel_sizes_mm.max() >= THICK_RATIO * self.voxel_sizes_mm.min()
            and self.voxel_sizes_mm.max() >= THICK_MM
        )

    @property
    def lattice(self) -> Lattice:
        """The grid of (one volume of) the image."""
        return Lattice(self.shape[:3], self.affine)

    @property
    def slice_normal(self) -> np.ndarray:
        """Unit world direction of the coarsest axis (3,)."""
        column = self.affine[:3, self.lattice.coarsest_axis]
        return column / np.linalg.norm(column)


def read_header(path) -> Header:
    """Header of an image whose file is whole and whose geometry makes sense; no voxel is read.

    Raises
    ------
    InputError
        Unreadable or truncated file, broken affine, fewer than 3 axes.
    """
    path = Path(path)
    try:
        image, zooms = open_image(path)
        shape = tuple(int(n) for n in image.shape)
        affine = np.asarray(image.affine, dtype=float)
        item_bytes = image.header.get_data_dtype().itemsize
        offset = int(image.dataobj.offset)
    except Exception as error:
        raise InputError(
            f'{path} cannot be read ({type(error).__name__}): the file is truncated or not a NIfTI image; '
            'copy or convert it again.'
        ) from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        raise InputError(f'{path} has {len(shape)} dimensions where 3 are needed: convert the whole stack.')
    singular = not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9
    if singular or not (zooms > 0).all():
        raise InputError(
            f'{path} has a broken affine or a zero or negative voxel size: repair its header (sform/qform).'
        )
    _check_whole(path, offset + int(np.prod(shape)) * item_bytes)
    return Header(shape, np.linalg.norm(affine[:3, :3], axis=0), affine)


def _check_whole(path: Path, expected_bytes: int) -> None:
    """The file holds all its voxels. Of a gzip archive the size in its last four bytes usually settles it."""
    truncated = InputError(f'{path} is truncated: it ends before its last voxel; copy or convert it again.')
    if path.suffix != '.gz':
        if path.stat().st_size < expected_bytes:
            raise truncated
        return
    with path.open('rb') as file:
        file.seek(0, 2)
        if file.tell() < 18:
            raise truncated
        file.seek(-4, 2)
        if struct.unpack('<I', file.read(4))[0] == expected_bytes % 2**32:
            return
    n_bytes = 0
    try:  # several archives in one, or bytes behind the voxels: only reading it tells
        with gzip.open(path) as file:
            while chunk := file.read(1 << 22):
                n_bytes += len(chunk)
    except (OSError, EOFError) as error:
        raise truncated from error
    if n_bytes < expected_bytes:
        raise truncated


def slice_axis(header: Header, metadata: dict) -> tuple[int, str]:
    """Stored axis of the slices, and a remark where header and sidecar disagree.

    A clearly coarsest axis decides; ``SliceEncodingDirection`` only where there is none.
    """
    coarsest, sizes = header.lattice.coarsest_axis, header.voxel_sizes_mm
    named = 'ijk'.find(str(metadata.get('SliceEncodingDirection', '-'))[:1])
    if named < 0 or named == coarsest:
        return coarsest, ''
    if sizes[coarsest] > CLEARLY_COARSER * sizes[named]:
        return coarsest, f'SliceEncodingDirection says {"ijk"[named]}, but slices lie along {"ijk"[coarsest]}'
    return named, ''


def slice_thickness_mm(spacing_mm: float, metadata: dict) -> tuple[float, str]:
    """Thickness of slices that lie ``spacing_mm`` apart, and a remark where it is not just that.

    ``SliceThickness`` counts when it lies within half and twice the spacing of the header (gap, overlap);
    otherwise slices are taken to touch.
    """
    between = _positive_number(metadata.get('SpacingBetweenSlices'))
    remark = ''
    if between is not None and abs(between - spacing_mm) > 0.05 * spacing_mm:
        remark = f'SpacingBetweenSlices is {between:g} mm, but the header has {spacing_mm:g} mm (used)'
    thickness = _positive_number(metadata.get('SliceThickness'))
    if thickness is None:
        return spacing_mm, remark
    if not 0.5 * spacing_mm <= thickness <= 2.0 * spacing_mm:
        return (
            spacing_mm,
            f'SliceThickness {thickness:g} mm does not fit slices every {spacing_mm:g} mm (used)',
        )
    if not remark and abs(thickness - spacing_mm) > 0.02 * spacing_mm:
        what = 'with gaps' if thickness < spacing_mm else 'that overlap'
        remark = f'slices of {thickness:g} mm every {spacing_mm:g} mm, {what} (SliceThickness is used)'
    return thickness, remark


def check_stack(path, shape) -> None:
    """Raise `InputError` where an image has one voxel only along an axis: there is nothing between slices."""
    if min(shape[:3]) < 2:
        size = ' x '.join(str(int(n)) for n in shape[:3])
        raise InputError(f'{path} is a single slice ({size} voxels): give the whole stack.')


def b0_volumes(path, n_volumes: int) -> list[int]:
    """Volumes of a diffusion series without diffusion weighting, from the ``.bval`` beside it.

    Raises
    ------
    InputError
        No ``.bval``, not one value per volume, or no volume at b <= 50.
    """
    path = Path(path)
    bval = path.with_name(path.name.split('.')[0] + '.bval')
    try:
        values = np.array(bval.read_text().split(), dtype=float)
    except OSError as error:
        raise InputError(
            f'{path} has no {bval.name} beside it: add it, so that its b=0 volumes are known.'
        ) from error
    except ValueError as error:
        raise InputError(f'{bval} does not hold numbers: repair it.') from error
    if len(values) != n_volumes:
        raise InputError(f'{bval} has {len(values)} values for {n_volumes} volumes: repair it.')
    chosen = np.flatnonzero(values <= B0_MAX)
    if len(chosen) == 0:
        raise InputError(
            f'{path} has no b=0 volume (lowest b is {values.min():g}): leave it out with a filter file.'
        )
    return chosen.tolist()


def read_metadata(path, bids_dir) -> dict:
    """JSON metadata of an image by the inheritance principle: nearer files override those above them."""
    path, bids_dir = Path(path), Path(bids_dir)
    *entities, suffix = path.name.split('.')[0].split('_')
    merged: dict = {}
    folders = [
        folder for folder in (path.parent, *path.parents) if bids_dir == folder or bids_dir in folder.parents
    ]
    for folder in sorted(set(folders), key=lambda item: len(item.parts)):
        sidecars = []
        for sidecar in folder.glob(f'*{suffix}.json'):
            *parts, own_suffix = sidecar.name.removesuffix('.json').split('_')
            if own_suffix == suffix and set(parts) <= set(entities):
                sidecars.append((len(parts), sidecar))
        for _, sidecar in sorted(sidecars):
            try:
                content = json.loads(sidecar.read_text())
            except (OSError, ValueError):
                continue
            merged.update(content if isinstance(content, dict) else {})
    return merged


def _positive_number(value) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < 1e4 else None
