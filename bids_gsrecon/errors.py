"""Errors that a user can act on: one sentence that names the file and the remedy."""


class InputError(ValueError):
    """The input cannot be used; the message says which file, why, and what to do.

    The command line prints the message alone (no traceback unless ``--verbose`` asks for it).
    """
