"""What will be done for each participant, decided from file names, headers and sidecars alone.

Everything that a header can tell goes wrong here, before any graph is built: a participant with a problem is
marked failed with one sentence, the others run. This module chooses the method; what it makes of the scans is
planned by the method's own module.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.bids import BidsName
from bids_gsrecon.interfaces.headers import read_header
from bids_gsrecon.workflows.collect import collect_files, make_layout
from bids_gsrecon.workflows.plan_harmonize import Roles, find_roles
from bids_gsrecon.workflows.plan_superres import is_anisotropic
from bids_gsrecon.workflows.plan_target import by_session
from bids_gsrecon.workflows.plan_types import ParticipantPlan, Scan
from bids_gsrecon.workflows.registry import RECONS, not_runnable_message, session_planner

DIFFERENT_ORIENTATION_DEG = 30.0


def plan_participants(config: Config, filters: dict[str, dict]) -> list[ParticipantPlan]:
    """A plan for every participant of the run, also for those that were asked for and do not exist."""
    execution = config.execution
    layout = make_layout(config.bids_dir, execution.participant_label, execution.bids_database_dir)
    plans = []
    for label in execution.participant_label:
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
    if not RECONS[recon].runnable:
        plan.errors.append(f'sub-{participant}: {plan.reason}. {not_runnable_message(recon)}')
        return plan
    plan.recon = recon
    session_planner(recon)(config, plan, scans)
    return plan


def _choose_recon(config: Config, participant: str, scans: list[Scan]) -> tuple[str, str]:
    if config.method.recon != 'auto':
        return config.method.recon, 'as asked for'
    suffix = config.method.reference
    roles: Roles = find_roles(scans, suffix)
    if roles.chosen and roles.others:
        kinds = ', '.join(sorted({s.name.suffix for s in roles.others}))
        return 'harmonize', f'a {suffix} and further contrasts ({kinds})'
    if list(config.bids_dir.glob(f'sourcedata/sub-{participant}/**/cmr/*_cine.*')):
        return 'cine', 'it has k-space under sourcedata, which suits --recon cine'
    thick = [s for s in [*roles.others, *roles.chosen.values()] if s.header.is_thick]
    normals = [s.header.slice_normal for s in thick if s.name.suffix == 'T2w']
    cosine = np.cos(np.radians(DIFFERENT_ORIENTATION_DEG))
    if any(abs(float(a @ b)) < cosine for i, a in enumerate(normals) for b in normals[:i]):
        return (
            'svr',
            f'it has no {suffix} but {len(normals)} thick T2w stacks in different orientations, which suit --recon svr',
        )
    lone = all(len(own) == 1 for own in by_session(scans).values())
    if scans and lone and all(is_anisotropic(scan) for scan in scans):
        kinds = ', '.join(sorted({s.name.suffix for s in scans}))
        return 'superres', f'a lone anisotropic scan ({kinds})'
    return 'harmonize', 'no other method fits the data'
