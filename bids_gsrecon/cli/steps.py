"""Which steps of a run are at work: written down while they are, to be read if the run is killed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bids_gsrecon.config import Config
from bids_gsrecon.errors import killed_sentence

NAME = 'steps.json'


@dataclass
class Step:
    """A node of the graph that was started and not seen to end."""

    name: str
    mem_gb: float

    def killed(self, why: str) -> str:
        """Content of its crash file, as nipype writes one."""
        return crash_text(self.name, killed_sentence(self.name, self.mem_gb, why))


def crash_text(step: str, sentence: str) -> str:
    """Content of a crash file, as `outcome.error_sentence` reads them."""
    return f'Node: {step}\n\nTraceback (most recent call last):\nbids_gsrecon.errors.InputError: {sentence}\n'


def write_steps(folder: Path, steps: dict[str, float]) -> None:
    """``steps``: full name and planned memory in GB of every node at work. Nothing fails for want of this file."""
    import contextlib
    import os

    temporary = folder / f'.tmp-{NAME}'
    try:
        if not steps:
            (folder / NAME).unlink(missing_ok=True)
            return
        temporary.write_text(json.dumps(steps) + '\n')
        os.replace(temporary, folder / NAME)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def running_steps(config: Config) -> list[Step]:
    """Those of the last run of this log folder."""
    try:
        table = json.loads((config.log_dir / NAME).read_text())
        return [Step(name, float(mem_gb)) for name, mem_gb in table.items()]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
