"""The whole run: one workflow per participant, one inside it per session."""

from __future__ import annotations

from copy import deepcopy

import bids_gsrecon
from bids_gsrecon.config import Config
from bids_gsrecon.workflows.literate import LiterateWorkflow
from bids_gsrecon.workflows.names import ROOT_NAME, crash_folder, participant_name
from bids_gsrecon.workflows.plan_types import ParticipantPlan
from bids_gsrecon.workflows.registry import session_builder


def init_bids_gsrecon_wf(
    *, config: Config, plans: list[ParticipantPlan], name: str = ROOT_NAME
) -> LiterateWorkflow:
    """Every participant that has something to run.

    The name carries neither version nor run, so that a second run finds what the first one did.

    Parameters
    ----------
    config
        Settings of the run.
    plans
        One per participant; those without sessions are left out.
    """
    workflow = LiterateWorkflow(name=name, base_dir=str(config.work_dir))
    workflow.__desc__ = (
        f'Images were reconstructed with bids_gsrecon {bids_gsrecon.__version__}, which is based on Nipype [@nipype] '
        'and reads and writes data by the Brain Imaging Data Structure [@bids] with PyBIDS [@pybids].'
    )
    workflow.__postdesc__ = 'Image files were read and written with NiBabel [@nibabel].'
    for plan in plans:
        if plan.sessions:
            participant_wf = init_participant_wf(config=config, plan=plan)
            workflow.add_nodes([participant_wf])
            crash_dir = str(crash_folder(config.log_dir, plan.participant))
            participant_wf.config['execution']['crashdump_dir'] = crash_dir
            for node in participant_wf._get_all_nodes():
                node.config = deepcopy(participant_wf.config)
    return workflow


def init_participant_wf(*, config: Config, plan: ParticipantPlan, name: str = '') -> LiterateWorkflow:
    """All sessions of one participant.

    Parameters
    ----------
    config, plan
        Settings of the run and what the planner decided.
    name
        ``sub_<label>_wf`` by default.
    """
    workflow = LiterateWorkflow(name=name or participant_name(plan.participant))
    builder = session_builder(plan.recon)
    for session in plan.sessions:
        session_name = f'ses_{session.session}_wf' if session.session else 'session_wf'
        workflow.add_nodes([builder(config=config, session=session, name=session_name)])
    return workflow
