"""What every run leaves behind: reports, dataset description, ignore list, methods text."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from importlib.resources import files
from pathlib import Path

import bids_gsrecon
from bids_gsrecon.atomic import write_text
from bids_gsrecon.cli import outcome as outcome_of
from bids_gsrecon.cli.messages import say, say_plain
from bids_gsrecon.cli.outcome import BUSY, FAILED, UNFINISHED, Outcome, write_status
from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError

BIDS_VERSION = '1.10.0'


def write_dataset_files(config: Config) -> None:
    """``dataset_description.json`` and ``.bidsignore``; another application's description is left alone."""
    from bids_gsrecon.workflows.outputs import BIDSIGNORE

    description = config.output_dir / 'dataset_description.json'
    if _is_ours(description):
        write_text(description, json.dumps(_description(config), indent=2) + '\n')
    ignore = config.output_dir / '.bidsignore'
    lines = ignore.read_text().splitlines() if ignore.is_file() else []
    lines += [pattern for pattern in BIDSIGNORE if pattern not in lines]
    write_text(ignore, '\n'.join(lines) + '\n')


def _is_ours(description: Path) -> bool:
    try:
        generators = json.loads(description.read_text()).get('GeneratedBy', [])
        return any(item.get('Name') == 'bids_gsrecon' for item in generators)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, AttributeError):
        return False


def _description(config: Config) -> dict:
    raw: dict = {}
    with contextlib.suppress(OSError, ValueError):
        raw = json.loads((config.bids_dir / 'dataset_description.json').read_text())
    source = {'URL': config.bids_dir.resolve().as_uri()}
    if isinstance(raw.get('DatasetDOI'), str):
        source['DOI'] = raw['DatasetDOI']
    links = {'raw': _link(config, config.bids_dir)}
    links |= {
        name: _link(config, Path(path))
        for name, path in config.execution.derivatives.items()
        if name.isalnum()
    }
    generator = {'Name': 'bids_gsrecon', 'Version': bids_gsrecon.__version__}
    if container := os.environ.get('APPTAINER_CONTAINER') or os.environ.get('SINGULARITY_CONTAINER'):
        generator['Container'] = {'Type': 'apptainer', 'URI': container}
    return {
        'Name': f'bids_gsrecon - MRI reconstruction with Gaussians - of {raw.get("Name", config.bids_dir.name)}',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [generator],
        'SourceDatasets': [source],
        'DatasetLinks': links,
        'HowToAcknowledge': 'Please cite the works named in logs/CITATION.md.',
    }


def _link(config: Config, folder: Path) -> str:
    """Relative where the output lies inside the dataset (both can then be moved), else a file URI."""
    folder, output = folder.resolve(), config.output_dir.resolve()
    return os.path.relpath(folder, output) if folder in output.parents else folder.as_uri()


def write_citation(config: Config, boilerplate: str) -> Path:
    """``logs/CITATION.md`` and the bibliography beside it."""
    logs = config.output_dir / 'logs'
    write_text(logs / 'CITATION.md', boilerplate)
    bibliography = files('bids_gsrecon.data').joinpath('boilerplate.bib').read_text(encoding='utf-8')
    write_text(logs / 'CITATION.bib', bibliography)
    return logs / 'CITATION.md'


def write_reports(config: Config, outcomes: list[Outcome], boilerplate: str, started: float) -> None:
    """One HTML page per participant; a page that cannot be written makes its participant fail."""
    from bids_gsrecon.reports.html import write_participant_report

    for outcome in outcomes:
        if outcome.status == BUSY:  # its page is the other run's
            continue
        info = {
            'status': outcome.status,
            'recon': outcome.recon,
            'why': outcome.reason,
            'remarks': '; '.join(outcome.messages),
            'command': config.execution.command,
            'version': bids_gsrecon.__version__,
            'run_uuid': config.execution.run_uuid,
            'started': time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(started)),
            'crash_files': ', '.join(outcome.crash_files),
        }
        try:
            page = write_participant_report(
                config.output_dir,
                outcome.participant,
                boilerplate=boilerplate,
                errors=outcome.errors,
                run_info={name: value for name, value in info.items() if value},
            )
            outcome.report = str(page)
        except Exception as error:
            if config.execution.verbose:
                import traceback

                traceback.print_exc(file=sys.stderr)
            outcome.errors.append(
                f'the report of sub-{outcome.participant} could not be written ({type(error).__name__}: {error}).'
            )
            outcome.status = FAILED


def start(config: Config, started: float) -> Path:
    """Write down that a run begins, and its settings, for the process that computes and for those who look later.

    Raises
    ------
    InputError
        A folder cannot be written.
    """
    run = config.execution
    sentence = 'was not finished: its run was killed, or still goes on; run the same command again.'
    outcomes = [Outcome(label, UNFINISHED, [f'sub-{label} {sentence}']) for label in run.participant_label]
    try:
        config.to_toml(config.log_dir / 'config.toml')
        if not run.boilerplate_only:
            write_status(config, outcomes, code=None, line='', started=started)
        return config.to_toml(config.run_dir / 'config.toml')
    except OSError as error:
        raise InputError(
            f'{error.filename or config.run_dir} cannot be written ({error.strerror}): free space or choose another '
            'folder (-w for the work folder).'
        ) from error


def conclude(
    config: Config, outcomes: list[Outcome], boilerplate: str, started: float, *, code: int | None = None
) -> int:
    """Reports, dataset files, status and verdict: whatever happened before, and even if the disk is full.

    Parameters
    ----------
    code
        Exit code; by the outcomes if None.
    """
    write_reports(config, outcomes, boilerplate, started)
    problems = []
    try:
        write_dataset_files(config)
    except (InputError, OSError) as error:
        problems.append(str(error))
    code = outcome_of.exit_code(outcomes) if code is None else code
    code = 1 if problems and code == 0 else code
    line = outcome_of.verdict(config, outcomes, code)
    try:
        write_status(config, outcomes, code=code, line=line, started=started)
    except (InputError, OSError) as error:
        problems.append(str(error))
        if code == 0:
            code, line = 1, outcome_of.verdict(config, outcomes, 1)
    for item in outcomes:
        for text in item.verdicts:
            say(text)
        for error in item.errors:
            prefix = '' if f'sub-{item.participant}' in error else f'sub-{item.participant}: '
            say(f'error: {prefix}{error}', error=True)
    for text in problems:
        say(f'error: {text}', error=True)
    say_plain(line)
    return code
