"""Prepared slices on the disk, so that a training takes the memory of one pair however many there are.

One file per pair, uncompressed, mapped into memory: what is drawn is read, and the system keeps as much of it as it has
memory to spare.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_gsrecon.errors import InputError
from bids_gsrecon.fields.hdf5 import opened, written

FORMAT = 'bids_gsrecon.m2asr.slices'
VERSION = 1
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class SliceStore:
    """A `bids_gsrecon.recon.m2asr.types.Store` in a folder of its own.

    Attributes
    ----------
    folder
        Made when something is saved; gone after `remove`.
    key
        Of the data: files of other data are not read.
    waits
        This process saves nothing: it waits until another process of the same training and machine has.
    """

    folder: Path
    key: str
    waits: bool = False

    def load(self, name: str) -> tuple[dict[str, np.ndarray], dict] | None:
        """Arrays mapped from the file, and facts; None: there is none (or it is damaged), and this process is to save it."""
        path = self._path(name)
        while self.waits and not path.exists():
            time.sleep(POLL_SECONDS)
        try:
            return _mapped(path) if path.exists() else None
        except InputError:
            return None

    def save(
        self, name: str, arrays: dict[str, np.ndarray], facts: dict
    ) -> tuple[dict[str, np.ndarray], dict]:
        """Write one file, and map it.

        Raises
        ------
        InputError
            The folder cannot be written, or the disk is full.
        """
        path = self._path(name)
        with written(path, FORMAT, VERSION, facts) as file:
            for array_name, array in arrays.items():
                file.create_dataset(array_name, data=array)
        return _mapped(path)

    def keep_only_own(self) -> None:
        """Remove what a training on other data left in the folder."""
        for path in self.folder.glob('*.h5'):
            if not path.stem.endswith(f'_{self.key}'):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """The training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def check_space(self, n_bytes: float) -> None:
        """Raise `InputError` where so much does not fit on the disk, beside what is there already."""
        existing = next(p for p in (self.folder, *self.folder.parents) if p.is_dir())
        there = sum(p.stat().st_size for p in self.folder.glob(f'*_{self.key}.h5'))
        need, free = n_bytes - there, shutil.disk_usage(existing).free
        if need > free:
            raise InputError(
                f'{self.folder} needs about {need / 1e9:.2f} GB for prepared slices and {free / 1e9:.2f} GB are free: free '
                'space, choose another folder, or train on fewer participants.'
            )

    def _path(self, name: str) -> Path:
        return self.folder / f'{name}_{self.key}.h5'


def prepared_bytes(boxes: Iterable[tuple[int, int]], *, labels: bool) -> int:
    """What prepared slices take on the disk.

    Parameters
    ----------
    boxes
        Of every pair: voxels in the box of its mask, and in how many directions it is cut into slices.
    labels
        Tissue classes are kept too.
    """
    per_voxel = 10 if labels else 8
    return sum(n * (per_voxel * directions + 4) for n, directions in boxes)


def _mapped(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays as copy-on-write maps: torch does not take arrays that cannot be written."""
    kind = {'what': 'file of prepared slices', 'example': 'folder that a training made'}
    with opened(path, FORMAT, VERSION, **kind) as (file, facts):
        layout = {name: (data.id.get_offset(), data.shape, data.dtype) for name, data in file.items()}
    whole = np.memmap(path, np.uint8, 'c')
    arrays = {}
    for name, (offset, shape, dtype) in layout.items():
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        arrays[name] = np.asarray(whole[offset : offset + n_bytes]).view(dtype).reshape(shape)
    return arrays, facts
