"""What will be done for each participant, decided from file names, headers and sidecars alone.

Everything that a header can tell goes wrong here, before any graph is built: a participant with a problem is
marked failed with one sentence, the others run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.bids import BidsName
from bids_gsrecon.interfaces.headers import (
    Header,
    b0_volumes,
    check_stack,
    read_header,
    read_metadata,
    slice_axis,
    slice_thickness_mm,
)
from bids_gsrecon.workflows.collect import collect_files, find_derivative, make_layout
from bids_gsrecon.workflows.registry import RECONS, not_runnable_message

DIFFERENT_ORIENTATION_DEG = 30.0


@dataclass
class TargetPlan:
    """One contrast to harmonise; ``volumes`` (of a series, [] for all) are averaged if ``average``."""

    file: str
    shape: list[int]
    slice_axis: int
    slice_thickness_mm: float
    slice_profile: str
    average: bool = False
    volumes: list[int] = field(default_factory=list)

    @property
    def name(self) -> BidsName:
        return BidsName.parse(self.file)


@dataclass
class SessionPlan:
    """One session: its reference (perhaps of another session) and its contrasts."""

    participant: str
    session: str | None
    reference: str
    reference_shape: list[int]
    reference_voxels_mm: list[float]
    targets: list[TargetPlan]
    mask: str = ''
    scaffold: str = ''

    @property
    def label(self) -> str:
        return f'sub-{self.participant}' + (f'_ses-{self.session}' if self.session else '')


@dataclass
class ParticipantPlan:
    """All of one participant.

    Attributes
    ----------
    recon
        Method that runs; empty if none does.
    reason
        Why ``--recon auto`` chose it.
    sessions
        What runs.
    errors
        One sentence per problem; any of them makes the participant fail, what else there is still runs.
    messages
        Choices a user may want to know.
    """

    participant: str
    recon: str = ''
    reason: str = ''
    sessions: list[SessionPlan] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def nothing_to_do(self) -> bool:
        return not self.sessions and not self.errors

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass
class _Scan:
    path: Path
    name: BidsName
    header: Header

    @property
    def session(self) -> str | None:
        return self.name.entities.get('ses')

    @property
    def voxel_mm3(self) -> float:
        return float(np.prod(self.header.voxel_sizes_mm))


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
        )
        plans.append(plan_participant(config, label, files))
    for label in execution.unknown_participants:
        error = f'sub-{label} is not in {config.bids_dir}: correct --participant-label.'
        plans.append(ParticipantPlan(label, errors=[error]))
    return plans


def plan_participant(config: Config, participant: str, files: list[Path]) -> ParticipantPlan:
    """Decide what to do with the images of one participant."""
    plan = ParticipantPlan(participant)
    suffix = config.method.reference
    scans = []
    for path in files:
        try:
            scans.append(_Scan(path, BidsName.parse(path), read_header(path)))
        except InputError as error:
            plan.errors.append(str(error))
    references = [s for s in scans if _may_be_reference(s, suffix)]
    for scan in [s for s in references if len(s.header.shape) > 3]:
        plan.errors.append(
            f'{scan.path} has {len(scan.header.shape)} dimensions where 3 are needed: extract one volume (or average).'
        )
    references = [s for s in references if len(s.header.shape) == 3]
    enhanced = [s for s in references if _is_enhanced(s, references)]
    chosen = _reference_by_session([s for s in references if s not in enhanced], plan)
    others = [s for s in scans if not _may_be_reference(s, suffix)] + enhanced
    recon, plan.reason = _choose_recon(config, participant, chosen, others)
    if recon and not RECONS[recon].runnable:
        plan.errors.append(f'sub-{participant}: {plan.reason}. {not_runnable_message(recon)}')
        return plan
    if not chosen:
        if not plan.errors:
            plan.errors.append(_no_reference_message(config, participant, others))
        return plan
    plan.recon = recon
    _plan_sessions(config, plan, chosen, others, scans)
    return plan


def _may_be_reference(scan: _Scan, suffix: str) -> bool:
    return scan.name.suffix == suffix and scan.name.datatype == 'anat'


def _is_enhanced(scan: _Scan, references: list[_Scan]) -> bool:
    """A contrast-enhanced image of the reference's suffix is a contrast, where a plain one is the reference."""
    return 'ce' in scan.name.entities and any('ce' not in s.name.entities for s in references)


def _reference_by_session(references: list[_Scan], plan: ParticipantPlan) -> dict[str | None, _Scan]:
    """The finest image of each session: not thick before thick, then smallest voxels."""
    chosen: dict[str | None, _Scan] = {}
    for session in sorted({s.session for s in references}, key=str):
        candidates = sorted(
            (s for s in references if s.session == session),
            key=lambda s: (
                s.header.is_thick,
                round(float(s.header.voxel_sizes_mm.max()), 2),
                round(s.voxel_mm3, 3),
                s.path.name,
            ),
        )
        chosen[session] = candidates[0]
        if candidates[1:]:
            names = ', '.join(s.path.name for s in candidates[1:])
            plan.messages.append(
                f'{candidates[0].path.name} is the reference (finest voxels); not used: {names}'
            )
    return chosen


