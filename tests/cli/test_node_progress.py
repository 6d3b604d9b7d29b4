import io

import pytest
from nipype.interfaces.utility import Function, IdentityInterface
from nipype.pipeline import engine as pe

from bids_gsrecon.cli.node_progress import NodeProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def workflow():
    inner = pe.Workflow('inner')
    inner.add_nodes(
        [pe.Node(Function(input_names=['x'], output_names=['y']), name=f'n{i}') for i in range(4)]
    )
    inner.add_nodes([pe.Node(IdentityInterface(fields=['x']), name='inputnode')])
    outer = pe.Workflow('outer')
    outer.add_nodes([inner])
    return outer


def test_bar_reaches_the_end_with_the_last_node(workflow):
    stream = Terminal()
    nodes = [workflow.get_node(f'inner.n{i}') for i in range(4)]
    with NodeProgress(workflow, stream) as progress:
        progress(nodes[0], 'start')
        progress(nodes[0], 'end')
        progress(nodes[0], 'end')  # nipype reports a cached node twice
        assert progress._bar.n == 1
        for node in nodes[1:]:
            progress(node, 'exception')
        assert progress._bar.n == progress._bar.total == 4, 'identity nodes do not count'
    assert '100%' in stream.getvalue()
    assert 'left' in stream.getvalue()


def test_nothing_is_drawn_for_a_file(workflow):
    stream = io.StringIO()
    with NodeProgress(workflow, stream) as progress:
        progress(workflow.get_node('inner.n0'), 'end')
    assert stream.getvalue() == ''
