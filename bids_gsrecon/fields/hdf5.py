"""Versioned HDF5 files: how every kind of field is written and opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from bids_gsrecon.atomic import appearing
from bids_gsrecon.errors import InputError


@contextmanager
def written(path, format: str, version: int, metadata: dict | None = None, **attributes) -> Iterator:
    """An ``h5py.File`` to fill; it appears at ``path`` when the block ends without an error.

    ``metadata`` (anything JSON can hold) and ``attributes`` are kept beside the format's name and version.
    """
    import h5py

    with appearing(path) as temporary, h5py.File(temporary, 'w', track_order=True) as file:
        file.attrs.update(format=format, version=version, metadata=json.dumps(metadata or {}), **attributes)
        yield file


@contextmanager
def opened(path, format: str, version: int, *, what: str, example: str) -> Iterator:
    """The ``h5py.File`` and the metadata of a file of this format, to read from.

    Parameters
    ----------
    path, format, version
        The file, and the newest version that can be read.
    what, example
        For the messages: what it should be, and how such files are called.

    Raises
    ------
    InputError
        Not such a file, damaged (also when the block finds it so), or of a newer version.
    """
    import h5py

    try:
        with h5py.File(path, 'r') as file:
            if file.attrs.get('format') != format:
                raise InputError(f'{path} is not a {what} of this package: give a {example}.')
            if int(file.attrs['version']) > version:
                raise InputError(f'{path} was written by a newer version: update bids_gsrecon to read it.')
            yield file, json.loads(file.attrs['metadata'])
    except (OSError, KeyError) as error:
        raise InputError(f'{path} cannot be read as a {what} ({error}): make it again.') from error


def is_format(path, format: str) -> bool:
    """Whether the file says that it is of this format."""
    import h5py

    try:
        with h5py.File(path, 'r') as file:
            return file.attrs.get('format') == format
    except OSError:
        return False


def numbered(group) -> list:
    """The members of a group that are called 0, 1, 2, ... in that order."""
    return [member for _, member in sorted(group.items(), key=lambda item: int(item[0]))]
