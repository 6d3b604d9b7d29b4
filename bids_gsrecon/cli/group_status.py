"""What became of every participant of a dataset, by the last run of each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from bids_gsrecon.cli.locks import is_held
from bids_gsrecon.cli.outcome import FAILED, OK, SKIPPED, UNFINISHED, Outcome, last_runs
from bids_gsrecon.interfaces.bids import BidsName

RUNNING, KILLED, NOT_RUN = 'running', 'killed', 'not run'
ORDER = (FAILED, KILLED, NOT_RUN, RUNNING, OK, SKIPPED)  # who needs something done comes first
QUALITY = ('bad', 'check', 'good')
TABLE, RERUN = 'group_status.tsv', 'group_rerun.txt'


@dataclass
class Contrast:
    """One result and what its figures of merit say."""

    name: str
    session: str
    figures: dict[str, float]
    quality: str
    reasons: list[str]


@dataclass
class ParticipantStatus:
    """One row.

    Attributes
    ----------
    participant
        Label.
    status
        One of `ORDER`.
    outcome
        Of its last run; empty if there was none.
    run
        That run's ``status.json``.
    contrasts
        Its results.
    """

    participant: str
    status: str
    outcome: Outcome
    run: dict = field(default_factory=dict)
    contrasts: list[Contrast] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """One sentence each, that say why and what to do."""
        if self.status == KILLED:
            return [
                f'sub-{self.participant}: its run was killed, or its machine went down, before it could say why: run '
                'it again, with more memory or time if it happens again.'
            ]
        if self.status == NOT_RUN:
            return [f'sub-{self.participant} was not run yet.']
        return self.outcome.errors if self.status == FAILED else []

    @property
    def quality(self) -> str:
        """The worst of its contrasts; empty without any."""
        have = {contrast.quality for contrast in self.contrasts}
        return next((state for state in QUALITY if state in have), '')

    @property
    def to_rerun(self) -> bool:
        return self.status in (FAILED, KILLED, NOT_RUN)


def collect_status(output_dir: Path, labels: list[str]) -> list[ParticipantStatus]:
    """A row per participant, those first who need something done.

    Parameters
    ----------
    output_dir
        Where runs wrote.
    labels
        Whom it is about, whether there was a run or not.
    """
    runs = last_runs(output_dir)
    rows = []
    for label in sorted(set(labels)):
        outcome, run = runs.get(label, (None, {}))
        status = NOT_RUN if outcome is None else outcome.status
        if status == UNFINISHED:
            status = KILLED if is_held(output_dir / 'logs' / f'.lock-sub-{label}') is False else RUNNING
        empty = Outcome(label, status)
        rows.append(
            ParticipantStatus(label, status, outcome or empty, run, read_contrasts(output_dir, label))
        )
    return sorted(rows, key=lambda row: (ORDER.index(row.status), row.participant))


def read_contrasts(output_dir: Path, label: str) -> list[Contrast]:
    """The figures of merit under ``sub-<label>/figures``; files that cannot be read are left out."""
    from bids_gsrecon.reports.html import Scan

    contrasts = []
    for path in sorted((output_dir / f'sub-{label}' / 'figures').glob('*_desc-merit_*.json')):
        try:
            merit = json.loads(path.read_text())
            figures = {
                name: float(value)
                for name, value in merit['figures'].items()
                if isinstance(value, (int, float)) and not isinstance(value, bool)
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        name = BidsName.parse(path)
        entities = {key: value for key, value in name.entities.items() if key not in ('sub', 'ses', 'desc')}
        full = '_'.join([*(f'{key}-{value}' for key, value in entities.items()), name.suffix])
        session = f'ses-{name.entities["ses"]}' if 'ses' in name.entities else 'n/a'
        quality, reasons = Scan(full, name.suffix, '', merit=merit).verdict
        contrasts.append(Contrast(full, session, figures, quality, list(reasons)))
    return contrasts


def status_table(rows: list[ParticipantStatus]) -> list[dict[str, str]]:
    """Rows of ``group_status.tsv``."""
    return [
        {
            'participant_id': f'sub-{row.participant}',
            'status': row.status,
            'recon': row.outcome.recon or 'n/a',
            'contrasts': str(len(row.contrasts)),
            'quality': row.quality or 'n/a',
            'errors': str(len(row.errors)),
            'why': _one_line(row.errors[0]) if row.errors else 'n/a',
            'run': str(row.run.get('run_uuid', 'n/a')),
            'started': str(row.run.get('started', 'n/a')),
        }
        for row in rows
    ]


def summary(rows: list[ParticipantStatus]) -> str:
    """How many of each, and who failed."""
    parts = []
    for status in ORDER:
        those = [row for row in rows if row.status == status]
        names = ', '.join(f'sub-{row.participant}' for row in those[:5]) + (', ...' if len(those) > 5 else '')
        if those:
            parts.append(f'{len(those)} {status}' + (f' ({names})' if those[0].to_rerun else ''))
    return ', '.join(parts)


def _one_line(text: str) -> str:
    return ' '.join(text.split())
