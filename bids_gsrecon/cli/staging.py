"""Several results at once: they appear in a folder together, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bids_gsrecon.errors import InputError


@contextmanager
def staged(folder, names: Iterable[str] = ()) -> Iterator[Path]:
    """A temporary folder inside ``folder``; what was written to it is moved up when the block ended well.

    Of ``names``, all that the result can consist of, those not written are then removed from ``folder``: they
    are of an earlier run and do not belong to what lies there now.

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
        written = sorted(item.name for item in staging.iterdir())
        for name in written:
            os.replace(staging / name, folder / name)
        for name in set(names) - set(written):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f'{folder} cannot be written ({error.strerror}): free space or choose another.'
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
