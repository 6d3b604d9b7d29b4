"""One self-contained HTML page per participant, assembled from the files under ``sub-*/figures``."""

from __future__ import annotations

import base64
import json
import re
import struct
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from bids_gsrecon.atomic import write_text
from bids_gsrecon.reports.glossary import (
    PICTURES,
    figures_of_merit,
    humanise,
    number,
    technical_figures,
    verdict_of,
)

TEMPLATES = Path(__file__).parent
REPORTLET = re.compile(
    r'^(?P<entities>sub-[^_]+(?:_[a-zA-Z0-9]+-[^_]+)*)_(?P<suffix>[a-zA-Z0-9]+)\.(?P<ext>png|gif|svg|json)$'
)
# Entities that say how a picture was made, not which scan it belongs to.
PICTURE_ENTITIES = ('desc', 'space', 'res')
# What a method may say of its own result (`recon.cine.types.VERDICTS`), as a state of the page.
METHOD_VERDICTS = {'trust': 'good', 'check': 'check', 'do not use': 'bad'}
SESSION_PARTS = ('reference', 'mask', 'summary')
FLIP = (
    ('before', 'Acquired', 'as acquired, nearest voxel'),
    ('interpolated', 'Interpolated', 'the same, linear interpolation'),
    ('mean', 'Mean of stacks', 'all stacks interpolated and averaged, no motion corrected'),
    ('after', 'Result', 'rendered on the output grid'),
    ('reference', 'Reference', 'the isotropic image that gave the anatomy'),
    ('guide', 'Reference', 'the reference as the slices of this image would show it'),
)


@dataclass
class Scan:
    """Everything the report shows of one contrast."""

    name: str
    suffix: str
    anchor: str
    pictures: dict[str, str] = field(default_factory=dict)  # desc -> data URI
    sizes: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    merit: dict = field(default_factory=dict)

    @property
    def verdict(self) -> tuple[str, list[str]]:
        """State (good, check, bad) and reasons: the method's own, where it gives one."""
        if (own := self.merit.get('verdict')) in METHOD_VERDICTS:
            return METHOD_VERDICTS[own], self.merit.get('reasons', [])
        return verdict_of(self.merit.get('figures', {}))

    @property
    def badge(self) -> str:
        """The verdict in a word or three."""
        own = self.merit.get('verdict')
        return own if own in METHOD_VERDICTS else self.verdict[0]

    @property
    def flips(self) -> list[tuple[str, str, str]]:
        """The pictures that agree pixel by pixel, in the order of their buttons."""
        wanted = self.sizes.get('after') or self.sizes.get('before')
        return [row for row in FLIP if row[0] in self.pictures and self.sizes.get(row[0]) == wanted]

    @property
    def merits(self) -> list[tuple[str, str, str]]:
        """(title, value with unit, plain explanation) of every figure of merit."""
        return figures_of_merit(self.merit.get('figures', {}))

    @property
    def figures(self) -> list[tuple[str, str, str, str]]:
        """(part, title, text, data URI) of the pictures that do not flip, the known ones first."""
        flips = [row[0] for row in FLIP]
        others = [part for part in self.pictures if part not in PICTURES and part not in flips]
        rows = [(part, *PICTURES[part]) for part in PICTURES if part in self.pictures]
        rows += [(part, part.capitalize(), '') for part in others]
        return [(*row, self.pictures[row[0]]) for row in rows]

    @property
    def tables(self) -> list[dict]:
        return self.merit.get('tables', [])

    @property
    def warnings(self) -> list[str]:
        return self.merit.get('warnings', [])

    @property
    def parameters(self) -> list[tuple[str, str]]:
        table = {**self.merit.get('parameters', {}), **technical_figures(self.merit.get('figures', {}))}
        return [(humanise(k), number(v)) for k, v in table.items()]

    @property
    def change(self) -> str:
        """Grid before and after in words."""
        before = self.merit.get('input_text') or self._grid('input')
        after = self._grid('output')
        return f'{before} → {after}' if before and after else ''

    def _grid(self, side: str) -> str:
        if f'{side}_shape' not in self.merit:
            return ''
        sizes = '×'.join(f'{v:.2f}'.rstrip('0').rstrip('.') for v in self.merit[f'{side}_voxel_mm'])
        return f'{"×".join(map(str, self.merit[f"{side}_shape"]))} voxels of {sizes} mm'


