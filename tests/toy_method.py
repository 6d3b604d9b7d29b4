"""A method that computes nothing, in the place of ``--recon superres``: the app without the seconds of numerics.

``python -m tests.toy_method BIDS OUT participant ...`` is the app. Every image goes through two nodes, the second of
which waits for the file ``TOY_WAIT``.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

from bids_gsrecon.workflows.registry import RECONS

SLOW = 'double'  # the node that waits

HERE = 'tests.toy_method'
RECONS['superres'] = replace(
    RECONS['superres'],
    planner=f'{HERE}:plan_sessions',
    builder=f'{HERE}:init_session_wf',
    results=f'{HERE}:session_results',
    on_gpu=False,
)


def plan_sessions(config, plan, scans):
    from bids_gsrecon.workflows.plan_target import nothing_found, plan_target
    from bids_gsrecon.workflows.plan_types import SessionPlan

    if not scans and not plan.errors:
        plan.errors.append(nothing_found(config, plan.participant))
        return
    targets = [plan_target(config, plan, scan) for scan in scans]
    plan.sessions.append(SessionPlan(plan.participant, None, targets))


def session_results(config, session):
    return [_out(target) for target in session.targets]


def _out(target):
    return target.name.replaced(desc='toy').path('.nii.gz')


def init_session_wf(*, config, session, name):
    from nipype.pipeline import engine as pe

    from bids_gsrecon.workflows.literate import LiterateWorkflow
    from bids_gsrecon.workflows.outputs import derivative_sink

    workflow = LiterateWorkflow(name=name)
    for number, target in enumerate(session.targets):
        copy = pe.Node(interface()(in_file=target.file, factor=1.0), name=f'copy{number}', mem_gb=0.2)
        double = pe.Node(interface()(factor=2.0, waits=True), name=f'{SLOW}{number}', mem_gb=0.2)
        sink = derivative_sink(config, f'ds{number}', _out(target), {'SkullStripped': False})
        workflow.connect(
            [(copy, double, [('out_file', 'in_file')]), (double, sink, [('out_file', 'in_file')])]
        )
    return workflow


def interface():
    """The nipype interface; made late, as nipype must not be imported by ``--help``."""
    from tests.toy_interface import Scale

    return Scale


def wait():
    """What the slow node does besides: nothing, or waiting for the file ``TOY_WAIT``, a minute at most."""
    path = os.environ.get('TOY_WAIT')
    deadline = time.monotonic() + 60
    while path and not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.02)


def main():
    # What is pickled must belong to the module of this name, not to __main__.
    import tests.toy_method  # noqa: F401 - see above
    from bids_gsrecon.cli.run import main as run

    return run()


if __name__ == '__main__':
    sys.exit(main())
