"""One self-contained page about all participants: who failed and why, and whose results need a second look."""

from __future__ import annotations

import statistics
from pathlib import Path

from bids_gsrecon.atomic import write_text
from bids_gsrecon.reports.glossary import GLOSSARY, humanise, number
from bids_gsrecon.reports.html import TEMPLATES

BADGES = {'failed': 'bad', 'killed': 'bad', 'not run': 'check', 'running': 'check', 'ok': 'good'}
FAR = 3.5  # robust standard deviations (median absolute deviation) from the others
ENOUGH = 8  # results of a kind, from which one can be said to be unlike the others


def write_group_page(path: Path, rows, summary: str) -> Path:
    """Write the page (atomically, only if it says something new).

    Parameters
    ----------
    path
        ``group.html``.
    rows
        One per participant, with ``participant``, ``status``, ``errors``, ``contrasts``, ``to_rerun`` and ``outcome``:
        `bids_gsrecon.cli.group_status.ParticipantStatus`.
    summary
        A line.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    contrasts = [(row.participant, contrast) for row in rows for contrast in row.contrasts]
    names = list(
        dict.fromkeys(name for _, contrast in contrasts for name in contrast.figures if name in GLOSSARY)
    )
    page = environment.get_template('group.html.jinja').render(
        summary=summary,
        state='bad' if any(BADGES.get(row.status) == 'bad' for row in rows) else 'good',
        rows=rows,
        badges=BADGES,
        reports={row.participant for row in rows if (path.parent / f'sub-{row.participant}.html').is_file()},
        rerun=[row.participant for row in rows if row.to_rerun],
        figures=[(name, GLOSSARY[name].title or humanise(name), GLOSSARY[name].unit) for name in names],
        contrasts=sorted(contrasts, key=lambda item: (item[1].name, item[0])),
        outliers=unlike_the_others(contrasts),
        number=number,
    )
    write_text(path, page)
    return path


def unlike_the_others(contrasts) -> set[tuple[str, str, str, str]]:
    """(participant, session, contrast, figure) whose value is far from those of the same contrast of others.

    Parameters
    ----------
    contrasts
        (participant, contrast) pairs.
    """
    values: dict[tuple[str, str], list[tuple[tuple[str, str, str, str], float]]] = {}
    for participant, contrast in contrasts:
        for name, value in contrast.figures.items():
            key = (participant, contrast.session, contrast.name, name)
            values.setdefault((contrast.name, name), []).append((key, value))
    far = set()
    for found in values.values():
        if len(found) < ENOUGH:
            continue
        centre = statistics.median(value for _, value in found)
        spread = 1.4826 * statistics.median(abs(value - centre) for _, value in found)
        far |= {key for key, value in found if spread > 0 and abs(value - centre) > FAR * spread}
    return far
