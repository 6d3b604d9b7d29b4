"""Which files of the participants exist, by pybids; only the wanted participants are indexed."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

from bids_gsrecon.errors import InputError

ANAT_SUFFIXES = [
    'T1w',
    'T2w',
    'FLAIR',
    'PDw',
    'PD',
    'T2starw',
    'T2star',
    'inplaneT1',
    'inplaneT2',
    'angio',
    'UNIT1',
    'FLASH',
    'PDT2',
    'MTw',
    'MTR',
    'T1rho',
]
# Of these, quantitative maps are computed; each is an image of its own, but no contrast to harmonise.
PART_OF_MAP_SUFFIXES = ['MP2RAGE', 'MESE', 'MEGRE', 'VFA', 'IRT1', 'MPM', 'MTS']
PERF_SUFFIXES = ('asl', 'm0scan')
OTHER_DATATYPES = [
    'func',
    'fmap',
    'eeg',
    'meg',
    'ieeg',
    'beh',
    'pet',
    'micr',
    'nirs',
    'motion',
    'mrs',
    'emg',
    'figures',
]


def make_layout(bids_dir, participants: list[str], database_dir: str = ''):
    """A pybids layout of the anatomical, diffusion and perfusion files of ``participants``.

    With ``database_dir`` all participants are indexed (once), as later runs will ask for others.
    """
    ignore = [re.compile(r'/\.'), re.compile(rf'/(?:{"|".join(OTHER_DATATYPES)})(?:/|$)')]
    if database_dir:
        ignore.append(re.compile(r'^/(?!sub-|[^/]+\.json$)'))
        return _with_database(bids_dir, ignore, Path(database_dir))
    labels = '|'.join(map(re.escape, participants))
    ignore.append(re.compile(rf'^/(?!sub-(?:{labels})(?:/|$)|[^/]+\.json$)'))
    return _layout(bids_dir, ignore)


def _layout(bids_dir, ignore, database: Path | None = None):
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about the dataset's description: checked by us before
        return BIDSLayout(
            os.fspath(bids_dir),
            validate=False,
            database_path=database,
            indexer=BIDSLayoutIndexer(validate=False, ignore=ignore, index_metadata=False),
        )


def _with_database(bids_dir, ignore, shared: Path):
    """The layout of a database that many runs share, on a file system that may have no locks.

    SQLite needs locks, and runs that begin together would all fill one file: each works on a copy of its own, and
    the first that has made one puts it in place, whole.
    """
    own = Path(tempfile.mkdtemp(prefix='bids-database-')) / 'database'
    try:
        if shared.is_dir() and any(shared.iterdir()):
            shutil.copytree(shared, own)
            return _layout(bids_dir, ignore, own)
        layout = _layout(bids_dir, ignore, own)
        _publish(own, shared)
        return layout
    finally:
        atexit.register(shutil.rmtree, own.parent, ignore_errors=True)


def _publish(folder: Path, shared: Path) -> None:
    """A copy of ``folder`` at ``shared``, unless another run was first."""
    staging = None
    try:
        shared.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix='.tmp-', dir=shared.parent))
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        staging.chmod(0o755)
        os.replace(staging, shared)
    except OSError as error:
        if not (shared.is_dir() and any(shared.iterdir())):
            raise InputError(
                f'--bids-database-dir {shared} cannot be written ({error.strerror}): choose another folder.'
            ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def collect_files(
    layout,
    participant: str,
    *,
    sessions: list[str],
    filters: dict[str, dict],
    reference: str,
    parts_of_maps: bool = False,
) -> list[Path]:
    """Images of one participant that can be reconstructed, sorted by name.

    Parameters
    ----------
    sessions
        Only these; empty: all.
    filters
        pybids filters by suffix in lower case, as in fMRIPrep's ``--bids-filter-file``; ``null`` means that
        an entity is absent, ``"*"`` that it is present.
    reference
        Suffix of the reference, in case it is none of the usual ones.
    parts_of_maps
        Also images that are made to compute a quantitative map from (MP2RAGE, VFA, ...).
    """
    anat = [*ANAT_SUFFIXES, *(PART_OF_MAP_SUFFIXES if parts_of_maps else []), reference]
    suffixes = dict.fromkeys(anat, 'anat')
    suffixes |= {'dwi': 'dwi'} | dict.fromkeys(PERF_SUFFIXES, 'perf')
    found: set[Path] = set()
    for suffix, datatype in suffixes.items():
        query = {'datatype': datatype, 'suffix': suffix, 'extension': ['.nii', '.nii.gz']}
        if sessions:
            query['session'] = sessions
        query |= {key: _query_value(value) for key, value in filters.get(suffix.lower(), {}).items()}
        files = layout.get(subject=participant, return_type='file', **query)
        found |= {Path(str(file)) for file in files}
    # A phase image is not a contrast.
    return sorted(path for path in found if '_part-phase' not in path.name and '_part-imag' not in path.name)


def _query_value(value):
    from bids.layout import Query

    names = {None: Query.NONE, '*': Query.ANY, 'Query.NONE': Query.NONE, 'Query.ANY': Query.ANY}
    if isinstance(value, list):
        return [_query_value(item) for item in value]
    return names.get(value, value) if isinstance(value, (str, type(None))) else value


def find_derivative(
    folders: dict[str, str],
    participant: str,
    session: str | None,
    pattern: str,
    *,
    datatype: str = 'anat',
) -> Path | None:
    """First file of a participant (and session) that matches ``pattern`` in given derivatives.

    A file of the participant without session counts for every session (fMRIPrep averages them).
    """
    wanted = []
    for folder in folders.values():
        root = Path(folder) / f'sub-{participant}'
        if session is not None:
            wanted += sorted(root.glob(f'ses-{session}/{datatype}/{pattern}'))
        wanted += sorted(root.glob(f'{datatype}/{pattern}'))
    return wanted[0] if wanted else None
