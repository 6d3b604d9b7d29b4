"""Cine of a participant: which files of k-space there are, and what their headers say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.bids import BidsName
from bids_gsrecon.interfaces.kspace_files import kspace_files
from bids_gsrecon.workflows.collect import find_derivative
from bids_gsrecon.workflows.estimates import Estimate
from bids_gsrecon.workflows.plan_types import ParticipantPlan, Scan, SessionPlan

PROGRAM_GB = 0.5
# Copies of the raw samples while they are read, transformed and whitened; of all slices in hybrid space; what a fit of
# one slice holds beside them. By measurement, rounded up.
RAW_COPIES, HYBRID_COPIES, FIT_COPIES = 6, 2, 8

# Processor seconds of every run, per slice, and per value of the series; how many times as much the published model
# takes. A little more than was seen (benchmarks/resources.py, benchmarks/cine.py).
RUN_SECONDS, SLICE_SECONDS, VALUE_SECONDS = 30.0, 2.0, 5e-6
FREE_FACTOR = 80.0


@dataclass
class CineTarget:
    """One file.

    Attributes
    ----------
    file
        The raw data.
    matrix
        Readout (without oversampling) and phase encoding.
    n_slices, n_frames, n_coils, n_lines, n_samples
        What it holds: see `bids_gsrecon.imaging.ismrmrd_files.RawExtent`.
    regions
        Labels for curves over time; empty: none.
    retro
        Factors by which the file is undersampled; none if it is not fully sampled.
    """

    file: str
    matrix: list[int]
    n_slices: int
    n_frames: int
    n_coils: int
    n_lines: int
    n_samples: int
    regions: str
    retro: list[float]

    @property
    def name(self) -> BidsName:
        """Of the series: as the file, in a folder that BIDS does not know."""
        return BidsName.parse(self.file).replaced(datatype='cine')


@dataclass
class CineSession(SessionPlan):
    """One session: series that have nothing to do with each other."""

    @property
    def output_voxels(self) -> int:
        return sum(math.prod(target.matrix) * target.n_slices * target.n_frames for target in self.targets)


def plan_sessions(config: Config, plan: ParticipantPlan, scans: list[Scan]) -> None:
    """Add to ``plan`` every file of k-space of a participant; its images (``scans``) have no part in it."""
    targets: dict[str | None, list[CineTarget]] = {}
    names: dict[str, Path] = {}
    for path, session in kspace_files(config.bids_dir, plan.participant, config.execution.session_label):
        try:
            _check_name(path, plan.participant, session, names)
            targets.setdefault(session, []).append(_plan_target(config, plan, path, session))
        except InputError as error:
            plan.errors.append(str(error))
    for session in sorted(targets, key=str):
        plan.sessions.append(CineSession(plan.participant, session, targets[session]))
    if plan.sessions and config.method.device == 'cuda':
        plan.messages.append('--device cuda has no effect: cine is computed on the CPU')
    if not plan.sessions and not plan.errors:
        plan.errors.append(_nothing_found(config, plan.participant))


def estimated_memory_gb(target: CineTarget) -> float:
    """Peak memory of the reconstruction of a file, by its header."""
    from bids_gsrecon.imaging.kspace import MAX_COILS

    raw = target.n_lines * target.n_samples * target.n_coils * 8
    virtual_coils = min(target.n_coils, MAX_COILS)
    hybrid = target.n_frames * target.matrix[0] * target.matrix[1] * 8
    # Slices are sorted with all their coils, one after another.
    held = HYBRID_COPIES * (target.n_slices * virtual_coils + target.n_coils) + FIT_COPIES * virtual_coils
    return PROGRAM_GB + (RAW_COPIES * raw + held * hybrid) / 1024**3


def estimate(config: Config, session: CineSession) -> Estimate:
    """What a session takes."""
    seconds = 0.0
    for target in session.targets:
        values = target.n_slices * target.n_frames * math.prod(target.matrix)
        # Fully sampled data are reconstructed again at every factor by which they are undersampled.
        seconds += (1 + len(target.retro)) * (target.n_slices * SLICE_SECONDS + values * VALUE_SECONDS)
    if config.method.cine.get('model') == 'free':
        seconds *= FREE_FACTOR
    return Estimate(max(map(estimated_memory_gb, session.targets)), RUN_SECONDS + seconds)


def _check_name(path: Path, participant: str, session: str | None, names: dict[str, Path]) -> None:
    """The name must say whose it is: results are named after it."""
    name = BidsName.parse(path)
    if (name.entities.get('sub'), name.entities.get('ses')) != (participant, session):
        wanted = f'sub-{participant}' + (f'_ses-{session}' if session else '')
        raise InputError(f'{path} lies in a folder of {wanted}: its name must begin with {wanted}_.')
    other = names.setdefault(name.stem(), path)
    if other != path:
        raise InputError(f'{path} has the name of {other}: rename one of them, or take it away.')


def _plan_target(config: Config, plan: ParticipantPlan, path: Path, session: str | None) -> CineTarget:
    from bids_gsrecon.imaging.ismrmrd_files import read_extent
    from bids_gsrecon.interfaces.cine_outputs import MAX_FULL_ACCELERATION

    extent = read_extent(path)
    if extent.n_coils < 2:
        raise InputError(f'{path} holds one coil: undersampled frames need several coils.')
    header = extent.header
    oversampling = max(1.0, header.fov_mm[0] / header.recon_fov_mm[0])
    target = CineTarget(
        file=str(path),
        matrix=[round(header.matrix[0] / oversampling), header.matrix[1]],
        n_slices=extent.n_slices,
        n_frames=extent.n_frames,
        n_coils=extent.n_coils,
        n_lines=extent.n_lines,
        n_samples=extent.n_samples,
        regions=str(_find_regions(config, path, session) or ''),
        retro=list(config.method.cine_retro),
    )
    need, have = estimated_memory_gb(target), config.resources.memory_gb
    if 0 < have < need:
        raise InputError(
            f'{path} needs about {need:.1f} GB of memory and the limit here is {have:.1f} GB: give more (--mem).'
        )
    plan.messages.append(
        f'{path.name}: {target.matrix[0]} x {target.matrix[1]} x {target.n_slices} slice(s) x {target.n_frames} '
        f'frames, {target.n_coils} coils, R = {extent.acceleration:.1f}'
    )
    if extent.n_sets > 1:
        plan.messages.append(f'{path.name} holds {extent.n_sets} sets: the first is reconstructed')
    if target.retro and extent.acceleration > MAX_FULL_ACCELERATION:
        target.retro = []
        plan.messages.append(f'{path.name} is undersampled already: --retro-R has no effect on it')
    return target


def _find_regions(config: Config, path: Path, session: str | None) -> Path | None:
    """``cine/<entities of the file>_desc-roi_dseg.nii[.gz]`` in --derivatives."""
    name = BidsName.parse(path).replaced(desc='roi', suffix='dseg')
    folders, participant = config.execution.derivatives, name.entities['sub']
    return find_derivative(folders, participant, session, f'{name.stem()}.nii*', datatype='cine')


def _nothing_found(config: Config, participant: str) -> str:
    sessions = config.execution.session_label
    where = f' in session {", ".join(sessions)}' if sessions else ''
    return (
        f'sub-{participant} has no k-space{where}: --recon cine takes '
        f'{config.bids_dir}/sourcedata/sub-{participant}/[ses-*/]cmr/*_cine.h5 (or .mrd).'
    )
