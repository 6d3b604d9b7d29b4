"""Figures of merit in plain language: what each one says, and when it asks for a second look."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What one figure of merit is called and says; beyond ``low`` or ``high`` it asks for a second look."""

    title: str
    unit: str
    text: str
    low: float | None = None
    high: float | None = None


# In the order of the table.
GLOSSARY = {
    'residual_rms_percent': Figure(
        'Slice residual',
        '%',
        'How far the slices predicted from the result are from the acquired ones, as a share of the bright '
        'tissue. About the noise level is right; much more means motion, misregistration or a wrong slice '
        'thickness, much less that noise was reproduced too.',
        high=6.0,
    ),
    'noise_percent': Figure(
        'Noise of the slices', '%', 'Standard deviation, as a share of the bright tissue.', high=10.0
    ),
    'mask_coverage_percent': Figure(
        'Coverage', '%', 'Share of the mask that the slices reach; beyond them the result is empty.', low=90.0
    ),
    'ncc_mean': Figure(
        'Slices against the others',
        '',
        'Mean correlation of slices with what the other stacks predict of them, inside the mask: 1 says that '
        'every slice fits. Low values mean motion that was not found, another contrast, or a wrong mask.',
        low=0.6,
    ),
    'excluded_percent': Figure(
        'Excluded slices',
        '%',
        'Share of the slices that count for next to nothing: signal lost to motion, or their place not found.',
        high=20.0,
    ),
    'motion_mean_mm': Figure(
        'Motion',
        'mm',
        'Mean way of a slice from where the scanner believed it, less that of its whole stack.',
    ),
    'motion_max_mm': Figure('Largest motion', 'mm', 'The same, of the slice that moved most.'),
    'uncertainty_percent': Figure(
        'Uncertainty',
        '%',
        'Median standard deviation of the error, as a share of the median brightness, from what slices disagree '
        'about and how many see a place.',
    ),
    'chi2': Figure(
        'chi^2',
        '',
        'Mean squared difference between the lines of k-space and what the model says of them, in units of their noise, '
        'of the slice that is farthest from 1: 1 says that the data are described down to the noise, more that '
        'something moves or changes that the model does not follow.',
    ),
    'unexplained_percent': Figure(
        'Not explained',
        '%',
        'Power of the data beyond noise that the model misses, as a share of the signal.',
    ),
    'acceleration': Figure(
        'Acceleration R', '', 'Lines of k-space over lines of a frame; above 16 nothing was tested.'
    ),
    'lines_left_out': Figure('Lines left out', '', 'They contradict all others.'),
    'field_to_prior_db': Figure(
        'Field against voxels',
        'dB',
        'How closely the Gaussians reproduce the voxel solution that they were fitted to: nothing visible is '
        'lost above about 45 dB.',
        low=38.0,
    ),
    'goal_db': Figure(
        'Gaussians against estimate',
        'dB',
        'How closely the Gaussians reproduce what was estimated for the voxels of the result.',
    ),
    'in_plane_gain': Figure(
        'Gain in plane',
        '',
        'Learning from the planes of the slices, tried on parts of the image it never saw: 1 says that it '
        'found as much detail as it promised, 0 that it found none and was not used.',
    ),
    'self_similarity_gain': Figure(
        'Worth of self-similarity',
        '',
        'How much of what places that look alike told each other was kept, as tried in the planes of the slices: near 0 in '
        'noisy images.',
    ),
    'detail_gain': Figure(
        'Gain across scales', '', 'The same for learning from coarser copies of the image.'
    ),
    'in_plane_factor': Figure(
        'In-plane factor', '', 'How many times finer the pixels became; the network was trained on up to 4.'
    ),
    'own_gain_db': Figure(
        'Gain on itself',
        'dB',
        'The image as acquired, made coarser still and brought back by the network: by how much that betters zero-filling. '
        'The only thing known of this image; near or below 0 the network does not fit it.',
        low=0.2,
    ),
    'edge_correlation': Figure(
        'Edges against the reference',
        '',
        'Correlation of the in-plane edges of image and reference: near -1 they point opposite ways, near 1 the same way. '
        'Where it is not as in the training a warning is given.',
    ),
    'change_percent': Figure(
        'What the network added',
        '%',
        'Difference between the result and the same image without it, as a share of the bright tissue.',
    ),
    'reference_coverage_percent': Figure(
        'Shown by the reference', '%', 'Share of the image; elsewhere pixels are interpolated.', low=90.0
    ),
    'slice_factor': Figure('Slice factor', '', 'Output cells that one slice spacing is divided into.'),
    'n_gaussians': Figure('Gaussians', '', 'How many make up the image.'),
    'n_detail_gaussians': Figure(
        'of these for detail',
        '',
        'Gaussians added where the others do not explain the image: with a reference, what it does not show, '
        'lesions among them.',
    ),
}