@dataclass
class Session:
    """One session: its reference and its contrasts."""

    label: str
    anchor: str
    pictures: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    scans: list[Scan] = field(default_factory=list)

    @property
    def facts(self) -> list[tuple[str, str]]:
        return [(humanise(k), number(v)) for k, v in self.summary.items() if v not in (None, '', [], {})]


def write_participant_report(
    output_dir,
    participant_label: str,
    *,
    boilerplate: str = '',
    errors=(),
    run_info: dict | None = None,
) -> Path:
    """Assemble ``<output_dir>/sub-<label>.html`` from the files under ``<output_dir>/sub-<label>/figures``
    alone.

    Pictures and JSON files are found by name, ``<entities>_desc-<what>_<suffix>.<ext>``: ``reference``,
    ``mask`` and ``summary`` belong to the session, the others to the contrast of their suffix. What is absent
    is left out.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    participant_label
        Without ``sub-``.
    boilerplate
        Methods text: paragraphs, ``#`` headings, ``-`` lists, ``[1]`` citations and URLs.
    errors
        One entry per failure: a sentence, or a dictionary with any of ``node``, ``error``, ``file``,
        ``traceback``.
    run_info
        Names and values for the last section (version, command, run_uuid, ...); ``recon``, ``why`` and
        ``remarks``, where given, are also said at the top.

    Returns
    -------
    Path
        The page. It is written atomically and needs nothing else, no network either.
    """
    import jinja2

    output_dir = Path(output_dir)
    subject = f'sub-{participant_label}'
    sessions = collect_sessions(output_dir / subject / 'figures')
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    errors = [_error(item) for item in errors]
    page = environment.get_template('report.html.jinja').render(
        subject=subject,
        sessions=sessions,
        overall=_overall(sessions, errors),
        boilerplate=_paragraphs(boilerplate),
        errors=errors,
        done={name: str(value).rstrip('.') for name, value in (run_info or {}).items()},
        run_info=[(humanise(k), number(v)) for k, v in (run_info or {}).items()],
        made=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        version=_version(),
    )
    path = output_dir / f'{subject}.html'
    write_text(path, page)
    return path


def collect_sessions(figures: Path) -> list[Session]:
    """Read the reportlets under ``figures`` by session and contrast; unreadable files are left out."""
    sessions: dict[str, Session] = {}
    scans: dict[tuple[str, str], Scan] = {}
    for path in sorted(figures.glob('sub-*')) if figures.is_dir() else []:
        match = REPORTLET.match(path.name)
        if match is None:
            continue
        entities = dict(item.split('-', 1) for item in match['entities'].split('_'))
        part, label = entities.get('desc', ''), entities.get('ses', '')
        session = sessions.setdefault(
            label, Session(f'ses-{label}' if label else '', f'ses-{label or "single"}')
        )
        if part in SESSION_PARTS:
            owner = session
        else:
            kept = [f'{k}-{v}' for k, v in entities.items() if k not in ('sub', 'ses', *PICTURE_ENTITIES)]
            name = '_'.join([*kept, match['suffix']])
            if (label, name) not in scans:
                scans[label, name] = Scan(name, match['suffix'], f'{session.anchor}-{name}')
                session.scans.append(scans[label, name])
            owner = scans[label, name]
        _read_part(owner, part, path)
    for session in sessions.values():
        for scan in session.scans:
            if 'reference' in session.pictures:
                scan.pictures.setdefault('reference', session.pictures['reference'])
                scan.sizes.setdefault('reference', session.sizes['reference'])
    return [sessions[label] for label in sorted(sessions)]


