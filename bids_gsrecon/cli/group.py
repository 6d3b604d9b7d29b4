"""The group level: what became of all participants, and their figures of merit, in tables and on one page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bids_gsrecon.atomic import write_text
from bids_gsrecon.cli.checks import find_participants
from bids_gsrecon.cli.group_status import (
    RERUN,
    TABLE,
    ParticipantStatus,
    collect_status,
    status_table,
    summary,
)
from bids_gsrecon.cli.messages import say
from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError

MERIT_TABLE = 'group_merit.tsv'
PAGE = 'group.html'


def run_group(config: Config) -> int:
    """Gather what the runs of all participants left into ``group_status.tsv``, ``group_merit.tsv``, ``group.html``.

    Returns
    -------
    int
        Exit code: 0, also where participants failed (the tables say who), or 70 where none was run yet.
    """
    from bids_gsrecon.reports.group import write_group_page

    out = config.output_dir
    rows = collect_status(out, _labels(config))
    if not any(row.run or row.contrasts for row in rows):
        say(f'NOTHING TO DO: {out} has neither status nor figures of merit yet; run participants first.')
        return 70
    write_table(out / TABLE, status_table(rows))
    merits = merit_table(rows)
    if merits:
        write_table(out / MERIT_TABLE, merits)
    write_text(out / RERUN, ''.join(f'{row.participant}\n' for row in rows if row.to_rerun))
    write_group_page(out / PAGE, rows, summary(rows))
    say(
        f'SUCCESS: {len(rows)} participant(s): {summary(rows)}; {len(merits)} contrast(s) with figures of merit; see '
        f'{out / PAGE}, {TABLE} and {MERIT_TABLE} (exit code 0)'
    )
    return 0


def _labels(config: Config) -> list[str]:
    """Whom it is about: those asked for, else all of the dataset and all that have results."""
    if config.execution.participant_label:
        return config.execution.participant_label
    labels = {path.name.removeprefix('sub-') for path in config.output_dir.glob('sub-*') if path.is_dir()}
    try:
        labels.update(find_participants(config.bids_dir, [], with_kspace=True)[0])
    except InputError:  # tables can be made where the images are not
        pass
    return sorted(labels)


def merit_table(rows: Iterable[ParticipantStatus]) -> list[dict[str, str]]:
    """Rows of ``group_merit.tsv``: one per contrast, by participant."""
    return [
        {
            'participant_id': f'sub-{row.participant}',
            'session_id': contrast.session,
            'contrast': contrast.name,
            'quality': contrast.quality,
            **{name: f'{value:.6g}' for name, value in contrast.figures.items()},
        }
        for row in sorted(rows, key=lambda item: item.participant)
        for contrast in row.contrasts
    ]


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    """Tab-separated, columns in order of appearance, ``n/a`` where a row has no value."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ['\t'.join(columns)] + ['\t'.join(row.get(name, 'n/a') for name in columns) for row in rows]
    write_text(path, '\n'.join(lines) + '\n')
    return path
