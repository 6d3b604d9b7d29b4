"""Which image of a folder of atlases is of a gestational age, by its name."""

from __future__ import annotations

import re
from pathlib import Path

from bids_gsrecon.errors import InputError

WEEKS = (14.0, 45.0)
# As atlases spell it: GA32, STA32, week-32, wk32, t2-t32.00, cohort-32, 32w, 32wk, -32 or _32.
_NUMBER = r'(\d{2}(?:\.\d+)?)'
_SPELLINGS = (
    rf'(?:ga|sta|weeks?|wk|age|cohort)[-_]?{_NUMBER}(?!\d)',
    rf'(?<![\d.]){_NUMBER}[-_]?(?:weeks?|wks?|w)(?![a-z])',
    rf'[-_]t?{_NUMBER}(?![\d.]*\d|[a-z])',
)
_NO_IMAGE = re.compile(r'mask|label|tissue|regional|dseg|seg|parc|prob|atlas-|std|var', re.IGNORECASE)
MOST_WEEKS_OFF = 2.0


def age_in_name(name: str) -> float | None:
    """Gestational age in weeks that a file name states, or nothing."""
    stem = name.lower().removesuffix('.gz').removesuffix('.nii')
    for spelling in _SPELLINGS:
        ages = [float(number) for number in re.findall(spelling, stem)]
        ages = [age for age in ages if WEEKS[0] <= age <= WEEKS[1]]
        if ages:
            return ages[0]
    return None


def template_of_age(folder, gestational_age_weeks: float) -> tuple[Path, float]:
    """The image of a folder that is nearest in age, and its age.

    Masks, labels and maps are passed over. Of two ages as near the younger is taken; of several images of one
    age a T2w, then the shortest name.

    Raises
    ------
    InputError
        No image states an age, or the nearest is more than two weeks off.
    """
    folder = Path(folder)
    aged = [
        (age, item)
        for item in sorted(folder.iterdir())
        if item.name.endswith(('.nii', '.nii.gz')) and not _NO_IMAGE.search(item.name)
        for age in [age_in_name(item.name)]
        if age is not None
    ]
    if not aged:
        raise InputError(
            f'{folder} holds no image whose name states a gestational age (GA32, STA32, week-32, 32w): '
            'name the template itself.'
        )

    def rank(entry):
        age, item = entry
        return abs(age - gestational_age_weeks), age, 't2' not in item.name.lower(), len(item.name), item.name

    age, best = min(aged, key=rank)
    if abs(age - gestational_age_weeks) > MOST_WEEKS_OFF:
        raise InputError(
            f'{folder} has no template within {MOST_WEEKS_OFF:g} weeks of {gestational_age_weeks:g} (the nearest, '
            f'{best.name}, is of {age:g} weeks): name a template itself to use it all the same.'
        )
    return best, age