def _choose_recon(config: Config, participant: str, chosen: dict, others: list[_Scan]) -> tuple[str, str]:
    if config.method.recon != 'auto':
        return config.method.recon, f'--recon {config.method.recon}'
    suffix = config.method.reference
    if chosen and others:
        kinds = ', '.join(sorted({s.name.suffix for s in others}))
        return 'harmonize', f'a {config.method.reference} and further contrasts ({kinds})'
    if list(config.bids_dir.glob(f'sourcedata/sub-{participant}/**/cmr/*_cine.*')):
        return 'cine', 'it has k-space under sourcedata, which suits --recon cine'
    thick = [s for s in [*others, *chosen.values()] if s.header.is_thick]
    normals = [s.header.slice_normal for s in thick if s.name.suffix == 'T2w']
    cosine = np.cos(np.radians(DIFFERENT_ORIENTATION_DEG))
    if any(abs(float(a @ b)) < cosine for i, a in enumerate(normals) for b in normals[:i]):
        return (
            'svr',
            f'it has no {suffix} but {len(normals)} thick T2w stacks in different orientations, which suit --recon svr',
        )
    if len(thick) == 1 and len(others) + len(chosen) == 1:
        return 'superres', f'it has no {suffix} but a single anisotropic scan, which suits --recon superres'
    return 'harmonize', 'no other method fits the data'


def _no_reference_message(config: Config, participant: str, others: list[_Scan]) -> str:
    suffix = config.method.reference
    if not others:
        where = (
            f' in session {", ".join(config.execution.session_label)}'
            if config.execution.session_label
            else ''
        )
        return f'sub-{participant} has no anatomical image{where} in {config.bids_dir}: nothing can be reconstructed.'
    return (
        f'sub-{participant} has no {suffix} image in {config.bids_dir}: add one, or name another contrast with '
        f'--reference {_finest(others).name.suffix} (its finest).'
    )


def _finest(scans: list[_Scan]) -> _Scan:
    anatomical = [s for s in scans if s.name.datatype == 'anat' and len(s.header.shape) == 3] or scans
    return min(
        anatomical, key=lambda s: (round(float(s.header.voxel_sizes_mm.max()), 2), s.voxel_mm3, s.path.name)
    )


def _plan_sessions(
    config: Config, plan: ParticipantPlan, chosen, others: list[_Scan], scans: list[_Scan]
) -> None:
    suffix = config.method.reference
    sessions = sorted({s.session for s in [*others, *chosen.values()]}, key=str)
    for session in sessions:
        own = [s for s in others if s.session == session]
        if not own:
            where = f'ses-{session}' if session else f'sub-{plan.participant}'
            plan.messages.append(f'{where} has only its {suffix}: nothing to harmonise there')
            continue
        reference = chosen.get(session) or next(iter(chosen.values()))
        if session not in chosen:
            plan.messages.append(
                f'ses-{session} has no {suffix}: that of ses-{reference.session} is its reference'
            )
        problem = _reference_problem(config, reference, scans)
        if problem:
            if problem not in plan.errors:
                plan.errors.append(problem)
            continue
        targets = []
        for scan in own:
            try:
                targets.append(_plan_target(config, plan, scan))
            except InputError as error:
                plan.errors.append(str(error))
        if not targets:
            continue
        folders = config.execution.derivatives
        mask = find_derivative(folders, plan.participant, reference.session, '*desc-brain_mask.nii*')
        scaffold = find_derivative(
            folders, plan.participant, reference.session, f'*desc-scaffold_{suffix}.h5'
        )
        if folders and not mask:
            plan.messages.append('no *_desc-brain_mask.nii.gz in --derivatives: the brain mask will be found')
        plan.sessions.append(
            SessionPlan(
                participant=plan.participant,
                session=session,
                reference=str(reference.path),
                reference_shape=list(reference.header.shape),
                reference_voxels_mm=[round(float(v), 5) for v in reference.header.voxel_sizes_mm],
                targets=targets,
                mask=str(mask or ''),
                scaffold=str(scaffold or ''),
            )
        )


def _reference_problem(config: Config, scan: _Scan, scans: list[_Scan]) -> str:
    header = scan.header
    if min(header.shape) < 2:
        return f'{scan.path} is a single slice {header.shape}: the reference must be a whole volume.'
    if not header.is_thick or config.method.reference_chosen:
        return ''
    sizes = ' x '.join(f'{v:.2g}' for v in header.voxel_sizes_mm)
    finest = _finest(scans)
    return (
        f'{scan.path} has thick slices itself ({sizes} mm) and so cannot be the scaffold of the other contrasts: '
        f'use an isotropic scan, or accept the finest contrast there is with --reference {finest.name.suffix}.'
    )


def _plan_target(config: Config, plan: ParticipantPlan, scan: _Scan) -> TargetPlan:
    """Slices and volumes of one contrast.

    Raises
    ------
    InputError
        A series where one volume is needed, a single slice, no b=0.
    """
    header, name = scan.header, scan.name
    check_stack(scan.path, header.shape)
    n_volumes = header.shape[3] if len(header.shape) > 3 else 1
    average, volumes = False, []
    if name.datatype == 'dwi':
        volumes = b0_volumes(scan.path, n_volumes)
        average = n_volumes > 1
    elif n_volumes > 1:
        if name.datatype != 'perf':
            raise InputError(
                f'{scan.path} has 4 dimensions where 3 are needed: extract one volume (or average).'
            )
        average = True
    metadata = read_metadata(scan.path, config.bids_dir)
    axis, axis_remark = slice_axis(header, metadata)
    thickness, thickness_remark = slice_thickness_mm(float(header.voxel_sizes_mm[axis]), metadata)
    plan.messages += [f'{scan.path.name}: {text}' for text in (axis_remark, thickness_remark) if text]
    profile = config.method.slice_profile
    return TargetPlan(
        file=str(scan.path),
        shape=list(header.shape[:3]),
        slice_axis=axis,
        slice_thickness_mm=round(thickness, 5),
        slice_profile='box' if profile == 'auto' else profile,
        average=average,
        volumes=volumes if average else [],
    )
