"""A nipype workflow that describes itself: the methods text of a run is what its workflows say."""

from __future__ import annotations

from nipype.pipeline import engine as pe


class LiterateWorkflow(pe.Workflow):
    """Workflow with a description before (``__desc__``) and after (``__postdesc__``) those of its parts."""

    def __init__(self, name: str, base_dir: str | None = None):
        super().__init__(name, base_dir)
        self.__desc__: str = ''
        self.__postdesc__: str = ''

    def visit_desc(self) -> str:
        """The descriptions of this workflow and its parts, in the order they were added, each text once."""
        texts: list[str] = []
        self._collect(texts)
        return '\n\n'.join(texts)

    def _collect(self, texts: list[str]) -> None:
        _append_new(texts, self.__desc__)
        for node in self._graph.nodes():  # networkx keeps the order of insertion
            if isinstance(node, LiterateWorkflow):
                node._collect(texts)
        _append_new(texts, self.__postdesc__)


def _append_new(texts: list[str], text: str) -> None:
    text = ' '.join(text.split())
    if text and text not in texts:
        texts.append(text)
