"""Templates that workflows use, found without network: what is not there is never fetched by a run."""

from __future__ import annotations

import os
from pathlib import Path

from bids_gsrecon.errors import InputError

BUILT_IN = 'auto'
# Whole heads with a brain mask that TemplateFlow has; any other of its names works as well.
SUGGESTED = ('MNI152NLin2009cAsym', 'MNI152NLin6Asym', 'OASIS30ANTs')


def resolve_template(name: str) -> str:
    """The file of ``--brain-template``: ``auto`` as it is, a file, or a name of TemplateFlow that was fetched.

    Raises
    ------
    InputError
        Neither; says how to fetch it.
    """
    if name == BUILT_IN:
        return name
    if Path(name).is_file():
        return str(Path(name).absolute())
    if '/' in name or name.endswith(('.nii', '.nii.gz')):
        raise InputError(f'--brain-template {name} is neither "auto" nor a file nor a name of TemplateFlow.')
    found = find_template(name)
    if found is None:
        raise InputError(
            f'--brain-template {name} is not in {templateflow_home()}, and a run fetches nothing: where there is '
            f'network, run "gsrecon fetch-templates {name}" (TEMPLATEFLOW_HOME chooses the folder), or give a file.'
        )
    return str(found)


def find_template(name: str) -> Path | None:
    """The T1w of a template of TemplateFlow, about 1 mm, with its mask beside it; None where it was not fetched.

    ``name`` may end with a cohort: ``MNIPediatricAsym:cohort-2``.
    """
    name, _, cohort = name.partition(':')
    folder = templateflow_home() / f'tpl-{name}' / cohort
    for path in sorted(folder.glob('tpl-*_T1w.nii.gz')):
        entities = path.name.split('_')[1:-1]
        fits = [part for part in entities if part not in ('res-1', 'res-01', cohort)] == []
        # Files that were not fetched yet are empty.
        if fits and path.stat().st_size and (mask := mask_beside(path)).is_file() and mask.stat().st_size:
            return path
    return None


def mask_beside(path: Path) -> Path:
    """The brain mask of a template's T1w."""
    return path.with_name(path.name.replace('_T1w.nii', '_desc-brain_mask.nii'))


def templateflow_home() -> Path:
    """Where TemplateFlow keeps its files; the package itself, which may ask the network, is not imported."""
    given = os.environ.get('TEMPLATEFLOW_HOME')
    return Path(given).expanduser() if given else Path('~/.cache/templateflow').expanduser()


def fetch_template(name: str) -> Path:
    """Fetch a template (T1w and brain mask) into TemplateFlow's folder, unless it is there.

    Raises
    ------
    InputError
        No network, a name that TemplateFlow does not have, a folder that cannot be written.
    """
    if (found := find_template(name)) is not None:
        return found
    label, _, cohort = name.partition(':')
    query = {'resolution': 1, 'raise_empty': True, 'extension': '.nii.gz'}
    if cohort:
        query['cohort'] = cohort.removeprefix('cohort-')
    try:
        from templateflow import api

        api.get(label, desc=None, suffix='T1w', **query)
        api.get(label, desc='brain', suffix='mask', **query)
    except (ConnectionError, OSError) as error:  # requests' errors are OSErrors
        raise InputError(
            f'{name} could not be fetched from TemplateFlow ({type(error).__name__}): there is no network here, or '
            f'{templateflow_home()} cannot be written; run this where there is network and copy the folder.'
        ) from error
    except Exception as error:
        raise InputError(
            f'TemplateFlow has no T1w with a brain mask of 1 mm named {name}: see https://www.templateflow.org.'
        ) from error
    if (found := find_template(name)) is None:
        raise InputError(
            f'{name} was not fetched whole into {templateflow_home()}: remove tpl-{label}, try again.'
        )
    return found
