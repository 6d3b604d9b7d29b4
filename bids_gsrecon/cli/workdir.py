"""What a run that vanished may have left in the work folder."""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from pathlib import Path

from bids_gsrecon.config import Config
from bids_gsrecon.workflows.names import ROOT_NAME, participant_name

HDF5_START = b'\x89HDF\r\n\x1a\n'


def participant_folder(config: Config, label: str) -> Path:
    """Where the nodes of one participant work."""
    return config.work_dir / ROOT_NAME / participant_name(label)


def remove_broken_nodes(folder: Path) -> list[Path]:
    """Delete the folders of nodes that hold an empty or truncated file, so that they are computed again.

    After a machine went down, files that were complete for the program may be empty on the disk; nipype would take
    them for results.

    Returns
    -------
    list of Path
        What was deleted.
    """
    broken = []
    for place, folders, files in os.walk(folder):
        is_node = any(name.startswith('result_') for name in files)
        if is_node and any(_is_broken(Path(place) / name) for name in files):
            shutil.rmtree(place, ignore_errors=True)
            broken.append(Path(place))
            folders.clear()
    return broken


def _is_broken(path: Path) -> bool:
    try:
        if path.stat().st_size == 0:
            return True
        if path.suffix in ('.gz', '.pklz'):
            with gzip.open(path) as file:
                while file.read(1 << 20):
                    pass
        elif path.suffix == '.h5':
            with path.open('rb') as file:
                return file.read(8) != HDF5_START
    except FileNotFoundError:
        return False
    except (OSError, EOFError, zlib.error):
        return True
    return False
