"""What can be said about the arguments before anything runs: each complaint is one sentence, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.kspace_files import kspace_files, kspace_participants

VALIDATOR = 'bids-validator-deno'
VALIDATOR_SECONDS = 30  # a large dataset must not delay every job of an array


def check_folders(config: Config) -> None:
    """The dataset exists; output and work folders are writable and do not lie inside the raw data.

    Raises
    ------
    InputError
        Which folder, why, and what to choose instead.
    """
    bids_dir, output_dir, work_dir = (
        path.resolve() for path in (config.bids_dir, config.output_dir, config.work_dir)
    )
    if not bids_dir.is_dir():
        raise InputError(f'{config.bids_dir} is not a folder: give the root of a BIDS dataset.')
    if config.execution.analysis_level == 'group' and not config.method.m2asr_train:
        if not output_dir.is_dir():
            raise InputError(f'{config.output_dir} does not exist: run the participant level first.')
        _check_writable(output_dir, 'output folder')
        return
    suggestion = bids_dir / 'derivatives' / 'bids_gsrecon'
    if output_dir == bids_dir:
        raise InputError(
            f'the output folder is the input dataset {bids_dir}: choose another, e.g. {suggestion}.'
        )
    if bids_dir in output_dir.parents and bids_dir / 'derivatives' not in output_dir.parents:
        raise InputError(
            f'the output folder {output_dir} lies inside the input dataset: choose e.g. {suggestion}.'
        )
    if work_dir == bids_dir or bids_dir in work_dir.parents:
        raise InputError(f'the work folder {work_dir} lies inside the input dataset: choose another with -w.')
    if work_dir == output_dir:
        raise InputError(f'the work folder {work_dir} is the output folder: choose another with -w.')
    _check_writable(output_dir, 'output folder')
    _check_writable(work_dir, 'work folder')


def _check_writable(folder: Path, role: str) -> None:
    probe = folder / f'.write-test-{uuid.uuid4()}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'')
        probe.unlink()
    except OSError as error:
        raise InputError(
            f'the {role} {folder} cannot be written ({error.strerror}): choose another.'
        ) from error


def find_participants(
    bids_dir: Path, wanted: list[str], *, with_kspace: bool = False
) -> tuple[list[str], list[str]]:
    """Labels to process and labels asked for that the dataset does not have.

    ``with_kspace``: a participant may have nothing but k-space under ``sourcedata``.

    Raises
    ------
    InputError
        Not a BIDS dataset, or it has none of the wanted participants.
    """
    found = sorted(path.name.removeprefix('sub-') for path in bids_dir.glob('sub-*') if path.is_dir())
    if with_kspace:
        found = sorted({*found, *kspace_participants(bids_dir)})
    if not found:
        raise InputError(f'{bids_dir} has no sub-* folder: give the root of a BIDS dataset.')
    if not wanted:
        return found, []
    known = sorted(set(wanted) & set(found))
    unknown = sorted(set(wanted) - set(found))
    if not known:
        names = ', '.join(f'sub-{label}' for label in unknown)
        some = ', '.join(f'sub-{label}' for label in found[:5]) + (', ...' if len(found) > 5 else '')
        raise InputError(f'{bids_dir} has no participant {names}: it has {some}.')
    return known, unknown


def check_sessions(config: Config) -> None:
    """``--session-label`` names sessions that at least one of the participants has."""
    for session in config.execution.session_label:
        labels = config.execution.participant_label
        folders = [config.bids_dir / f'sub-{label}' / f'ses-{session}' for label in labels]
        raw = [kspace_files(config.bids_dir, label, [session]) for label in labels]
        if not any(folder.is_dir() for folder in folders) and not any(raw):
            raise InputError(f'no participant has a session ses-{session}: correct --session-label.')


def check_output_spaces(spaces: list[str], reference: str) -> None:
    """Only the native space of the reference exists so far."""
    allowed = {reference, 'anat', 'native', 'individual'}
    for space in spaces:
        if space.split(':')[0] not in allowed:
            raise InputError(
                f'--output-spaces {space} is not available: this version writes the native space of the '
                f'reference ({reference}) only; apply a normalisation to its output instead.'
            )


def parse_derivatives(items: list[str]) -> dict[str, str]:
    """``--derivatives [PACKAGE=]PATH ...`` as a table of existing folders."""
    table: dict[str, str] = {}
    for item in items:
        package, equals, path = item.partition('=')
        folder = Path(path if equals else item).absolute()
        if not folder.is_dir():
            raise InputError(f'--derivatives {item} is not a folder: correct the path.')
        name = package if equals else folder.name
        while name in table:
            name += '_'
        table[name] = str(folder)
    return table


def check_m2asr(config: Config) -> None:
    """``--train`` and ``--weights`` where they belong; weights that are there and can be read.

    Raises
    ------
    InputError
        What is missing, and how to get it.
    """
    execution, method = config.execution, config.method
    level = execution.analysis_level
    if method.m2asr_train and (method.recon != 'm2asr' or level != 'group'):
        raise InputError(
            '--train belongs to the group level of m2asr: bids_gsrecon BIDS_DIR OUTPUT_DIR group --recon m2asr --train.'
        )
    if method.m2asr_weights and method.recon != 'm2asr':
        raise InputError('--weights belongs to m2asr: add --recon m2asr, or leave it out.')
    if method.m2asr_train:
        if method.m2asr_weights and not method.m2asr_weights.endswith('.h5'):
            raise InputError(
                f'--weights {method.m2asr_weights} does not end in .h5: name the file to write so.'
            )
        return
    if method.recon != 'm2asr' or level == 'group' or execution.reports_only:
        return
    from bids_gsrecon.interfaces.m2asr_files import HOW_TO_GET_WEIGHTS, read_card

    if not method.m2asr_weights:
        raise InputError(f'--recon m2asr needs trained weights (--weights FILE); {HOW_TO_GET_WEIGHTS}.')
    read_card(method.m2asr_weights)


def check_cuda() -> None:
    """``--device cuda`` needs a CUDA device that PyTorch sees."""
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            '--device cuda was asked for, but PyTorch sees no CUDA device: use --device auto or cpu.'
        )


def dataset_messages(config: Config) -> list[str]:
    """Complaints about the dataset that do not stop a run: no description, errors of the BIDS validator.

    A misnamed file elsewhere in a dataset must not keep a participant from being processed, so the
    validator's errors are reported (the first of each kind), not fatal.

    Raises
    ------
    InputError
        ``dataset_description.json`` is not JSON.
    """
    description = config.bids_dir / 'dataset_description.json'
    if not description.is_file():
        return [f'{config.bids_dir} has no dataset_description.json: BIDS requires one; going on without it.']
    try:
        content = json.loads(description.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{description} is not readable JSON ({error}): repair it.') from error
    if not isinstance(content, dict):
        raise InputError(f'{description} must hold a JSON object with Name and BIDSVersion: repair it.')
    validator = _find_validator()
    if config.execution.skip_bids_validation or validator is None:
        return []
    return _validator_messages(validator, config.bids_dir)


def _find_validator() -> str | None:
    """The validator of this environment, which need not be activated, or of the system."""
    return shutil.which(VALIDATOR, path=str(Path(sys.executable).parent)) or shutil.which(VALIDATOR)


def _validator_messages(validator: str, bids_dir: Path) -> list[str]:
    command = [validator, str(bids_dir), '--format', 'json', '--ignoreWarnings', '--ignoreNiftiHeaders']
    environ = {**os.environ, 'DENO_NO_UPDATE_CHECK': '1'}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=VALIDATOR_SECONDS, env=environ, check=False
        )
        issues = json.loads(done.stdout)['issues']['issues']
    except subprocess.TimeoutExpired:
        return [
            f'the BIDS validator took more than {VALIDATOR_SECONDS} s and was stopped (--skip-bids-validation).'
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return ['the BIDS validator could not be run; going on without it.']
    kinds: dict[str, list[str]] = {}
    for issue in issues:
        if issue.get('severity') == 'error':
            kinds.setdefault(str(issue.get('code')), []).append(str(issue.get('location', '')))
    return [
        f'the BIDS validator reports {code} for {len(files)} file(s), e.g. {files[0]}; going on.'
        for code, files in kinds.items()
    ]
