"""What will be done for each participant, decided from file names, headers and sidecars alone.

Everything that a header can tell goes wrong here, before any graph is built: a participant with a problem is
marked failed with one sentence, the others run. This module chooses the method; what it makes of the scans is
planned by the method's own module.
"""

from __future__ import annotations

from pathlib import Path

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.bids import BidsName
from bids_gsrecon.interfaces.headers import read_header
from bids_gsrecon.interfaces.kspace_files import kspace_files
from bids_gsrecon.workflows.collect import collect_files, make_layout
from bids_gsrecon.workflows.plan_harmonize import Roles, find_roles
from bids_gsrecon.workflows.plan_superres import is_anisotropic
from bids_gsrecon.workflows.plan_svr import full_sets
from bids_gsrecon.workflows.plan_target import by_session
from bids_gsrecon.workflows.plan_types import ParticipantPlan, Scan
from bids_gsrecon.workflows.registry import session_planner


def plan_participants(config: Config, filters: dict[str, dict]) -> list[ParticipantPlan]:
    """A plan for every participant of the run, also for those that were asked for and do not exist."""
    execution = config.execution
    layout = None
    if config.method.recon != 'cine':  # which takes nothing that BIDS knows
        layout = make_layout(config.bids_dir, execution.participant_label, execution.bids_database_dir)
    plans = []
    for label in execution.participant_label:
        files = []
        if layout is not None:
            files = collect_files(
                layout,
                label,
                sessions=execution.session_label,
                filters=filters,
                reference=config.method.reference,
                parts_of_maps=config.method.recon == 'superres',
            )
        plans.append(plan_participant(config, label, files))
    for label in execution.unknown_participants:
        error = f'sub-{label} is not in {config.bids_dir}: correct --participant-label.'
        plans.append(ParticipantPlan(label, errors=[error]))
    for label, error in execution.busy_participants.items():
        plans.append(ParticipantPlan(label, errors=[error]))
    return plans


def plan_participant(config: Config, participant: str, files: list[Path]) -> ParticipantPlan:
    """Decide what to do with the images of one participant."""
    plan = ParticipantPlan(participant)
    scans = []
    for path in files:
        try:
            scans.append(Scan(path, BidsName.parse(path), read_header(path)))
        except InputError as error:
            plan.errors.append(str(error))
    recon, plan.reason = _choose_recon(config, participant, scans)
    plan.recon = recon
    if recon == 'cine':  # broken images are no reason to fail
        plan.messages, plan.errors = plan.errors, []
    elif config.method.recon == 'auto' and (raw := _kspace(config, participant)):
        plan.messages.append(f'it has k-space too ({raw}), which --recon cine would reconstruct')
    session_planner(recon)(config, plan, scans)
    return plan


def _choose_recon(config: Config, participant: str, scans: list[Scan]) -> tuple[str, str]:
    method = config.method
    if method.recon != 'auto':
        return method.recon, 'as asked for'
    suffix = method.reference
    roles: Roles = find_roles(scans, suffix)
    exam = 'harmonize', f'a {suffix} and further contrasts ({_kinds(roles.others)})'
    is_fine = any(not scan.header.is_thick for scan in roles.chosen.values())
    if roles.others and roles.chosen and (is_fine or method.reference_chosen):
        return exam
    if raw := _kspace(config, participant):
        return 'cine', f'no isotropic {suffix} with further contrasts, but k-space under sourcedata ({raw})'
    if not method.reference_chosen and (sets := full_sets(scans)):
        numbers = ', '.join(f'{len(stacks)} {stacks[0].name.suffix}' for stacks in sets)
        return 'svr', f'no isotropic {suffix}, but stacks of thick slices in different directions ({numbers})'
    if roles.others and roles.chosen:
        return exam
    lone = all(len(own) == 1 for own in by_session(scans).values())
    if scans and lone and all(is_anisotropic(scan) for scan in scans):
        return 'superres', f'a lone anisotropic scan ({_kinds(scans)})'
    return 'harmonize', 'no other method fits the data'


def _kspace(config: Config, participant: str) -> str:
    """How many files of k-space there are, in words; empty: none."""
    files = kspace_files(config.bids_dir, participant, config.execution.session_label)
    return f'{len(files)} cine file{"s" if len(files) > 1 else ""}' if files else ''


def _kinds(scans: list[Scan]) -> str:
    return ', '.join(sorted({scan.name.suffix for scan in scans}))
