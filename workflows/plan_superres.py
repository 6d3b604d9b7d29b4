"""Super-resolution of a participant: every image by itself, where it is not as fine as asked for already."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.workflows.estimates import Estimate
from bids_gsrecon.workflows.plan_target import by_session, nothing_found, own_space_messages, plan_target
from bids_gsrecon.workflows.plan_types import ParticipantPlan, Scan, SessionPlan, TargetPlan

MAPS = ('T1rho', 'T2star')  # quantities: their voxels are no means of what lies in them

# Processor seconds per image, and per cell that it is made of (benchmarks/resources.py).
IMAGE_SECONDS, CELL_SECONDS = 20.0, 2e-5


@dataclass(kw_only=True)
class SuperresTarget(TargetPlan):
    """One image, and the isotropic voxel size it shall have."""

    affine: list[list[float]]
    output_mm: float

    @property
    def lattice(self) -> Lattice:
        return Lattice(tuple(self.shape), self.affine)

    @property
    def output_lattice(self) -> Lattice:
        return self.lattice.resampled(self.output_mm)


@dataclass
class SuperresSession(SessionPlan):
    """One session: images that have nothing to do with each other."""

    @property
    def output_voxels(self) -> int:
        return sum(target.output_lattice.n_voxels for target in self.targets)


def plan_sessions(config: Config, plan: ParticipantPlan, scans: list[Scan]) -> None:
    """Add to ``plan`` every image of a participant that can be made finer."""
    if not scans and not plan.errors:
        plan.errors.append(nothing_found(config, plan.participant))
    plan.messages += own_space_messages(config)
    for session, own in by_session(scans).items():
        targets = []
        for scan in own:
            try:
                target = _plan_target(config, plan, scan)
            except InputError as error:
                plan.errors.append(str(error))
                continue
            if target is not None:
                targets.append(target)
        if targets:
            plan.sessions.append(SuperresSession(plan.participant, session, targets))


def is_anisotropic(scan: Scan) -> bool:
    """Whether isotropic voxels of its own finest size would be finer than what it has."""
    from bids_gsrecon.interfaces.superres_checks import is_fine_already

    lattice = scan.header.lattice
    return not is_fine_already(lattice, lattice.resampled(float(lattice.voxel_sizes_mm.min())))


def estimated_memory_gb(target: SuperresTarget) -> float:
    """Peak memory of the reconstruction of an image, by its header."""
    from bids_gsrecon.interfaces.superres_checks import needed_memory_gb

    return needed_memory_gb(target.shape, target.lattice, target.output_lattice)


def estimate(config: Config, session: SuperresSession) -> Estimate:
    """What a session takes."""
    from bids_gsrecon.recon.superres import cell_factors

    seconds = 0.0
    for target in session.targets:
        cells = math.prod(target.shape) * math.prod(cell_factors(target.lattice, target.output_lattice))
        seconds += IMAGE_SECONDS + CELL_SECONDS * cells
    return Estimate(max(map(estimated_memory_gb, session.targets)), 30.0 + seconds)


def _plan_target(config: Config, plan: ParticipantPlan, scan: Scan) -> SuperresTarget | None:
    from bids_gsrecon.interfaces.superres_checks import is_fine_already

    if scan.name.suffix in MAPS:
        plan.messages.append(f'{scan.path.name} is left out: it is a map, not an image')
        return None
    sizes = scan.header.voxel_sizes_mm
    output_mm = config.method.output_resolution_mm or float(sizes.min())
    messages = len(plan.messages)
    target = SuperresTarget(
        **asdict(plan_target(config, plan, scan)),
        affine=scan.header.affine.tolist(),
        output_mm=round(output_mm, 5),
    )
    if is_fine_already(target.lattice, target.output_lattice):
        have = ' x '.join(f'{v:.3g}' for v in sizes)
        del plan.messages[messages:]
        plan.messages.append(
            f'{scan.path.name} is left out: its voxels ({have} mm) are as fine as {output_mm:.3g} mm already '
            '(--output-resolution)'
        )
        return None
    return target
