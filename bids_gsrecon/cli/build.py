"""Plan the run and build its graph."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bids_gsrecon.config import Config

if TYPE_CHECKING:
    from bids_gsrecon.workflows.plan_types import ParticipantPlan


@dataclass
class Build:
    """What a run is made of.

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


def build(config: Config) -> Build:
    """Plan every participant and wire the graph.

    Raises
    ------
    InputError
        Settings that only the data show to be wrong.
    """
    from bids_gsrecon.cli.execute import apply_nipype_settings
    from bids_gsrecon.cli.limits import check_free_space, memory_messages
    from bids_gsrecon.cli.parser import read_filters
    from bids_gsrecon.workflows.base import init_bids_gsrecon_wf
    from bids_gsrecon.workflows.boilerplate import write_boilerplate
    from bids_gsrecon.workflows.plan import plan_participants

    apply_nipype_settings(config)
    filter_file = config.execution.bids_filter_file
    plans = plan_participants(config, read_filters(filter_file) if filter_file else {})
    workflow, boilerplate, backend = None, '', ''
    if any(plan.sessions for plan in plans):
        check_free_space(config, plans)
        backend = _backend(config, plans)
        config.resources.uses_gpu = backend == 'cuda'
        workflow = init_bids_gsrecon_wf(config=config, plans=plans)
        boilerplate = write_boilerplate(workflow.visit_desc())
        for plan in plans:
            plan.messages += memory_messages(config, workflow, plan.participant)
    return Build(plans, workflow, boilerplate, backend)


def _backend(config: Config, plans: list[ParticipantPlan]) -> str:
    """What renders: ``cuda``, ``cpu`` (or ``reference``, where it must)."""
    from bids_gsrecon.workflows.registry import RECONS

    if not any(RECONS[plan.recon].on_gpu for plan in plans if plan.sessions):
        return 'cpu'
    if config.method.device != 'auto':
        return config.method.device
    if not has_cuda_driver():
        return 'cpu'
    from bids_gsrecon.gpu import available_backends

    return available_backends()[-1]


def has_cuda_driver() -> bool:
    """Whether this machine can have a CUDA device at all; importing torch to ask takes seconds."""
    import ctypes

    try:
        ctypes.CDLL('libcuda.so.1' if sys.platform == 'linux' else 'nvcuda.dll')
    except OSError:
        return False
    return True
