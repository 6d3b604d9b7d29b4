"""What a plan is made of: scans that were found, images to reconstruct, sessions, participants."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from bids_gsrecon.interfaces.bids import BidsName
from bids_gsrecon.interfaces.headers import Header


@dataclass
class Scan:
    """An image of the dataset, whole and with a sound header."""

    path: Path
    name: BidsName
    header: Header

    @property
    def session(self) -> str | None:
        return self.name.entities.get('ses')

    @property
    def voxel_mm3(self) -> float:
        return float(np.prod(self.header.voxel_sizes_mm))


@dataclass
class TargetPlan:
    """One image to reconstruct; ``volumes`` (of a series, [] for all) are averaged if ``average``."""

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
    """One session and its images; every method has its own."""

    participant: str
    session: str | None
    targets: list

    @property
    def label(self) -> str:
        return f'sub-{self.participant}' + (f'_ses-{self.session}' if self.session else '')

    @property
    def output_voxels(self) -> int:
        """Of all targets together; 0: not known before."""
        return 0


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
