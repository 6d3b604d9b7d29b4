"""Pairs of a registered reference and a sharp target: made from images, kept in small files, read one by one."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_gsrecon.errors import InputError, about
from bids_gsrecon.fields.hdf5 import opened, written
from bids_gsrecon.imaging.foreground import bounding_box
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.resample import reached, resample
from bids_gsrecon.recon.m2asr.samples import signal, slice_axes
from bids_gsrecon.recon.m2asr.types import Pair

FORMAT = 'bids_gsrecon.m2asr.pair'
VERSION = 1
EXAMPLE = 'file of the cache of pairs'
MIN_REACHED = 0.5  # of a slice that the reference must show, for it to be trained on
HELD_GB = 1.0
SMALLEST_PATCH = 64  # of all sizes
LEVELS = 65535


@dataclass(frozen=True)
class PairFacts:
    """What is known of a pair without its images.

    Attributes
    ----------
    subject, contrast, reference_contrast
        As in `Pair`.
    key
        What the pair was made of; another key: to be made again.
    sources
        The files of the reference and of the target.
    n_voxels
        Of each of its images.
    box
        Voxels in the box of its mask, and in how many directions it is cut into slices (`drawn_box`); none: not known.
    """

    subject: str
    contrast: str
    reference_contrast: str
    key: str
    sources: list[str]
    n_voxels: int
    box: list[int] | None = None


def reference_on(
    reference: Volume,
    lattice: Lattice,
    target_to_reference: np.ndarray,
    *,
    slice_axis: int,
    slice_thickness_mm: float,
) -> np.ndarray:
    """The reference as slices on another grid would show it.

    Parameters
    ----------
    reference
        Any grid.
    lattice
        Of the wanted slices.
    target_to_reference
        4x4 rigid, RAS mm: from the world of ``lattice`` into that of ``reference``.
    slice_axis, slice_thickness_mm
        Stored axis of ``lattice`` across slices, and how thick they are.

    Returns
    -------
    np.ndarray
        (i, j, k) float32: cubic interpolation, averaged over the box of a voxel where that is larger than those of the
        reference; zero where the reference does not reach.
    """
    own = float(reference.lattice.voxel_sizes_mm.min())
    boxes = lattice.voxel_sizes_mm.copy()
    boxes[slice_axis] = slice_thickness_mm
    counts = np.maximum(np.round(boxes / own), 1).astype(int)
    matrix = reference.lattice.world_to_voxel @ np.asarray(target_to_reference, float) @ lattice.affine
    if (counts == 1).all() and _is_copy(matrix):
        return resample(reference.data, matrix, lattice.shape, 0)
    coefficients = ndimage.spline_filter(reference.data, order=3, output=np.float32)
    # Where in its voxel each sample lies, in voxels of the grid.
    steps = [
        ((np.arange(n) + 0.5) / n - 0.5) * box / size
        for n, box, size in zip(counts, boxes, lattice.voxel_sizes_mm)
    ]
    total = np.zeros(lattice.shape, np.float32)
    for offset in itertools.product(*steps):
        shift = matrix[:3, :3] @ offset + matrix[:3, 3]
        total += ndimage.affine_transform(
            coefficients, matrix[:3, :3], shift, lattice.shape, order=3, prefilter=False, mode='grid-constant'
        )
    total /= counts.prod()
    # The spline overshoots at edges: no tissue is darker than the darkest.
    return np.where(reached(lattice.moved(target_to_reference), reference.lattice), total, 0).clip(
        float(reference.data.min()), float(reference.data.max())
    )


def make_pair(
    reference: Volume,
    target: Volume,
    *,
    subject: str,
    contrast: str = '',
    reference_contrast: str = 'T1w',
    target_to_reference: np.ndarray | None = None,
    slice_axis: int | None = None,
    slice_thickness_mm: float | None = None,
    mask: np.ndarray | None = None,
) -> Pair:
    """The pair of a reference and a target: on the grid of the target, without slices that the reference misses.

    Parameters
    ----------
    reference, target
        Any grids.
    target_to_reference
        4x4 rigid, RAS mm; none: the headers are right.
    slice_axis, slice_thickness_mm
        Of the target; none: its coarsest axis, and slices that touch.
    mask
        (i, j, k) bool on the reference's grid: where scores count; none: where the target is not zero.

    Raises
    ------
    ValueError
        The reference shows next to nothing of the target; as `Pair`.
    """
    motion = np.eye(4) if target_to_reference is None else np.asarray(target_to_reference, float)
    lattice = target.lattice
    axis = lattice.coarsest_axis if slice_axis is None else slice_axis
    across = float(lattice.voxel_sizes_mm[axis])
    seen = reached(lattice.moved(motion), reference.lattice)
    kept = np.flatnonzero(np.moveaxis(seen, axis, 0).reshape(lattice.shape[axis], -1).mean(1) >= MIN_REACHED)
    if kept.size == 0:
        raise ValueError('it lies outside of its reference: check the headers, or register the two')
    start, stop = np.zeros(3, int), np.array(lattice.shape)
    start[axis], stop[axis] = kept[0], kept[-1] + 1
    inside = tuple(slice(a, b) for a, b in zip(start, stop))
    lattice = lattice.cropped(start, stop)
    data = reference_on(
        reference, lattice, motion, slice_axis=axis, slice_thickness_mm=slice_thickness_mm or across
    )
    counted = None
    if mask is not None:
        matrix = reference.lattice.world_to_voxel @ motion @ lattice.affine
        counted = resample(mask.astype(np.float32), matrix, lattice.shape, 0) > 0.5
        counted &= seen[inside]
    return Pair(subject, contrast, data, target.data[inside], lattice, axis, counted, reference_contrast)


def save_pair(path, pair: Pair, *, key: str = '', sources: Sequence[str] = ()) -> Path:
    """Write a pair with 16 bits a voxel, compressed; appears atomically."""
    facts = {
        'subject': pair.subject,
        'contrast': pair.contrast,
        'reference_contrast': pair.reference_contrast,
        'key': key,
        'sources': list(sources),
        'n_voxels': pair.lattice.n_voxels,
        'box': list(drawn_box(pair)),
    }
    packed = {'compression': 'gzip', 'compression_opts': 4, 'shuffle': True, 'fletcher32': True}
    with written(
        path, FORMAT, VERSION, facts, affine=pair.lattice.affine, slice_axis=pair.slice_axis
    ) as file:
        for name in ('reference', 'target'):
            data = getattr(pair, name)
            low, high = float(data.min()), float(data.max())
            levels = np.round((data - low) * (LEVELS / (high - low))).astype(np.uint16)
            stored = file.create_dataset(name, data=levels, **packed)
            stored.attrs.update(low=low, high=high)
        if pair.mask is not None:
            file.create_dataset('mask', data=pair.mask, **packed)
    return Path(path)


def load_pair(path) -> Pair:
    """Read what `save_pair` wrote.

    Raises
    ------
    InputError
        Missing, damaged, or of a newer version.
    """
    with opened(path, FORMAT, VERSION, what='pair', example=EXAMPLE) as (file, facts):
        images = {}
        for name in ('reference', 'target'):
            low, high = (float(file[name].attrs[end]) for end in ('low', 'high'))
            images[name] = file[name][:].astype(np.float32) * ((high - low) / LEVELS) + low
        mask = file['mask'][:] if 'mask' in file else None
        lattice = Lattice(images['target'].shape, file.attrs['affine'])
        axis = int(file.attrs['slice_axis'])
    with about(path):
        return Pair(
            subject=facts['subject'],
            contrast=facts['contrast'],
            reference=images['reference'],
            target=images['target'],
            lattice=lattice,
            slice_axis=axis,
            mask=mask,
            reference_contrast=facts['reference_contrast'],
        )


def read_facts(path) -> PairFacts:
    """What a pair's file says of it; nothing of its images is read.

    Raises
    ------
    InputError
        As `load_pair`.
    """
    with opened(path, FORMAT, VERSION, what='pair', example=EXAMPLE) as (_, facts):
        try:
            return PairFacts(**facts)
        except TypeError as error:
            raise InputError(f'{path} is a pair of another version: delete it, it is made again.') from error


def _is_copy(matrix: np.ndarray) -> bool:
    shift = matrix[:3, 3]
    return bool(
        np.allclose(matrix[:3, :3], np.eye(3), atol=1e-4) and np.abs(shift - np.round(shift)).max() < 1e-3
    )


class LazyPairs(Sequence):
    """Pairs that are read when they are asked for; those used last are held, up to ``held_gb``.

    Attributes
    ----------
    subjects
        Of each, without reading images.
    """

    def __init__(self, subjects: Sequence[str], read: Callable[[int], Pair], *, held_gb: float = HELD_GB):
        self.subjects = list(subjects)
        self._read = read
        self._held: OrderedDict[int, Pair] = OrderedDict()
        self._held_bytes = held_gb * 1024**3

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        if index not in self._held:
            self._held[index] = self._read(index)
            while len(self._held) > 1 and sum(map(_n_bytes, self._held.values())) > self._held_bytes:
                self._held.popitem(last=False)
        self._held.move_to_end(index)
        return self._held[index]


class PairFiles(LazyPairs):
    """Pairs in files.

    Attributes
    ----------
    paths
        The files.
    facts
        What each says of itself.
    """

    def __init__(self, paths: Sequence, *, held_gb: float = HELD_GB):
        self.paths = [Path(path) for path in paths]
        self.facts = [read_facts(path) for path in self.paths]
        subjects = [facts.subject for facts in self.facts]
        super().__init__(subjects, lambda index: load_pair(self.paths[index]), held_gb=held_gb)

    def boxes(self) -> list[tuple[int, int]]:
        """`drawn_box` of each; at most, where a file does not tell."""
        return [tuple(facts.box or (facts.n_voxels, 3)) for facts in self.facts]


def drawn_box(pair: Pair) -> tuple[int, int]:
    """Voxels in the box of a pair's mask, and in how many directions it is cut into slices."""
    start, stop = bounding_box(signal(pair))
    return int(np.prod(stop - start)), len(slice_axes(pair.lattice, pair.slice_axis, SMALLEST_PATCH))


def _n_bytes(pair: Pair) -> int:
    return pair.reference.nbytes + pair.target.nbytes + (0 if pair.mask is None else pair.mask.nbytes)
