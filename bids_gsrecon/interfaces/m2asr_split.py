"""Which subjects a network is trained on and which are held out, kept in a file so that it stays so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from bids_gsrecon.atomic import write_atomically
from bids_gsrecon.errors import InputError

TRAINING, VALIDATION = 'training', 'validation'
HELD_OUT = 0.15
ALONE = 'there is one subject only: no one can be held out, and the scores say nothing about others'


def read_split(path) -> dict[str, str]:
    """Role of every subject in a file that `update_split` (or a person) wrote.

    Raises
    ------
    InputError
        Unreadable, without the columns ``participant_id`` and ``split``, another role, a subject twice.
    """
    try:
        header, *rows = [line.split('\t') for line in Path(path).read_text().splitlines() if line.strip()]
        columns = [header.index(name) for name in ('participant_id', 'split')]
        pairs = [tuple(row[column].strip() for column in columns) for row in rows]
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise InputError(
            f'{path} is no table of a split: it needs the columns participant_id and split, separated by tabs.'
        ) from error
    roles: dict[str, str] = {}
    for subject, role in pairs:
        if role not in (TRAINING, VALIDATION):
            raise InputError(f'{path} has the role {role!r} for {subject}: write {TRAINING} or {VALIDATION}.')
        if roles.setdefault(subject, role) != role:
            raise InputError(f'{path} has two roles for {subject}: keep one.')
    return roles


def divided(
    subjects: Iterable[str], roles: dict[str, str], *, share: float = HELD_OUT, seed: int = 0
) -> dict[str, str]:
    """Roles of all subjects: known ones keep theirs, new ones fill up the share that is held out.

    Who of the new ones is held out depends on their names and the seed alone. At least one of two or more is.
    """
    names = sorted(set(subjects))
    new = [name for name in names if name not in roles]
    wanted = max(1, round(share * len(names))) if len(names) > 1 and share > 0 else 0
    missing = max(0, wanted - sum(roles.get(name) == VALIDATION for name in names))
    if len(new) == len(names):
        missing = min(missing, len(names) - 1)
    drawn = sorted(new, key=lambda name: hashlib.sha256(f'{seed}:{name}'.encode()).hexdigest())
    return {**roles, **dict.fromkeys(new, TRAINING), **dict.fromkeys(drawn[:missing], VALIDATION)}


def update_split(
    path, subjects: Iterable[str], *, share: float = HELD_OUT, seed: int = 0
) -> tuple[tuple[str, ...], list[str]]:
    """Divide the subjects, keep who has a role in the file already, write the file anew.

    Returns
    -------
    validation_subjects, warnings
        Of ``subjects``, those held out; and what there is to say about it.

    Raises
    ------
    InputError
        As `read_split`; nobody is left to train on.
    """
    path, subjects = Path(path), sorted(set(subjects))
    roles = divided(subjects, read_split(path) if path.exists() else {}, share=share, seed=seed)
    held_out = tuple(name for name in subjects if roles[name] == VALIDATION)
    if len(held_out) == len(subjects):
        raise InputError(f'{path} holds out every subject that there is: make one a {TRAINING} subject.')
    rows = [f'{name}\t{role}' for name, role in sorted(roles.items())]
    text = '\n'.join(['participant_id\tsplit', *rows]) + '\n'
    write_atomically(path, lambda temporary: Path(temporary).write_text(text))
    if len(subjects) == 1:
        return held_out, [ALONE]
    return held_out, [] if held_out else ['nobody is held out: the scores say nothing about other subjects']
