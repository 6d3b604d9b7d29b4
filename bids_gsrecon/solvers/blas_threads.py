"""One thread for BLAS, where our own loops are the parallel ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep BLAS to one thread inside the block.

    Matrix products of a parallel loop are small: threads inside each of them cost five times what they bring, and
    fight with those of the loop.
    """
    import scipy.linalg.cython_blas  # noqa: F401  (numba's products use this BLAS, which must be loaded to be limited)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api='blas'):
        yield
