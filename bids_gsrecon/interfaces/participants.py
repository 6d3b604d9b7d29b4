"""What the tables of a dataset say about a participant."""

from __future__ import annotations

import csv
from pathlib import Path

from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.age_templates import WEEKS

# The age at the scan before the age that may be that at birth.
AGE_COLUMNS = ('scan_age', 'gestational_age', 'gestational_age_weeks', 'gestational_weeks', 'ga')


def gestational_age(bids_dir, participant: str, session: str | None = None) -> float | None:
    """Weeks, by the row of the session in ``sub-X_sessions.tsv``, else of the participant in ``participants.tsv``.

    Raises
    ------
    InputError
        A value that is no age in weeks.
    """
    root, subject = Path(bids_dir), f'sub-{participant}'
    places = [(root / 'participants.tsv', 'participant_id', subject)]
    if session is not None:
        places.insert(0, (root / subject / f'{subject}_sessions.tsv', 'session_id', f'ses-{session}'))
    for path, key, label in places:
        for row in _rows(path):
            if row.get(key) not in (label, label.split('-', 1)[1]):
                continue
            for column in AGE_COLUMNS:
                text = (row.get(column) or 'n/a').strip()
                if text.lower() not in ('n/a', ''):
                    return _weeks(text, path, label)
    return None


def _rows(path: Path) -> list[dict]:
    try:
        with path.open(encoding='utf-8-sig', newline='') as file:
            return list(csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f'{path} is not a readable table ({error}): repair it.') from error


def _weeks(text: str, path: Path, label: str) -> float:
    try:
        weeks = float(text)
    except ValueError:
        weeks = float('nan')
    if not WEEKS[0] <= weeks <= WEEKS[1]:
        raise InputError(
            f'{path} gives {label} an age of {text!r}, which is no gestational age in weeks: correct it.'
        )
    return weeks
