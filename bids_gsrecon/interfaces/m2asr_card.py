"""The model card: what a network was trained on, how well it did on subjects it never saw, and what to beware of."""

from __future__ import annotations

import json
from pathlib import Path

from bids_gsrecon.atomic import write_atomically
from bids_gsrecon.interfaces.io import save_json

BEWARE = """\
- It adds detail that is likely, not detail that was measured. Small lesions that the reference does not show may come
  out wrong; look at the image as acquired beside it.
- It knows the contrasts, pixel sizes and factors above. Others are computed with a warning, and may be worse than the
  image without it, above all where the reference is of another sequence.
- The reference must be registered to the image to well below a pixel.
- Scores are means over held-out subjects of this data set. Another scanner is another data set.
"""
_NAMES = {
    'size': 'Size',
    'n_parameters': 'Parameters',
    'contrasts': 'Contrasts',
    'reference_contrast': 'Reference',
    'scales': 'In-plane factors',
    'voxel_mm': 'Pixels (mm)',
    'field_of_view_mm': 'Field of view (mm)',
    'edge_correlation': 'Edges of target and reference, correlation',
    'steps': 'Steps',
    'minutes': 'Minutes',
    'seed': 'Random seed',
    'synthetic_fraction': 'Share of made-up contrasts',
}


def write_card(folder, stem: str, card: dict) -> list[Path]:
    """``<stem>_card.json`` and ``<stem>_card.md`` in a folder."""
    folder = Path(folder)
    text = folder / f'{stem}_card.md'
    write_atomically(
        text, lambda temporary: Path(temporary).write_text(card_text(stem, card), encoding='utf-8')
    )
    return [save_json(folder / f'{stem}_card.json', card), text]


def card_text(name: str, card: dict) -> str:
    """The card as Markdown."""
    rows = [(title, _value(card[key])) for key, title in _NAMES.items() if key in card]
    parts = [
        f'# Model card: {name}',
        'A network that makes the slices of one contrast finer in plane with the help of another (GaussM2ASR), trained '
        'and applied by bids_gsrecon (`--recon m2asr`, `gsrecon m2asr`).',
        _table(['', ''], rows),
        '## Scores',
        _scores(card),
        '## Data and split',
        _people(card),
        '## Beware',
        '\n'.join([*(f'- {text}' for text in card.get('warnings', [])), BEWARE.rstrip()]),
        '## Versions',
        _table(['', ''], [(key, _value(value)) for key, value in card.get('versions', {}).items()]),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def described(card: dict) -> str:
    """What a network was trained on, as a sentence for a methods text."""
    contrasts = ' and '.join(name for name in card.get('contrasts', []) if name) or 'other'
    trained, held_out = len(card.get('subjects', [])), card.get('validation_subjects', [])
    low, high = card.get('scales', (1.0, 4.0))
    out = f', scored on {len(held_out)} others' if held_out else ''
    return (
        f'It (size {card.get("size", "unknown")}) had been trained on {contrasts} images of {trained} '
        f'subject{"s" if trained != 1 else ""}{out}, for in-plane factors of {low:g} to {high:g}.'
    )


def _scores(card: dict) -> str:
    scores = card.get('scores')
    if not scores:
        return 'Nobody was held out: nothing is known of how well it does on others.'
    columns = list(dict.fromkeys(name for row in scores.values() for name in row))
    rows = [[factor, *(_value(row.get(name, '')) for name in columns)] for factor, row in scores.items()]
    text = (
        'Of the held-out subjects, in the mask: the network, and the image that it was given (zero-filled).'
    )
    return f'{text}\n\n{_table(["factor", *(name.replace("_", " ") for name in columns)], rows)}'


def _people(card: dict) -> str:
    trained, held_out = card.get('subjects', []), card.get('validation_subjects', [])
    lines = [f'Trained on {len(trained)}: {", ".join(trained) or "nobody"}.']
    lines.append(f'Held out {len(held_out)}: {", ".join(sorted(held_out)) or "nobody"}.')
    if card.get('data'):
        lines.append(f'{len(card["data"])} pair(s) of images; their files are in the JSON card.')
    return '\n\n'.join(lines)


def _table(header, rows) -> str:
    if not rows:
        return ''
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(str(cell) for cell in line) + ' |' for line in lines)


def _value(value) -> str:
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_value, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)
