"""Errors that a user can act on: one sentence that names the file and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """The input cannot be used; the message says which file, why, and what to do.

    The command line prints the message alone (no traceback unless ``--verbose`` asks for it).
    """


@contextmanager
def about(path) -> Iterator[None]:
    """`ValueError` of a pure function ("it does not ...") becomes the one sentence about the file it was given."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        text = str(error).rstrip('.')
        raise InputError(f'{path} {text[3:]}.' if text.startswith('it ') else f'{path}: {text}.') from error


@contextmanager
def named(path) -> Iterator[None]:
    """`InputError` of a function that knows no files gets the name of the one that it was given."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f'{path}: {error}') from error
