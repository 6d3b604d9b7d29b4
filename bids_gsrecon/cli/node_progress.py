"""One progress bar over all nodes of a run, with the time that is left; silent where no terminal reads it."""

from __future__ import annotations

import sys
from pathlib import Path

from bids_gsrecon.cli.steps import write_steps

# How long a node takes compared with others (about seconds on one contrast of a 1 mm head): a bar over bare
# node counts would stand still during the reconstruction and its estimate would be worthless.
WEIGHTS = {
    'LearnScaffold': 60,
    'HarmonizeContrast': 60,
    'SuperResolve': 60,
    'ReconstructStacks': 60,
    'FindBrainMask': 15,
    'RegisterRigid': 15,
    'CorrectBias': 5,
    'HarmonizeReportlets': 5,
    'PrepareStacks': 5,
    'SuperresReportlets': 5,
    'SvrReportlets': 5,
    'ReferenceReportlets': 3,
}


class NodeProgress:
    """Callback for nipype's ``status_callback``; a context manager that owns the bar.

    Parameters
    ----------
    workflow
        What will run (its nodes are counted).
    stream
        Where to draw; nothing is drawn unless it is a terminal.
    folder
        Where it is written down which nodes are at work.

    Attributes
    ----------
    failed
        Full names of the nodes that ended with an exception.
    """

    def __init__(self, workflow, stream=None, folder: Path | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._folder = folder
        self._memory_gb: dict[str, float] = {}
        self.failed: list[str] = []
        self._total = sum(_weight(node) for node in _leaves(workflow))
        self._running: dict[str, str] = {}
        self._finished: set[str] = set()
        self._bar = None

    def __enter__(self) -> NodeProgress:
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                file=self._stream,
                dynamic_ncols=True,
                bar_format='{percentage:3.0f}% |{bar}| {elapsed} gone, about {remaining} left {postfix}',
            )
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._folder is not None:
            write_steps(self._folder, {})

    def __call__(self, node, status: str) -> None:
        """``status`` is start, end or exception."""
        name = node.fullname
        if status == 'start':
            self._running[name] = node.name
            self._memory_gb[name] = float(node.mem_gb)
        else:
            self._running.pop(name, None)
            self._memory_gb.pop(name, None)
            if status == 'exception':
                self.failed.append(name)
            if name not in self._finished and self._bar is not None:
                self._bar.update(_weight(node))
            self._finished.add(name)
        if self._bar is not None:
            self._bar.set_postfix_str(', '.join(list(self._running.values())[:3]))
        if self._folder is not None:
            write_steps(self._folder, self._memory_gb)


def _weight(node) -> int:
    return WEIGHTS.get(type(node.interface).__name__, 1)


def _leaves(workflow):
    """The nodes that nipype will run: identity nodes are removed before."""
    for name in workflow.list_node_names():
        node = workflow.get_node(name)
        if type(node.interface).__name__ != 'IdentityInterface':
            yield node
