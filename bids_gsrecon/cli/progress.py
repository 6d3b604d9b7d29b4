"""Progress bars with remaining time; silent where standard error is no terminal."""

from __future__ import annotations

import sys


class ProgressBar:
    """Draws one bar per stage from calls ``progress(stage, done, total)``; use as a context manager."""

    def __init__(self, stream=None):
        self._stream = sys.stderr if stream is None else stream
        self._bar = None
        self._stage = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._stream.isatty():
            return
        if stage != self._stage:
            self.close()
            from tqdm import tqdm

            self._stage = stage
            self._bar = tqdm(
                total=total, desc=f'{stage[:40]:40s}', file=self._stream, leave=True, dynamic_ncols=True
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the current bar, if any."""
        if self._bar is not None:
            self._bar.close()
        self._bar = self._stage = None