# Pictures below the figures of merit, in this order: title, and what to look for.
PICTURES = {
    'movie': (
        'The series',
        'All slices side by side, in real time; readout to the right, phase encoding downwards.',
    ),
    'profile': (
        'A line over time',
        'To the left the mean of all frames with the line that changes most, to the right that line over time, its '
        'left end at the bottom, the series twice. Edges must move smoothly; flicker from frame to frame is noise or aliasing.',
    ),
    'chi2': (
        'chi^2 of every slice',
        '1 says that the data are described down to their noise. Above the first dashed line the series should be '
        'checked, above the second it should not be used unless the missing share of the signal is tiny.',
    ),
    'outline': (
        'The volume and its mask',
        'The volume with the contour of the anatomy: it is zero outside. Tissue cut off here was missing in the masks '
        'of the stacks.',
    ),
    'motion': (
        'Motion of every slice',
        'Where each slice was found, against where the scanner believed it, in the order of acquisition. Smooth curves '
        'are motion; single peaks are slices that lost their way. Crosses are excluded slices. Translations are those '
        'of the centre of the anatomy.',
    ),
    'slices': (
        'Slices as acquired and as predicted',
        'From left to right: the slice (after bias correction), what the volume predicts of it, and the difference. '
        'The slices that fit the others worst come first, then usual ones. Differences should be noise; anatomy in '
        'them means a wrong place, lost signal, or motion within the slice.',
    ),
    'uncertainty': (
        'Uncertainty',
        'The expected error of each voxel, in the units of the image: bright regions deserve caution. Slices disagree '
        'there or say little; where there is a reference, the result leans on it.',
    ),
    'coverage': (
        'Coverage',
        'How many slices see a voxel, by their weights. Where it is near zero the volume is guessed from its '
        'surroundings.',
    ),
    'residual': (
        'What the result does not explain',
        'Acquired slices minus the slices predicted from the result, on the grid of the acquisition, in units of the '
        'noise. It should look like noise: anatomy in this picture means motion, misregistration, a wrong slice '
        'profile, or detail that the model missed.',
    ),
    'change': (
        'What the network added',
        'The result minus the image without the network. It should show edges and fine structure; a whole region in one '
        'colour means that the brightness was changed.',
    ),
    'registration': (
        'Registration check',
        'The acquired image with the edges of the reference drawn on it. Edges must follow tissue borders; a lesion '
        'that the reference does not show has none.',
    ),
    'support': (
        'Where the image was reconstructed',
        'The acquired image with the contour of its support: inside it the result is made of Gaussians, outside it is '
        'interpolated.',
    ),
    'amplitude': (
        'Amplitude',
        'The amplitudes of the Gaussians alone, without the weights by which they prevail over each other.',
    ),
    'relaxationproxy': (
        'Relaxation proxy',
        'How much a Gaussian prevails over its neighbours. It has no unit and is no relaxation time: one contrast '
        'holds none.',
    ),
}

# For the list of parameters: nothing to judge an image by.
TECHNICAL = (
    'guidance_strength',
    'intensity_scale',
    'frozen_weights_gb',
    'n_patches',
    'seconds_prior',
    'seconds_field',
)

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


def figures_of_merit(figures: dict) -> list[tuple[str, str, str]]:
    """(title, value with its unit, explanation) of every figure to judge by, the known ones first."""
    known = [name for name in GLOSSARY if name in figures]
    others = [name for name in figures if name not in GLOSSARY and name not in TECHNICAL]
    return [_explain(name, figures[name]) for name in (*known, *others)]


def technical_figures(figures: dict) -> dict:
    """The rest."""
    return {name: figures[name] for name in TECHNICAL if name in figures}


def verdict_of(figures: dict) -> tuple[str, list[str]]:
    """``good`` or ``check``, with the reasons: figures of merit beyond their limits."""
    reasons = []
    for name, figure in GLOSSARY.items():
        value = figures.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            reasons.append(f'{figure.title} is not a number')
        elif figure.low is not None and value < figure.low:
            reasons.append(
                f'{figure.title} {_with_unit(value, figure)} is below {_with_unit(figure.low, figure)}'
            )
        elif figure.high is not None and value > figure.high:
            reasons.append(
                f'{figure.title} {_with_unit(value, figure)} is above {_with_unit(figure.high, figure)}'
            )
    return ('check' if reasons else 'good'), reasons


def _explain(name: str, value) -> tuple[str, str, str]:
    if name in GLOSSARY:
        return GLOSSARY[name].title, _with_unit(value, GLOSSARY[name]), GLOSSARY[name].text
    return humanise(name), number(value), ''


def _with_unit(value, figure: Figure) -> str:
    return f'{number(value)}{"" if figure.unit in ("", "°") else " "}{figure.unit}'
