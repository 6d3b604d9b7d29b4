"""How long the stages took."""

from __future__ import annotations

import time


class Clock:
    """Seconds of processor time, which other programs on the machine do not change much."""

    def __init__(self):
        self._last = time.process_time()

    def add(self, stage, seconds):
        """Add what was spent since the last call to ``seconds[stage]``."""
        now = time.process_time()
        seconds[stage] = seconds.get(stage, 0.0) + now - self._last
        self._last = now
