"""What can be said about a super-resolution before it is computed; no nipype here."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.resample import share_reached
from bids_gsrecon.recon.superres import cell_factors, estimate_memory_gb

OUTPUT_BYTES = 40  # per output voxel: image, two maps, mask, and copies on their way to disk


def is_fine_already(image: Lattice, output: Lattice) -> bool:
    """Whether the output would be nowhere finer than the image."""
    return max(cell_factors(image, output)) == 1


def needed_memory_gb(shape, image: Lattice, output: Lattice) -> float:
    """Peak memory in GB where ``shape`` voxels of the image are reconstructed."""
    return estimate_memory_gb(shape, cell_factors(image, output)) + OUTPUT_BYTES * output.n_voxels / 1024**3


def check_memory(source, image: Lattice, mask: np.ndarray, output: Lattice, limit_gb: float) -> None:
    """Raise `InputError` where the output would need more memory than there is.

    Parameters
    ----------
    source
        Name of the image in the message.
    mask
        (i, j, k) bool on ``image``: what is reconstructed; only its box counts.
    limit_gb
        What may be used; 0: not known.
    """
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    need = needed_memory_gb([s.stop - s.start for s in box], image, output)
    if 0 < limit_gb < need:
        shape = ' x '.join(str(n) for n in output.shape)
        raise InputError(
            f'{source}: an output of {shape} voxels needs about {need:.1f} GB of memory and the limit here is '
            f'{limit_gb:.1f} GB: ask for larger voxels, or for a part of the image only (mask, crop).'
        )


def check_overlap(source, image: Lattice, mask: np.ndarray, output: Lattice, output_name) -> None:
    """Raise `InputError` where the output grid shows nothing of the mask."""
    if share_reached(mask, image, output) == 0:
        raise InputError(
            f'{output_name} does not overlap {source}: by their headers they lie apart; check the headers.'
        )
