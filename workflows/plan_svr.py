"""Slice-to-volume reconstruction of a participant: which stacks become one volume, and with which masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.interfaces.bids import BidsName
from bids_gsrecon.interfaces.headers import check_stack, read_metadata, slice_axis
from bids_gsrecon.workflows.collect import find_derivative
from bids_gsrecon.workflows.estimates import Estimate
from bids_gsrecon.workflows.plan_superres import MAPS
from bids_gsrecon.workflows.plan_target import by_session, nothing_found, own_space_messages
from bids_gsrecon.workflows.plan_types import ParticipantPlan, Scan, SessionPlan

SAMPLE_STEP_MM = 5.0  # between points at which fields of view are compared
MARGIN_MM = 15.0  # of the volume's grid around the anatomy: motion, and what a slice sees around it
# Processor seconds: of every run, and per pixel, voxel of the volume and stored pixel; a little more than was seen
# (benchmarks/resources.py).
RUN_SECONDS, PIXEL_SECONDS, VOXEL_SECONDS, STORED_SECONDS = 30.0, 5e-5, 1e-5, 5e-6
RESIDUAL_FIELD_FACTOR = 3.5
THICK_RATIO = 1.5  # slice spacing over the coarser pixel size, from which an image is a stack of slices
# In these the stacks of one volume may differ; any other entity says that they show different things.
FREE_ENTITIES = ('acq', 'dir', 'run')
METADATA = ('SliceThickness', 'SpacingBetweenSlices', 'SliceTiming', 'SliceEncodingDirection')


@dataclass
class StackPlan:
    """One stack.

    Attributes
    ----------
    file
        The image.
    shape, affine, axis
        Its grid, and the stored axis across its slices.
    mask
        The anatomy in it; empty: to be found.
    metadata
        What its sidecars say about its slices.
    """

    file: str
    shape: list[int]
    affine: list[list[float]]
    axis: int
    mask: str = ''
    metadata: dict = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return Path(self.file)

    @property
    def name(self) -> BidsName:
        return BidsName.parse(self.file)

    @property
    def lattice(self) -> Lattice:
        return Lattice(tuple(self.shape), self.affine)


@dataclass
class SvrTarget:
    """One volume.

    Attributes
    ----------
    stacks
        At least two, in the order of their names.
    output_mm
        Isotropic voxel size.
    mask_label
        ``desc-`` of its mask.
    template, gestational_age_weeks
        Standard space; empty: the frame of a stack.
    """

    stacks: list[StackPlan]
    output_mm: float
    mask_label: str = 'brain'
    template: str = ''
    gestational_age_weeks: float | None = None

    @property
    def name(self) -> BidsName:
        """What the names of all stacks have in common, as the name of a reconstruction."""
        first, *others = [stack.name for stack in self.stacks]
        shared = set(first.entities.items()).intersection(*(other.entities.items() for other in others))
        entities = {key: label for key, label in first.entities.items() if (key, label) in shared}
        entities['rec'] = f'{entities.get("rec", "")}svr'
        if self.template:
            entities['space'] = 'template'
        return BidsName(entities, first.suffix, first.datatype)


@dataclass
class SvrSession(SessionPlan):
    """One session: volumes that have nothing to do with each other."""

    @property
    def output_voxels(self) -> int:
        """Pixels of the stacks, which are written corrected and simulated; the volume is about as large."""
        return 2 * sum(math.prod(stack.shape) for target in self.targets for stack in target.stacks)


def plan_sessions(config: Config, plan: ParticipantPlan, scans: list[Scan]) -> None:
    """Add to ``plan`` every volume that the stacks of a participant make."""
    plan.messages += own_space_messages(config)
    stacks, lone = [], []
    for scan in scans:
        try:
            if is_stack(scan):
                check_stack(scan.path, scan.header.shape)
                stacks.append(scan)
        except InputError as error:
            plan.errors.append(str(error))
    for session, own in by_session(stacks).items():
        targets = []
        for group in stack_groups(own):
            if len(group) < 2:
                lone += group
                continue
            try:
                targets.append(_plan_target(config, plan, group))
            except InputError as error:
                plan.errors.append(str(error))
        _name_masks(targets)
        if targets:
            plan.sessions.append(SvrSession(plan.participant, session, targets))
    if plan.sessions:
        left_out = [scan.path.name for scan in scans if scan in lone or scan not in stacks]
        if left_out:
            plan.messages.append(f'no stacks of a volume, and not used: {", ".join(left_out)}')
    elif not plan.errors:
        plan.errors.append(_no_stacks_message(config, plan.participant, scans, lone))


def is_stack(scan: Scan) -> bool:
    """Whether an image is one of thick slices that can be a part of a volume."""
    if scan.name.datatype != 'anat' or scan.name.suffix in MAPS or len(scan.header.shape) != 3:
        return False
    sizes = scan.header.voxel_sizes_mm
    return bool(sizes.max() >= THICK_RATIO * np.median(sizes))


def stack_groups(scans: list[Scan]) -> list[list[Scan]]:
    """The stacks of one session that show the same, by their names.

    Suffix and entities must agree, but for run, phase-encoding direction and ``acq``. The latter may name a
    direction (``acq-ax``) as well as a sequence (``acq-haste``): it is taken for a sequence where every one of its
    labels by itself has stacks in different directions.
    """
    groups: dict[tuple, list[Scan]] = {}
    for scan in scans:
        fixed = {key: label for key, label in scan.name.entities.items() if key not in FREE_ENTITIES}
        groups.setdefault((scan.name.suffix, *sorted(fixed.items())), []).append(scan)
    split = []
    for _, group in sorted(groups.items(), key=lambda item: item[0]):
        by_acquisition: dict[str, list[Scan]] = {}
        for scan in group:
            by_acquisition.setdefault(scan.name.entities.get('acq', ''), []).append(scan)
        parts = list(by_acquisition.values())
        split += parts if all(is_full_set(part) for part in parts) else [group]
    return split


def is_full_set(scans: list[Scan]) -> bool:
    """Whether stacks make a volume by themselves: two or more, in different directions, of one place."""
    from bids_gsrecon.interfaces.svr_checks import are_parallel, check_overlap

    stacks = [_placed(scan) for scan in scans]
    if len(stacks) < 2 or are_parallel(stacks):
        return False
    try:
        check_overlap(stacks)
    except InputError:
        return False
    return True


def full_sets(scans: list[Scan]) -> list[list[Scan]]:
    """All groups of stacks of a participant that make a volume by themselves."""
    stacks = [scan for scan in scans if is_stack(scan) and min(scan.header.shape) > 1]
    return [g for own in by_session(stacks).values() for g in stack_groups(own) if is_full_set(g)]


def estimated_memory_gb(target: SvrTarget) -> float:
    """Peak memory of the reconstruction of a volume, by the headers."""
    from bids_gsrecon.interfaces.svr_checks import needed_memory_gb

    return needed_memory_gb(*_estimated_size(target))


def estimate(config: Config, session: SvrSession) -> Estimate:
    """What a session takes."""
    seconds = 0.0
    for target in session.targets:
        pixels, voxels = _estimated_size(target)
        stored = sum(math.prod(stack.shape) for stack in target.stacks)
        seconds += PIXEL_SECONDS * pixels + VOXEL_SECONDS * voxels + STORED_SECONDS * stored
    if config.method.svr.get('residual_field'):
        seconds *= RESIDUAL_FIELD_FACTOR
    return Estimate(max(map(estimated_memory_gb, session.targets)), RUN_SECONDS + seconds)


def _estimated_size(target: SvrTarget) -> tuple[int, int]:
    """Pixels and voxels of a volume: the place that all stacks show, as one cube."""
    volumes = []
    for stack in target.stacks:
        lattice = stack.lattice
        step = np.maximum(SAMPLE_STEP_MM // lattice.voxel_sizes_mm, 1).astype(int)
        grid = np.meshgrid(*[np.arange(0, n, k) for n, k in zip(lattice.shape, step)], indexing='ij')
        points = lattice.to_world(np.stack(grid, -1).reshape(-1, 3))
        inside = np.ones(len(points), bool)
        for other in target.stacks:
            index = other.lattice.to_index(points)
            inside &= ((index > -0.5) & (index < np.array(other.shape) - 0.5)).all(1)
        volumes.append(inside.mean() * math.prod(lattice.shape) * float(np.prod(lattice.voxel_sizes_mm)))
    common_mm3 = max(volumes)
    pixels = sum(common_mm3 / np.prod(stack.lattice.voxel_sizes_mm) for stack in target.stacks)
    voxels = ((np.cbrt(common_mm3) + 2 * MARGIN_MM) / target.output_mm) ** 3
    return int(pixels), int(voxels)


def _placed(scan: Scan, metadata: dict | None = None) -> StackPlan:
    axis, _ = slice_axis(scan.header, metadata or {})
    return StackPlan(str(scan.path), list(scan.header.shape), scan.header.affine.tolist(), axis)


def _plan_target(config: Config, plan: ParticipantPlan, group: list[Scan]) -> SvrTarget:
    from bids_gsrecon.interfaces.svr_checks import check_overlap, parallel_warning
    from bids_gsrecon.recon.svr.types import SvrOptions

    stacks = []
    for scan in sorted(group, key=lambda item: item.path.name):
        metadata = read_metadata(scan.path, config.bids_dir)
        stack = _placed(scan, metadata)
        stack.metadata = {name: metadata[name] for name in METADATA if name in metadata}
        stack.mask = str(_find_mask(config, scan) or '')
        stacks.append(stack)
    check_overlap(stacks)
    target = SvrTarget(stacks, config.method.output_resolution_mm or SvrOptions().resolution_mm)
    if config.method.svr_template:
        target.template, target.gestational_age_weeks = _template(config, plan.participant, group[0].session)
    n_masks = sum(bool(stack.mask) for stack in stacks)
    plan.messages.append(
        f'{target.name.stem()} is made of {len(stacks)} stacks, {n_masks or "none"} of them with a given mask: '
        f'{", ".join(stack.path.name for stack in stacks)}'
    )
    if warning := parallel_warning(stacks):
        plan.messages.append(warning.rstrip('.'))
    return target


def _find_mask(config: Config, scan: Scan) -> Path | None:
    """``<entities of the stack>_desc-brain_mask.nii[.gz]`` in --derivatives."""
    name = scan.name.replaced(desc='brain', suffix='mask')
    folders, participant = config.execution.derivatives, scan.name.entities['sub']
    return find_derivative(folders, participant, scan.session, f'{name.stem()}.nii*')


def _template(config: Config, participant: str, session: str | None) -> tuple[str, float | None]:
    """The template that --svr-template names, or the one of its folder by the age of the participant."""
    from bids_gsrecon.interfaces.age_templates import template_of_age
    from bids_gsrecon.interfaces.participants import gestational_age

    path = Path(config.method.svr_template)
    age = gestational_age(config.bids_dir, participant, session)
    if not path.is_dir():
        return str(path), age
    if age is None:
        raise InputError(
            f'sub-{participant} has no gestational age by which to choose from {path}: add a column '
            'gestational_age (weeks) to participants.tsv or to its sessions.tsv, or name a template itself.'
        )
    return str(template_of_age(path, age)[0]), age


def _name_masks(targets: list[SvrTarget]) -> None:
    """Masks of one session whose names would be the same carry the contrast."""
    stems = [target.name.replaced(suffix='mask').stem() for target in targets]
    for target, stem in zip(targets, stems):
        if stems.count(stem) > 1:
            target.mask_label = f'brain{target.name.suffix}'


def _no_stacks_message(config: Config, participant: str, scans: list[Scan], lone: list[Scan]) -> str:
    if not scans:
        return nothing_found(config, participant)
    if not lone:
        names = ', '.join(scan.path.name for scan in scans)
        return (
            f'sub-{participant} has no stack of thick slices ({names}): --recon svr needs two or more of one '
            'contrast, in different directions; use --recon superres for single images.'
        )
    names = ', '.join(scan.path.name for scan in lone)
    return (
        f'sub-{participant} has no two stacks of one contrast in a session ({names}): --recon svr needs two or more, '
        'in different directions; use --recon superres for single ones.'
    )
