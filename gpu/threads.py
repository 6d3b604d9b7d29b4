"""How many threads the numba kernels and torch use."""

from __future__ import annotations

from contextlib import contextmanager

import numba
import torch


def set_num_threads(n: int) -> int:
    """Use ``n`` threads from here on (at most what numba was started with); return what is used.

    Results of the kernels do not depend on it, to the last bit.
    """
    n = max(1, min(int(n), numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(n)
    torch.set_num_threads(n)
    return n


@contextmanager
def thread_limit(n: int | None):
    """Use ``n`` threads inside the block; None (or 0) leaves the numbers alone."""
    if not n:
        yield
        return
    before = numba.get_num_threads(), torch.get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])
