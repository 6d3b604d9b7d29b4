"""Harmonisation of a participant: which image is the reference, and which contrasts go on its grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.workflows.collect import find_derivative
from bids_gsrecon.workflows.estimates import Estimate
from bids_gsrecon.workflows.plan_target import by_session, finest, nothing_found, plan_target
from bids_gsrecon.workflows.plan_types import ParticipantPlan, Scan, SessionPlan, TargetPlan

# A voxel's mean across the slice is the box; a point would be a slice without thickness.
PROFILES = {'auto': 'box', 'cell': 'box', 'box': 'box', 'gaussian': 'gaussian'}

# Processor seconds per voxel of the reference: what is done to it once, and for every contrast
# (benchmarks/resources.py).
REFERENCE_SECONDS, CONTRAST_SECONDS = 2e-5, 2e-5


@dataclass(kw_only=True)
class HarmonizeSession(SessionPlan):
    """One session: its reference (perhaps of another session) and its contrasts."""

    reference: str
    reference_shape: list[int]
    reference_voxels_mm: list[float]
    mask: str = ''
    scaffold: str = ''

    @property
    def output_voxels(self) -> int:
        return math.prod(self.reference_shape) * (len(self.targets) + 1)


@dataclass
class Roles:
    """Which scans can be references, and what else there is.

    Attributes
    ----------
    chosen
        The reference of each session: not thick before thick, then smallest voxels.
    unused
        Further images of the reference's suffix by session.
    series
        Images of that suffix with more than three dimensions.
    others
        The contrasts.
    """

    chosen: dict[str | None, Scan] = field(default_factory=dict)
    unused: dict[str | None, list[Scan]] = field(default_factory=dict)
    series: list[Scan] = field(default_factory=list)
    others: list[Scan] = field(default_factory=list)


def find_roles(scans: list[Scan], suffix: str) -> Roles:
    """Sort the scans of a participant into references of ``suffix`` and contrasts."""
    candidates = [s for s in scans if s.name.suffix == suffix and s.name.datatype == 'anat']
    volumes = [s for s in candidates if len(s.header.shape) == 3]
    # A contrast-enhanced image of the reference's suffix is a contrast, where a plain one is the reference.
    plain = [s for s in volumes if 'ce' not in s.name.entities]
    enhanced = [s for s in volumes if 'ce' in s.name.entities] if plain else []
    roles = Roles(
        series=[s for s in candidates if len(s.header.shape) > 3],
        others=[s for s in scans if s not in candidates] + enhanced,
    )
    for session, found in by_session([s for s in volumes if s not in enhanced]).items():
        roles.chosen[session], *roles.unused[session] = sorted(
            found,
            key=lambda s: (
                s.header.is_thick,
                round(float(s.header.voxel_sizes_mm.max()), 2),
                round(s.voxel_mm3, 3),
                s.path.name,
            ),
        )
    return roles


def plan_sessions(config: Config, plan: ParticipantPlan, scans: list[Scan]) -> None:
    """Add to ``plan`` what harmonisation makes of the scans of a participant."""
    for session, reference, own in sessions_with_reference(config, plan, scans):
        if targets := _plan_targets(config, plan, own):
            plan.sessions.append(_plan_session(config, plan, session, reference, targets))


def sessions_with_reference(
    config: Config, plan: ParticipantPlan, scans: list[Scan]
) -> Iterator[tuple[str | None, Scan, list[Scan]]]:
    """Every session that has other contrasts, with its reference (perhaps of another session) and those.

    What is wrong with references, and what was chosen, goes into ``plan``.
    """
    suffix = config.method.reference
    roles = find_roles(scans, suffix)
    for scan in roles.series:
        plan.errors.append(
            f'{scan.path} has {len(scan.header.shape)} dimensions where 3 are needed: extract one volume (or average).'
        )
    for session, unused in roles.unused.items():
        if unused:
            names = ', '.join(s.path.name for s in unused)
            plan.messages.append(
                f'{roles.chosen[session].path.name} is the reference (finest voxels); not used: {names}'
            )
    if not roles.chosen:
        if not plan.errors:
            plan.errors.append(_no_reference_message(config, plan.participant, roles.others))
        return
    for session, own in by_session([*roles.others, *roles.chosen.values()]).items():
        own = [s for s in own if s in roles.others]
        if not own:
            where = f'ses-{session}' if session else f'sub-{plan.participant}'
            plan.messages.append(f'{where} has only its {suffix}: nothing to do there')
            continue
        reference = roles.chosen.get(session) or next(iter(roles.chosen.values()))
        if session not in roles.chosen:
            plan.messages.append(
                f'ses-{session} has no {suffix}: that of ses-{reference.session} is its reference'
            )
        if problem := _reference_problem(config, reference, scans):
            if problem not in plan.errors:
                plan.errors.append(problem)
            continue
        yield session, reference, own


def find_reference_mask(config: Config, plan: ParticipantPlan, reference: Scan) -> str:
    """The brain mask of a reference in ``--derivatives``; empty: none there."""
    folders = config.execution.derivatives
    mask = find_derivative(folders, plan.participant, reference.session, '*desc-brain_mask.nii*')
    if folders and not mask:
        plan.messages.append('no *_desc-brain_mask.nii.gz in --derivatives: the brain mask will be found')
    return str(mask or '')


def estimated_memory_gb(config: Config, session: HarmonizeSession) -> float:
    """Peak memory of the scaffold or of a contrast, by the headers."""
    from bids_gsrecon.recon.harmonize import HarmonizeOptions, estimate_memory_gb

    shapes = [target.shape for target in session.targets]
    return estimate_memory_gb(session.reference_shape, shapes, HarmonizeOptions(**config.method.harmonize))


def estimate(config: Config, session: HarmonizeSession) -> Estimate:
    """What a session takes."""
    voxels = math.prod(session.reference_shape)
    seconds = REFERENCE_SECONDS * voxels + len(session.targets) * (CONTRAST_SECONDS * voxels + 20.0)
    return Estimate(estimated_memory_gb(config, session), 40.0 + seconds)


def _plan_targets(config: Config, plan: ParticipantPlan, scans: list[Scan]) -> list[TargetPlan]:
    targets = []
    for scan in scans:
        try:
            target = plan_target(config, plan, scan)
            if target.slice_profile not in PROFILES:
                raise InputError(
                    f'{scan.path} cannot be harmonised with --slice-profile {target.slice_profile}: '
                    'use box or gaussian.'
                )
            targets.append(replace(target, slice_profile=PROFILES[target.slice_profile]))
        except InputError as error:
            plan.errors.append(str(error))
    return targets


def _plan_session(config: Config, plan: ParticipantPlan, session, reference: Scan, targets):
    folders = config.execution.derivatives
    scaffold = find_derivative(
        folders, plan.participant, reference.session, f'*desc-scaffold_{config.method.reference}.h5'
    )
    return HarmonizeSession(
        participant=plan.participant,
        session=session,
        targets=targets,
        reference=str(reference.path),
        reference_shape=list(reference.header.shape),
        reference_voxels_mm=[round(float(v), 5) for v in reference.header.voxel_sizes_mm],
        mask=find_reference_mask(config, plan, reference),
        scaffold=str(scaffold or ''),
    )


def _no_reference_message(config: Config, participant: str, others: list[Scan]) -> str:
    suffix = config.method.reference
    if not others:
        return nothing_found(config, participant)
    return (
        f'sub-{participant} has no {suffix} image in {config.bids_dir}: add one, name another contrast with '
        f'--reference {finest(others).name.suffix} (its finest), or treat every image by itself with '
        '--recon superres.'
    )


def _reference_problem(config: Config, scan: Scan, scans: list[Scan]) -> str:
    header = scan.header
    if min(header.shape) < 2:
        return f'{scan.path} is a single slice {header.shape}: the reference must be a whole volume.'
    if not header.is_thick or config.method.reference_chosen:
        return ''
    sizes = ' x '.join(f'{v:.2g}' for v in header.voxel_sizes_mm)
    return (
        f'{scan.path} has thick slices itself ({sizes} mm) and so cannot guide the other contrasts: '
        f'use an isotropic scan, accept the finest contrast there is with --reference {finest(scans).name.suffix}, '
        'or treat every image by itself with --recon superres.'
    )
