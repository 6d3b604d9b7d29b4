"""How many threads the numba kernels and torch use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numba


def set_num_threads(n: int) -> int:
    """Use ``n`` threads from here on (at most what numba was started with); return what is used.

    Torch is told if it is loaded: load it before where its threads matter. Results of the kernels do not depend on
    the number, to the last bit.
    """
    n = max(1, min(int(n), numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(n)
    if torch := sys.modules.get('torch'):
        torch.set_num_threads(n)
    return n


@contextmanager
def thread_limit(n: int | None):
    """Use ``n`` threads inside the block; None (or 0) leaves the numbers alone. Torch: see `set_num_threads`."""
    if not n:
        yield
        return
    torch = sys.modules.get('torch')
    before = numba.get_num_threads(), torch.get_num_threads() if torch else None
    set_num_threads(n)
    try:
        yield
    finally:
        numba.set_num_threads(before[0])
        if torch:
            torch.set_num_threads(before[1])


def side_by_side(function: Callable, items: Sequence) -> list:
    """``[function(item) for item in items]`` on as many threads as the kernels use.

    For work that lets other threads run, filters of scipy or compression, and that starts no kernels itself.
    """
    n = min(numba.get_num_threads(), len(items))
    if n < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(function, items))
