"""How many threads the numba kernels use."""

from __future__ import annotations

from contextlib import contextmanager

import numba


def set_num_threads(n: int) -> int:
    """Use ``n`` threads from here on (at most what numba was started with); return what is used.

    Results do not depend on it, to the last bit.
    """
    n = max(1, min(int(n), numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(n)
    return n


@contextmanager
def thread_limit(n: int | None):
    """Use ``n`` threads inside the block; None leaves the number alone."""
    if n is None:
        yield
        return
    before = numba.get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        numba.set_num_threads(before)
