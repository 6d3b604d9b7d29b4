"""Files written side by side."""

import os
import stat
import time

import numba
import pytest

from bids_gsrecon.atomic import write_text
from bids_gsrecon.gpu import side_by_side, thread_limit


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason='needs two threads')
def test_threads_leave_the_umask_alone(tmp_path, monkeypatch):
    umask = os.umask

    def slow_umask(mask):
        old = umask(mask)
        time.sleep(0.002)
        return old

    before = umask(0o027)
    monkeypatch.setattr(os, 'umask', slow_umask)
    try:
        with thread_limit(2):
            side_by_side(lambda n: write_text(tmp_path / str(n), 'x'), range(20))
        assert umask(0o027) == 0o027
    finally:
        umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}