def _read_part(owner: Session | Scan, part: str, path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError:
        return
    if path.suffix == '.json':
        try:
            table = json.loads(content)
        except ValueError:
            return
        if isinstance(table, dict) and part in ('merit', 'summary') and hasattr(owner, part):
            getattr(owner, part).update(table)
        return
    kind = {'.svg': 'image/svg+xml', '.gif': 'image/gif'}.get(path.suffix, 'image/png')
    owner.pictures[part] = f'data:{kind};base64,{base64.b64encode(content).decode()}'
    owner.sizes[part] = _png_size(content)


def _png_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG; None for anything else."""
    if content[:8] != b'\x89PNG\r\n\x1a\n' or len(content) < 24:
        return None
    return struct.unpack('>II', content[16:24])


def _overall(sessions: list[Session], errors: list[dict]) -> tuple[str, str]:
    """State (good, check, bad) and sentence at the top of the page."""
    n_scans = sum(len(session.scans) for session in sessions)
    states = {
        state: [scan.name for session in sessions for scan in session.scans if scan.verdict[0] == state]
        for state in ('check', 'bad')
    }
    if errors:
        return 'bad', f'{len(errors)} step(s) failed: see Errors below. {n_scans} contrast(s) were finished.'
    if n_scans == 0:
        return 'check', 'No contrast was reconstructed.'
    what = [f'do not use {", ".join(states["bad"])}'] if states['bad'] else []
    what += [f'look closely at {", ".join(states["check"])}'] if states['check'] else []
    if what:
        return 'check', f'{n_scans} contrast(s) done; {"; ".join(what)}.'
    return (
        'good',
        f'{n_scans} contrast(s) done; nothing stands out. Look at the pictures before using the data.',
    )


def _error(item) -> dict[str, str]:
    if isinstance(item, dict):
        table = {str(k): str(v) for k, v in item.items()}
        title = table.pop('node', '') or table.pop('title', '') or 'A step failed'
        details = table.pop('traceback', '')
        message = table.pop('error', '') or table.pop('message', '')
        if isinstance(item.get('traceback'), list):
            details = ''.join(map(str, item['traceback']))
        return {
            'title': title,
            'message': message,
            'details': details,
            'rest': '; '.join(f'{k}: {v}' for k, v in table.items()),
        }
    return {'title': str(item), 'message': '', 'details': '', 'rest': ''}


def _paragraphs(text: str) -> list[dict]:
    """Blocks of the methods text: {'kind': 'h'|'p'|'ul', 'lines': [...]}, links found by the template."""
    blocks: list[dict] = []
    for chunk in re.split(r'\n\s*\n', (text or '').strip()):
        lines = [line.strip() for line in chunk.splitlines() if line.strip()]
        current: dict | None = None
        for line in lines:
            if line.startswith('#'):
                current = {'kind': 'h', 'lines': [_links(line.lstrip('# '))]}
                blocks.append(current)
                current = None
            elif re.match(r'^([-*+]|\d+\.|\[\d+\])\s', line):
                item = re.sub(r'^([-*+])\s+', '', line)
                if current is None or current['kind'] != 'ul':
                    current = {'kind': 'ul', 'lines': []}
                    blocks.append(current)
                current['lines'].append(_links(item))
            elif current is None:
                current = {'kind': 'p', 'lines': [_links(line)]}
                blocks.append(current)
            else:
                current['lines'][-1] += [(' ', None), *_links(line)]
    return blocks


def _links(line: str) -> list[tuple[str, str | None]]:
    """Pieces (text, address or None) of a line: URLs, DOIs, arXiv numbers become links; Markdown marks go."""
    line = re.sub(r'(\*\*|__|`)(.+?)\1', r'\2', line)
    pieces: list[tuple[str, str | None]] = []
    last = 0
    for match in re.finditer(
        r'https?://[^\s)>\]]+|\bdoi:\s?10\.[^\s)>\],;]+|\barXiv:?\s?\d{4}\.\d{4,5}', line
    ):
        found = match.group().rstrip('.')
        if match.start() > last:
            pieces.append((line[last : match.start()], None))
        bare = re.sub(r'^(doi:|arXiv:?)\s?', '', found)
        prefix = {'d': 'https://doi.org/', 'a': 'https://arxiv.org/abs/'}.get(found[0], '')
        pieces.append((found, prefix + bare))
        last = match.start() + len(found)
    if last < len(line):
        pieces.append((line[last:], None))
    return pieces


def _version() -> str:
    from bids_gsrecon import __version__

    return __version__
