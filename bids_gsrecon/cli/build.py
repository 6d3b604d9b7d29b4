"""Plan the run and build its graph, in a child process: pybids and its memory do not stay with the run."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError

if TYPE_CHECKING:
    from bids_gsrecon.workflows.plan_types import ParticipantPlan


@dataclass
class Build:
    """What the child made.

    Attributes
    ----------
    plans
        One per participant.
    workflow
        The nipype workflow; None if no participant has anything to run.
    boilerplate
        Markdown of the methods text.
    backend
        Which one renders the Gaussians; empty if nothing runs.
    """

    plans: list[ParticipantPlan] = field(default_factory=list)
    workflow: Any = None
    boilerplate: str = ''
    backend: str = ''


class BuildError(RuntimeError):
    """The graph could not be built; the message is the child's traceback or why it died."""


def build(config: Config) -> Build:
    """Plan every participant and wire the graph.

    Raises
    ------
    InputError
        Settings that only the data show to be wrong.
    """
    from bids_gsrecon.cli.execute import apply_nipype_settings
    from bids_gsrecon.cli.parser import read_filters
    from bids_gsrecon.gpu import available_backends
    from bids_gsrecon.workflows.base import init_bids_gsrecon_wf
    from bids_gsrecon.workflows.boilerplate import write_boilerplate
    from bids_gsrecon.workflows.plan import plan_participants
    from bids_gsrecon.workflows.registry import RECONS

    apply_nipype_settings(config)
    filter_file = config.execution.bids_filter_file
    plans = plan_participants(config, read_filters(filter_file) if filter_file else {})
    workflow, boilerplate, backend = None, '', ''
    if any(plan.sessions for plan in plans):
        workflow = init_bids_gsrecon_wf(config=config, plans=plans)
        boilerplate = write_boilerplate(workflow.visit_desc())
        device = config.method.device
        if not any(RECONS[plan.recon].on_gpu for plan in plans if plan.sessions):
            device = 'cpu'
        backend = available_backends()[-1] if device == 'auto' else device
    return Build(plans, workflow, boilerplate, backend)


def build_in_child(config: Config) -> Build:
    """`build` in a process of its own, which reads the settings from the run's TOML file.

    Raises
    ------
    InputError
        As `build`.
    BuildError
        Anything else that went wrong in the child.
    """
    config_file = config.to_toml(config.run_dir / 'config.toml')
    result_file = config.run_dir / 'graph.pkl'
    context = multiprocessing.get_context('spawn')
    child = context.Process(target=_child, args=(str(config_file), str(result_file)), name='build')
    child.start()
    child.join()
    if not result_file.is_file():
        raise BuildError(f'the process that builds the graph died (exit code {child.exitcode})')
    kind, content = pickle.loads(result_file.read_bytes())
    result_file.unlink()
    if kind == 'input':
        raise InputError(content)
    if kind == 'error':
        raise BuildError(content)
    return content


def _child(config_file: str, result_file: str) -> None:
    try:
        answer = ('build', build(Config.from_toml(config_file)))
        content = pickle.dumps(answer)
    except InputError as error:
        content = pickle.dumps(('input', str(error)))
    except Exception:
        content = pickle.dumps(('error', traceback.format_exc()))
    temporary = Path(f'{result_file}.{os.getpid()}')
    temporary.write_bytes(content)
    os.replace(temporary, result_file)
