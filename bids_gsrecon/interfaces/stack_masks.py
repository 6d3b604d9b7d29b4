"""A mask for every stack: read and put right, carried over from other stacks, or found in the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_gsrecon.errors import InputError, about
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.stack_masks import MOTION_MM, common_foreground, propagated_mask, repaired_mask
from bids_gsrecon.interfaces.io import load_array, open_image
from bids_gsrecon.interfaces.stacks import StackFile


def masks_of_stacks(
    files: Sequence[StackFile], names: Sequence[str | Path | None]
) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Masks of all stacks, how each was obtained, and what a user should know.

    Parameters
    ----------
    names
        The mask file of every stack, or nothing where it lacks one.

    Returns
    -------
    masks, sources, warnings
        (i, j, k) bool as the stacks are stored; a phrase per stack for the records; sentences naming files.

    Raises
    ------
    InputError
        A mask that cannot be read, is empty or lies elsewhere; a stack that shows nothing inside its mask;
        stacks without a mask that have nothing in common with the others.
    """
    masks: list[np.ndarray | None] = []
    sources, warnings = [], []
    for file, name in zip(files, names):
        mask, source, remark = (None, '', '') if name is None else _given_mask(file, Path(name))
        masks.append(mask)
        sources.append(source)
        warnings += [remark] if remark else []
    lacking = [index for index, mask in enumerate(masks) if mask is None]
    if len(lacking) == len(files):
        found, sources = _found_masks(files), ['found in the images'] * len(files)
        warnings.append(
            f'{", ".join(file.path.name for file in files)} have no masks: everything that all of them show is '
            'reconstructed together, which fails where parts move each in its own way; give masks of the anatomy.'
        )
        masks = list(found)
    elif lacking:
        known = [index for index in range(len(files)) if index not in lacking]
        for index in lacking:
            mask = propagated_mask(
                [masks[k] for k in known], [files[k].lattice for k in known], files[index].lattice
            )
            path = files[index].path
            if not mask.any():
                raise InputError(
                    f'{path} has no mask, and what the masks of the other stacks show lies outside of it: '
                    'give it a mask, or leave it out.'
                )
            masks[index] = mask
            sources[index] = 'carried over from the other stacks'
            warnings.append(
                f'{path} has no mask: that of the other stacks is taken, grown by {MOTION_MM:g} mm.'
            )
    for file, mask in zip(files, masks):
        seen = file.data[mask & file.finite]
        if seen.size == 0 or seen.max() == seen.min():
            raise InputError(
                f'{file.path} shows nothing inside its mask: correct the mask, or leave the stack out.'
            )
    return masks, sources, warnings


def _given_mask(file: StackFile, path: Path) -> tuple[np.ndarray, str, str]:
    data, lattice = load_array(path)
    with about(path):
        mask, remark = repaired_mask(
            data > 0.5, _header_lattices(path, lattice), _header_lattices(file.path, file.lattice)
        )
    if not remark:
        return mask, str(path), ''
    return mask, f'{path} ({remark})', f'{path}, the mask of {file.path.name}: {remark}.'


def _found_masks(files: Sequence[StackFile]) -> list[np.ndarray]:
    masks = common_foreground([Volume(file.data, file.lattice) for file in files])
    for file, mask in zip(files, masks):
        if not mask.any():
            raise InputError(
                f'{file.path} has nothing in common with all the other stacks: give masks, or leave it out.'
            )
    return masks


def _header_lattices(path: Path, lattice: Lattice) -> list[Lattice]:
    """The lattice that counts, then those of sform and qform where the file has them."""
    image = open_image(path)[0]
    lattices = [lattice]
    for form in ('get_sform', 'get_qform'):
        affine = getattr(image, form)(coded=True)[0] if hasattr(image, form) else None
        if affine is None:
            continue
        try:
            lattices.append(Lattice(lattice.shape, affine))
        except ValueError:  # a broken form says nothing
            continue
    return lattices
