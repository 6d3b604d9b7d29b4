"""Figures of merit in plain language: what each one says, and when it asks for a second look."""

from __future__ import annotations

import math

# name -> (title, unit, explanation, low limit or None, high limit or None); beyond a limit: look closely.
GLOSSARY: dict[str, tuple[str, str, str, float | None, float | None]] = {
    'slice_residual_percent': (
        'Slice residual',
        '%',
        'How far the slices predicted from the result are from the acquired ones, as a share of their '
        'brightness. About the noise level is right; much more means motion, misregistration or a wrong '
        'slice thickness.',
        None,
        8.0,
    ),
    'noise_sigma': (
        'Noise',
        '',
        'Standard deviation of the noise of the slices, in the units of the image.',
        None,
        None,
    ),
    'pose_shift_mm': (
        'Pose correction, shift',
        'mm',
        'How far the head was moved to fit the reference, on top of the registration. Above about 2 mm the '
        'registration should be looked at.',
        None,
        2.0,
    ),
    'pose_rotation_deg': (
        'Pose correction, rotation',
        '°',
        'The rotation of the same correction.',
        None,
        2.0,
    ),
    'n_gaussians': ('Gaussians', '', 'Number of Gaussians that make up the image.', None, None),
}

UNITS = {
    '_percent': ' %',
    '_mm': ' mm',
    '_deg': '°',
    '_db': ' dB',
    '_s': ' s',
    '_gb': ' GB',
    '_seconds': ' s',
}


def number(value) -> str:
    """A value for a table: four significant digits, yes/no, lists joined."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, int):
        return f'{value:,}'.replace(',', '\u202f') if abs(value) >= 10000 else str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return number(int(value)) if value.is_integer() and abs(value) < 1e15 else f'{value:.4g}'
    if isinstance(value, (list, tuple)):
        return ', '.join(number(v) for v in value)
    if isinstance(value, dict):
        return '; '.join(f'{humanise(k)}: {number(v)}' for k, v in value.items())
    return str(value)


def humanise(name: str) -> str:
    """``slice_thickness_mm`` -> ``Slice thickness (mm)``."""
    text = str(name)
    for suffix, unit in UNITS.items():
        if text.endswith(suffix) and len(text) > len(suffix):
            text = f'{text.removesuffix(suffix)} ({unit.strip()})'
            break
    text = text.replace('_', ' ')
    return text[:1].upper() + text[1:]


def explain(name: str, value) -> tuple[str, str, str]:
    """(title, value with its unit, explanation) of one figure of merit."""
    if name in GLOSSARY:
        title, unit, text, _, _ = GLOSSARY[name]
        space = '' if unit in ('', '°') else ' '
        return title, f'{number(value)}{space}{unit}', text
    return humanise(name), number(value), ''


def verdict_of(figures: dict) -> tuple[str, list[str]]:
    """``good`` or ``check``, with the reasons: figures of merit beyond their limits."""
    reasons = []
    for name, value in figures.items():
        if name not in GLOSSARY or not isinstance(value, (int, float)):
            continue
        title, unit, _, low, high = GLOSSARY[name]
        if not math.isfinite(value):
            reasons.append(f'{title} is not a number')
        elif low is not None and value < low:
            reasons.append(f'{title} {number(value)} {unit} is below {number(low)}'.replace('  ', ' '))
        elif high is not None and value > high:
            reasons.append(f'{title} {number(value)} {unit} is above {number(high)}'.replace('  ', ' '))
    return ('check' if reasons else 'good'), reasons
