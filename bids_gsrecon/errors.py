"""Errors that a user can act on: one sentence that names the file and the remedy."""


class InputError(ValueError):
    """The input cannot be used; the message says which file, why, and what to do.

    The command line prints the message alone (no traceback unless ``--verbose`` asks for it).
    """


def sentence(path, error: Exception) -> InputError:
    """``error`` of a pure function ("it does not ...") as the one sentence about the file it was given."""
    text = str(error).rstrip('.')
    return InputError(f'{path} {text[3:]}.' if text.startswith('it ') else f'{path}: {text}.')
