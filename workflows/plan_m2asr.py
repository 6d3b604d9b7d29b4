"""GaussM2ASR of a participant: which contrasts are made finer in plane, or become pairs to train on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.workflows.estimates import Estimate
from bids_gsrecon.workflows.plan_harmonize import find_reference_mask, sessions_with_reference
from bids_gsrecon.workflows.plan_target import own_space_messages, plan_target
from bids_gsrecon.workflows.plan_types import ParticipantPlan, Scan, SessionPlan, TargetPlan

CONTRASTS = ('T2w', 'FLAIR')  # that are trained on, where none are named
MAX_FACTOR = 6.0  # in plane; beyond it the method refuses
FINE_ALREADY = 1.05  # a factor that is not worth a network
PAIR_VERSION = 1  # of how pairs are made: another number makes them again

PROGRAM_GB = 1.0  # torch and the network
COPIES = 12  # of the result's voxels (float32) while weights are applied
# Of one core; guesses but for a network of the size `tiny`, which takes about a second for 256 x 256 pixels twice over
# (it is also applied to the image's own coarser copy).
REFERENCE_SECONDS = 1e-5  # a voxel of the reference: bias field and mask
IMAGE_SECONDS = 60.0  # registration and pictures
VOXEL_SECONDS = 4e-5


@dataclass(kw_only=True)
class M2asrTarget(TargetPlan):
    """One image.

    Attributes
    ----------
    affine
        Of its grid.
    output_shape, output_affine
        The finer grid, over the same box; its own where a pair is made.
    pair_file, pair_key
        Where the pair lies that is trained on, and what it is made of. Empty where weights are applied.
    is_made
        That file is there, and of these images.
    """

    affine: list[list[float]]
    output_shape: list[int]
    output_affine: list[list[float]]
    pair_file: str = ''
    pair_key: str = ''
    is_made: bool = False

    @property
    def lattice(self) -> Lattice:
        return Lattice(tuple(self.shape), self.affine)

    @property
    def output_lattice(self) -> Lattice:
        return Lattice(tuple(self.output_shape), self.output_affine)

    @property
    def in_plane_mm(self) -> list[float]:
        """Pixel size of the result, along the stored axes in plane."""
        sizes = self.output_lattice.voxel_sizes_mm
        return [round(float(sizes[axis]), 4) for axis in range(3) if axis != self.slice_axis]


@dataclass(kw_only=True)
class M2asrSession(SessionPlan):
    """One session: its reference (perhaps of another session) and its contrasts."""

    reference: str
    reference_shape: list[int]
    mask: str = ''

    @property
    def output_voxels(self) -> int:
        return sum(math.prod(target.output_shape) for target in self.targets if not target.is_made)


def estimated_memory_gb(target: M2asrTarget) -> float:
    """Peak memory of applying a small network to an image, by its header."""
    return PROGRAM_GB + COPIES * 4 * target.output_lattice.n_voxels / 1024**3


def estimate(config: Config, session: M2asrSession) -> Estimate:
    """What a session takes, with a small network."""
    seconds = REFERENCE_SECONDS * math.prod(session.reference_shape)
    for target in session.targets:
        seconds += IMAGE_SECONDS + VOXEL_SECONDS * target.output_lattice.n_voxels
    return Estimate(max(map(estimated_memory_gb, session.targets)), 40.0 + seconds)


def pairs_folder(config: Config) -> Path:
    """Where pairs to train on are kept, one small file each."""
    return config.work_dir / 'm2asr_pairs'


def plan_sessions(config: Config, plan: ParticipantPlan, scans: list[Scan]) -> None:
    """Add to ``plan`` the images of a participant that weights are applied to, or that are trained on."""
    wanted = _wanted_contrasts(config)
    plan.messages += own_space_messages(config)
    for session, reference, own in sessions_with_reference(config, plan, scans):
        mask = find_reference_mask(config, plan, reference)
        targets, others = [], []
        for scan in own:
            if scan.name.suffix not in wanted or scan.name.datatype != 'anat':
                others.append(scan.path.name)
                continue
            try:
                target = _plan_target(config, plan, scan, reference)
                if target is not None and config.method.m2asr_train:
                    _plan_pair(config, target, reference, mask)
            except InputError as error:
                plan.errors.append(str(error))
                continue
            if target is not None:
                targets.append(target)
        if others:
            plan.messages.append(
                f'not among the contrasts of m2asr ({", ".join(wanted)}; --m2asr-contrasts) and left out: '
                f'{", ".join(others)}'
            )
        if targets:
            plan.sessions.append(
                M2asrSession(
                    participant=plan.participant,
                    session=session,
                    targets=targets,
                    reference=str(reference.path),
                    reference_shape=list(reference.header.shape),
                    mask=mask,
                )
            )


def _wanted_contrasts(config: Config) -> list[str]:
    """Those that were named; else those that the weights were trained on; else the usual two."""
    if config.method.m2asr_contrasts:
        return list(config.method.m2asr_contrasts)
    known = []
    if not config.method.m2asr_train:
        from bids_gsrecon.interfaces.m2asr_files import read_card

        known = [name for name in read_card(config.method.m2asr_weights).get('contrasts', []) if name]
    return known or list(CONTRASTS)


def _plan_target(config: Config, plan: ParticipantPlan, scan: Scan, reference: Scan) -> M2asrTarget | None:
    base = plan_target(config, plan, scan)
    lattice = scan.header.lattice
    finer = lattice
    if not config.method.m2asr_train:
        wanted_mm = config.method.output_resolution_mm or float(reference.header.voxel_sizes_mm.min())
        finer = finer_in_plane(lattice, base.slice_axis, wanted_mm)
        factors = np.array(finer.shape) / np.array(lattice.shape)
        have = ' x '.join(f'{v:.3g}' for v in np.delete(lattice.voxel_sizes_mm, base.slice_axis))
        if factors.max() <= FINE_ALREADY:
            plan.messages.append(
                f'{scan.path.name} is left out: its pixels ({have} mm) are as fine as {wanted_mm:.3g} mm already '
                '(--output-resolution)'
            )
            return None
        if factors.max() > MAX_FACTOR:
            raise InputError(
                f'{scan.path} has pixels of {have} mm, which would be made {factors.max():.1f} times finer: m2asr goes '
                f'up to {MAX_FACTOR:g} times, choose a larger --output-resolution.'
            )
    return M2asrTarget(
        **asdict(base),
        affine=lattice.affine.tolist(),
        output_shape=list(finer.shape),
        output_affine=finer.affine.tolist(),
    )


def finer_in_plane(lattice: Lattice, slice_axis: int, size_mm: float) -> Lattice:
    """The same slices with pixels of about ``size_mm`` (a whole number of them) over the same box.

    An axis that is as fine already keeps its voxels.
    """
    extent = np.array(lattice.shape) * lattice.voxel_sizes_mm
    shape = np.maximum(np.round(extent / size_mm).astype(int), lattice.shape)
    shape[slice_axis] = lattice.shape[slice_axis]
    return lattice.resampled(extent / shape)


def _plan_pair(config: Config, target: M2asrTarget, reference: Scan, mask: str) -> None:
    """Where its pair is kept, and whether it is there already."""
    from bids_gsrecon.interfaces.m2asr_pairs import read_facts

    path = pairs_folder(config) / f'{target.name.stem()}.h5'
    made_of = {
        'version': PAIR_VERSION,
        'files': [_identity(file) for file in (target.file, str(reference.path), mask) if file],
        'slices': [target.slice_axis, target.slice_thickness_mm],
        'seed': config.execution.random_seed,
        'template': config.method.brain_template,
    }
    target.pair_file = str(path)
    target.pair_key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    try:
        target.is_made = path.is_file() and read_facts(path).key == target.pair_key
    except InputError:
        target.is_made = False


def _identity(path: str) -> list:
    status = os.stat(path)
    return [path, status.st_size, status.st_mtime_ns]
