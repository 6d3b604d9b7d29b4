"""Where raw data lie in a dataset: BIDS leaves ``sourcedata`` to its owner, this is what we ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SUFFIXES = ('.h5', '.mrd')


def kspace_files(
    bids_dir: Path, participant: str, sessions: Sequence[str] = ()
) -> list[tuple[Path, str | None]]:
    """``sourcedata/sub-<label>/[ses-<label>/]cmr/*_cine.{h5,mrd}`` and their sessions, in the order of their names.

    Parameters
    ----------
    sessions
        Only these; empty: all.
    """
    root = Path(bids_dir) / 'sourcedata' / f'sub-{participant}'
    found = [(path, None) for path in root.glob('cmr/*_cine.*')] if not sessions else []
    for path in root.glob('ses-*/cmr/*_cine.*'):
        session = path.parts[-3].removeprefix('ses-')
        if not sessions or session in sessions:
            found.append((path, session))
    return sorted((item for item in found if item[0].suffix in SUFFIXES), key=lambda item: str(item[0]))


def kspace_participants(bids_dir: Path) -> list[str]:
    """Labels of all participants that have such files."""
    folders = Path(bids_dir).glob('sourcedata/sub-*')
    labels = sorted(path.name.removeprefix('sub-') for path in folders if path.is_dir())
    return [label for label in labels if kspace_files(bids_dir, label)]
