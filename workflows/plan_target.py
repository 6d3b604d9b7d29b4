"""One image of any method: is it usable, which volumes count, how its slices lie."""

from __future__ import annotations

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.headers import (
    b0_volumes,
    check_stack,
    read_metadata,
    slice_axis,
    slice_thickness_mm,
)
from bids_gsrecon.workflows.plan_types import ParticipantPlan, Scan, TargetPlan


def plan_target(config: Config, plan: ParticipantPlan, scan: Scan) -> TargetPlan:
    """Slices and volumes of one image; what there is to say about its slices goes into the plan's messages.

    Raises
    ------
    InputError
        A series where one volume is needed, a single slice, no b=0.
    """
    header = scan.header
    check_stack(scan.path, header.shape)
    average, volumes = _volumes(scan)
    metadata = read_metadata(scan.path, config.bids_dir)
    axis, axis_remark = slice_axis(header, metadata)
    thickness, thickness_remark = slice_thickness_mm(float(header.voxel_sizes_mm[axis]), metadata)
    plan.messages += [f'{scan.path.name}: {text}' for text in (axis_remark, thickness_remark) if text]
    return TargetPlan(
        file=str(scan.path),
        shape=list(header.shape[:3]),
        slice_axis=axis,
        slice_thickness_mm=round(thickness, 5),
        slice_profile=config.method.slice_profile,
        average=average,
        volumes=volumes,
    )


def _volumes(scan: Scan) -> tuple[bool, list[int]]:
    """Whether the image is a series to average, and which of its volumes ([]: all)."""
    shape, datatype = scan.header.shape, scan.name.datatype
    n_volumes = shape[3] if len(shape) > 3 else 1
    if datatype == 'dwi':
        volumes = b0_volumes(scan.path, n_volumes)
        return n_volumes > 1, volumes if n_volumes > 1 else []
    if n_volumes > 1 and datatype != 'perf':
        raise InputError(f'{scan.path} has 4 dimensions where 3 are needed: extract one volume (or average).')
    return n_volumes > 1, []


def finest(scans: list[Scan]) -> Scan:
    """The scan with the smallest voxels, an anatomical one where there is any."""
    anatomical = [s for s in scans if s.name.datatype == 'anat' and len(s.header.shape) == 3] or scans
    return min(
        anatomical, key=lambda s: (round(float(s.header.voxel_sizes_mm.max()), 2), s.voxel_mm3, s.path.name)
    )


def by_session(scans: list[Scan]) -> dict[str | None, list[Scan]]:
    """Scans of each session, sessions in order."""
    sessions = sorted({s.session for s in scans}, key=str)
    return {session: [s for s in scans if s.session == session] for session in sessions}


def nothing_found(config: Config, participant: str) -> str:
    """The sentence about a participant without any image."""
    sessions = config.execution.session_label
    where = f' in session {", ".join(sessions)}' if sessions else ''
    return f'sub-{participant} has no anatomical image{where} in {config.bids_dir}: nothing can be reconstructed.'


def own_space_messages(config: Config) -> list[str]:
    """What to say where ``--output-spaces`` asks for a reference and the method has none."""
    if config.method.reference not in config.execution.output_spaces:
        return []
    return [f'--output-spaces {config.method.reference} has no effect: every image stays in its own space']
