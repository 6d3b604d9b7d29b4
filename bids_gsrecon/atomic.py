"""Files that appear whole or not at all; imports nothing that takes time."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bids_gsrecon.errors import InputError

_ASKING = threading.Lock()


@contextmanager
def appearing(path) -> Iterator[str]:
    """A temporary path beside ``path``, renamed to it when the block ends without an error: never a half-written file.

    Raises
    ------
    InputError
        The folder cannot be written, or the disk is full.
    """
    path = Path(path)
    suffix = ''.join(path.suffixes[-2:])
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix='.tmp-', suffix=suffix, dir=path.parent)
        os.close(handle)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f'{path} cannot be written ({error.strerror or error}): free space or choose a writable folder.'
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_atomically(path, write) -> None:
    """Call ``write(temporary_path)``; see `appearing`.

    Raises
    ------
    InputError
        The folder cannot be written, or the disk is full.
    """
    with appearing(path) as temporary:
        write(temporary)


def _umask() -> int:
    with _ASKING:  # two threads at once would read, and leave behind, the other's zero
        current = os.umask(0)
        os.umask(current)
    return current


def write_text(path, text: str) -> None:
    """Write a text file atomically unless it already says the same.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    path = Path(path)
    try:
        if path.is_file() and path.read_text(encoding='utf-8') == text:
            return
    except (OSError, UnicodeDecodeError):
        pass
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding='utf-8'))
