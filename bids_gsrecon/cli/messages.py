"""Lines for the user."""

from __future__ import annotations

import contextlib
import sys


def say(text: str, *, error: bool = False) -> None:
    """One line for the user."""
    say_plain(f'bids_gsrecon: {text}', error=error)


def say_plain(text: str, *, error: bool = False) -> None:
    """A line as it is. A reader that went away (``| head``), or a full disk, must not keep the run from its reports."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
