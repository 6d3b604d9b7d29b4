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


def killed_sentence(step: str, mem_gb: float, why: str) -> str:
    """About a step whose process was lost: what it was given, and what to do.

    Parameters
    ----------
    step
        Full name of the node.
    mem_gb
        What it was planned with.
    why
        How it is known; names the signal, if that is known.
    """
    if 'SIG' in why and 'SIGKILL' not in why:  # the kernel takes memory back by SIGKILL alone
        return (
            f'the process of {step} crashed ({why}): run the same command again; if it crashes again, report it with '
            'the crash file.'
        )
    return (
        f'the process of {step} was killed, most likely out of memory (it was planned with {mem_gb:.1f} GB; {why}): '
        'give the job more memory, or lower --mem or --nprocs so that fewer steps run at a time, and run the same '
        'command again.'
    )
