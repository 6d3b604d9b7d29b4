"""Processes of a run: none outlives the run, and all end when it is told to."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator

KILLED = 137  # as a shell reports a process that was killed


def follow_parent() -> None:
    """Let this process end with its parent, however that ends.

    A parent that is killed cannot end its children: they would go on computing, or wait for ever for work, and hold
    memory that a second run needs.
    """
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it reaches all; the first process decides
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == 'linux':
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    thread = threading.Thread(target=_end_with, args=(parent.sentinel,), name='follow-parent', daemon=True)
    thread.start()


def interrupt_on_signals() -> None:
    """SIGTERM (`scancel`, a time limit) and SIGHUP (a lost terminal) as Ctrl-C: `KeyboardInterrupt` in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ('SIGTERM', 'SIGHUP'):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to a quarter of a GB: volumes come and go by the hundred.

    Else each is mapped anew, page by page as it is touched. Other C libraries are left as they are.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 1 << 28)  # M_TRIM_THRESHOLD: of memory at the top, before it is given back
        mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD: what is larger is mapped by itself, and given back at once


@contextlib.contextmanager
def starting_up() -> Iterator[None]:
    """Look for no garbage while modules are loaded and inputs are read, nor ever again among what is there then.

    Modules consist of very many objects, none of them garbage, which would be looked through again and again as they
    get more.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end_with(sentinel: int) -> None:
    from multiprocessing.connection import wait

    wait([sentinel])
    os._exit(KILLED)


def end_tree(process, *, grace_s: float) -> None:
    """End a process and all its children: asked to first, and killed after ``grace_s`` seconds.

    Parameters
    ----------
    process
        A `multiprocessing.Process`.
    """
    import psutil

    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.Error:
        tree = []
    for one in tree:
        with contextlib.suppress(psutil.Error):
            one.terminate()
    process.join(grace_s)  # it is our child: psutil alone would see it as a zombie
    _, alive = psutil.wait_procs(tree[1:], timeout=grace_s)
    for one in [*tree[:1], *alive]:
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.join()


def end_children() -> None:
    """End all children of this process at once."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.terminate()
