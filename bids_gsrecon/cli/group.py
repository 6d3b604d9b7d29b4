"""The group level: for now, the figures of merit of all participants in one table."""

from __future__ import annotations

import json
from pathlib import Path

from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.atomic import write_text
from bids_gsrecon.interfaces.bids import BidsName

TABLE = 'group_merit.tsv'


def run_group(config: Config) -> int:
    """Gather ``sub-*/figures/*_desc-merit_*.json`` into ``group_merit.tsv``.

    Returns
    -------
    int
        Exit code: 0, or 70 where no participant has figures of merit yet.
    """
    wanted = set(config.execution.participant_label)
    rows = [
        row for row in map(read_merit, sorted(config.output_dir.glob('sub-*/figures/*_desc-merit_*.json')))
        if row and (not wanted or row['participant_id'].removeprefix('sub-') in wanted)
    ]  # fmt: skip
    if not rows:
        print(
            f'bids_gsrecon: NOTHING TO DO: {config.output_dir} has no figures of merit yet; run participants first.'
        )
        return 70
    path = write_table(config.output_dir / TABLE, rows)
    participants = len({row['participant_id'] for row in rows})
    print(
        f'bids_gsrecon: SUCCESS: figures of merit of {len(rows)} contrast(s) of {participants} participant(s) in '
        f'{path}; this is all the group level does in this version (exit code 0)'
    )
    return 0


def read_merit(path: Path) -> dict[str, str]:
    """One row of the table; empty for a file that cannot be read."""
    try:
        figures = json.loads(path.read_text())['figures']
        values = {
            name: f'{float(value):.6g}' for name, value in figures.items() if isinstance(value, (int, float))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    name = BidsName.parse(path)
    entities = {key: value for key, value in name.entities.items() if key not in ('sub', 'ses', 'desc')}
    contrast = '_'.join([*(f'{key}-{value}' for key, value in entities.items()), name.suffix])
    row = {'participant_id': f'sub-{name.entities["sub"]}', 'session_id': 'n/a', 'contrast': contrast}
    if 'ses' in name.entities:
        row['session_id'] = f'ses-{name.entities["ses"]}'
    return row | values


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    """Tab-separated, columns in order of appearance, ``n/a`` where a row has no value."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ['\t'.join(columns)] + ['\t'.join(row.get(name, 'n/a') for name in columns) for row in rows]
    write_text(path, '\n'.join(lines) + '\n')
    return path
