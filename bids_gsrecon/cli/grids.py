"""The grid of an image, whatever the image holds."""

from __future__ import annotations

from pathlib import Path

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice


def load_lattice(path) -> Lattice:
    """The lattice of the first three dimensions of an image, from its header alone.

    Raises
    ------
    InputError
        Missing or unreadable file, fewer than three dimensions, broken affine or voxel sizes.
    """
    from bids_gsrecon.interfaces.io import open_image

    path = Path(path)
    if not path.exists():
        raise InputError(f'{path} does not exist: check the path.')
    try:
        image, sizes = open_image(path)
        if not (sizes > 0).all():
            raise ValueError('a zero or negative voxel size')
        return Lattice(tuple(image.shape[:3]), image.affine)
    except Exception as error:
        raise InputError(f'{path} has no usable grid ({error}): give a 3D NIfTI image.') from error
