"""Several results at once: they appear in a folder together, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bids_gsrecon.errors import InputError


@contextmanager
def staged(folder) -> Iterator[Path]:
    """A temporary folder inside ``folder``; what was written to it is moved up when the block ended well.

    Raises
    ------
    InputError
        The folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    staging = None
    try:
        staging = Path(tempfile.mkdtemp(prefix='.tmp-', dir=folder))
        yield staging
        for item in sorted(staging.iterdir()):
            os.replace(item, folder / item.name)
    except OSError as error:
        raise InputError(
            f'{folder} cannot be written ({error.strerror}): free space or choose another.'
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
