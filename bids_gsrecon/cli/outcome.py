"""What became of every participant: errors out of plans and crash files, status.json, the verdict line."""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import bids_gsrecon
from bids_gsrecon.atomic import write_text
from bids_gsrecon.config import Config

if TYPE_CHECKING:
    from bids_gsrecon.workflows.plan_types import ParticipantPlan

OK, FAILED, SKIPPED = 'ok', 'failed', 'nothing to do'
BUSY = 'busy'  # another run is at it
UNFINISHED = 'unfinished'  # written when a run begins: what stays if it vanishes
INPUT_ERROR = re.compile(r'bids_gsrecon\.errors\.InputError: (.+)')
ANY_ERROR = re.compile(
    r'^\s*([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Killed))(?:: (.*))?$', re.MULTILINE
)

# What to do about errors of the system, by their number.
REMEDIES = {
    errno.ENOSPC: 'the disk is full: free space, or choose another folder (-w for the work folder)',
    errno.EDQUOT: 'your quota is used up: free space, or choose another folder (-w for the work folder)',
    errno.EFBIG: 'a limit on the size of files was reached: raise it (ulimit -f)',
    errno.EROFS: 'the disk is read-only: choose another folder (-w for the work folder)',
    errno.EACCES: 'the folder may not be written: choose another (-w for the work folder)',
    errno.EPERM: 'the folder may not be written: choose another (-w for the work folder)',
    errno.ENOLCK: 'the file system has no locks: choose another folder (-w for the work folder)',
    errno.ESTALE: 'the network file system lost the file: wait until it is back',
    errno.EIO: 'the disk has errors: choose another folder (-w for the work folder)',
}


@dataclass
class Outcome:
    """One participant at the end of a run.

    Attributes
    ----------
    participant
        Label.
    status
        ``ok``, ``failed``, ``nothing to do``, ``busy`` or ``unfinished``.
    errors
        One sentence each.
    crash_files
        For those who want the traceback.
    recon, reason, messages
        What was chosen, why, and what else there is to know.
    report
        The HTML page.
    verdicts
        What the method says of its own results.
    """

    participant: str
    status: str
    errors: list[str] = field(default_factory=list)
    crash_files: list[str] = field(default_factory=list)
    recon: str = ''
    reason: str = ''
    messages: list[str] = field(default_factory=list)
    report: str = ''
    verdicts: list[str] = field(default_factory=list)


def collect_outcomes(
    config: Config,
    plans: list[ParticipantPlan],
    *,
    ran: bool,
    failures: dict[str, str] | None = None,
    stopped: Iterable[str] = (),
) -> list[Outcome]:
    """The outcome of every participant, by its plan, its crash files and its results.

    Parameters
    ----------
    ran
        The graph was run: results must be there. (With ``--boilerplate-only`` none are expected.)
    failures
        Steps that failed (full name) and what would be in their crash files, in case nobody could write those.
    stopped
        Steps (full name) at which the run was interrupted.
    """
    from bids_gsrecon.workflows.names import crash_folder, participant_of

    outcomes = []
    for plan in plans:
        if plan.participant in config.execution.busy_participants:
            outcomes.append(Outcome(plan.participant, BUSY, list(plan.errors)))
            continue
        errors = list(plan.errors)
        folder = crash_folder(config.log_dir, plan.participant)
        mine = {
            step: text for step, text in (failures or {}).items() if participant_of(step) == plan.participant
        }
        unwritten = _write_crash_files(folder, mine)
        crash_files = sorted(folder.glob('crash-*.txt'))
        sentences = [
            error_sentence(path.read_text(errors='replace'), plan.participant, path) for path in crash_files
        ]
        sentences += [error_sentence(text, plan.participant) for text in unwritten]
        errors += [text for text in dict.fromkeys(sentences) if text not in errors]
        missing = missing_results(config, plan) if ran else []
        if missing and not errors:
            steps = [step for step in stopped if participant_of(step) == plan.participant]
            where = f'stopped at the step {", ".join(steps)}; ' if steps else ''
            errors.append(
                f'sub-{plan.participant} was not finished ({where}{len(missing)} result(s) missing, e.g. '
                f'{missing[0]}): run the same command again.'
            )
        status = FAILED if errors else SKIPPED if plan.nothing_to_do else OK
        outcomes.append(
            Outcome(
                plan.participant,
                status,
                errors,
                [str(path) for path in crash_files],
                plan.recon,
                plan.reason,
                plan.messages,
                verdicts=_verdicts(config, plan) if ran else [],
            )
        )
    return outcomes


def _write_crash_files(folder: Path, failures: dict[str, str]) -> list[str]:
    """A crash file for every failed step that has none; returns the contents of those that could not be written."""
    try:
        known = [path.read_text(errors='replace') for path in folder.glob('crash-*.txt')]
    except OSError:
        known = []
    unwritten = []
    for step, text in failures.items():
        if any(f'Node: {step}\n' in other for other in known):
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f'crash-{step.rsplit(".", 1)[-1]}.txt').write_text(text)
        except OSError:
            unwritten.append(text)
    return unwritten


def _verdicts(config: Config, plan: ParticipantPlan) -> list[str]:
    from bids_gsrecon.workflows.registry import session_verdicts

    return [text for session in plan.sessions for text in session_verdicts(plan.recon)(config, session)]


def missing_results(config: Config, plan: ParticipantPlan) -> list[str]:
    """Images that the plan promised and that are not there, relative to the output folder."""
    from bids_gsrecon.workflows.registry import session_results

    results = session_results(plan.recon) if plan.sessions else None
    paths = [path for session in plan.sessions for path in results(config, session)]
    return [path.as_posix() for path in paths if not (config.output_dir / path).is_file()]


def error_sentence(text: str, participant: str, crash_file: Path | None = None) -> str:
    """The one sentence of a crash: that of an `InputError`, else step, error, remedy or file.

    Parameters
    ----------
    text
        As nipype writes it into a crash file.
    participant
        Label.
    crash_file
        Where it is, if anywhere.
    """
    found = INPUT_ERROR.findall(text)
    if found:
        return found[-1].strip()
    node = re.search(r'^Node: (.*)$', text, re.MULTILINE)
    step = node[1].split('.', 1)[-1] if node else crash_file.name if crash_file else 'unknown'
    errors = [match for match in ANY_ERROR.findall(text) if not match[0].endswith('NodeExecutionError')]
    kind, message = errors[-1] if errors else ('an unknown error', '')
    if kind.endswith('MemoryError'):
        return (
            f'sub-{participant}: the step {step} ran out of memory: give it more (--mem), or use --low-mem.'
        )
    if remedy := _remedy(text):
        return f'sub-{participant}: the step {step} could not write or read its files ({remedy}'
    what = f'{kind.rsplit(".", 1)[-1]}: {message.strip()[:200]}' if message.strip() else kind
    where = f'details are in {crash_file}' if crash_file else 'run again with -v for details'
    return f'sub-{participant}: the step {step} failed ({what}): {where}.'


def _remedy(text: str) -> str:
    """What to do about the last error of the system in a traceback: its name, closing bracket, advice."""
    numbers = re.findall(r'\[Errno (\d+)\] ([^:\n]+)', text) + re.findall(
        r'errno = (\d+),[^\n]*= \'([^\']+)\'', text
    )
    if not numbers or int(numbers[-1][0]) not in REMEDIES:
        return ''
    number, name = numbers[-1]
    path = re.findall(r'\[Errno \d+\] [^:\n]+: \'([^\']+)\'', text)
    where = f', {path[-1]}' if path else ''
    return f'{name.strip()}{where}): {REMEDIES[int(number)]}, and run the same command again.'


def exit_code(outcomes: list[Outcome]) -> int:
    """0 if all went well (or had nothing to do beside others that did), 1 after a failure, 70 if nothing ran."""
    if any(outcome.status in (FAILED, BUSY, UNFINISHED) for outcome in outcomes):
        return 1
    return 0 if any(outcome.status == OK for outcome in outcomes) else 70


def verdict(config: Config, outcomes: list[Outcome], code: int) -> str:
    """The last line of a run."""
    done = [o for o in outcomes if o.status == OK]
    failed = [o for o in outcomes if o.status == FAILED]
    skipped = [o for o in outcomes if o.status == SKIPPED]
    parts = [f'{len(done)} of {len(outcomes)} participant(s) done']
    if failed:
        names = ', '.join(f'sub-{o.participant}' for o in failed)
        parts.append(f'{len(failed)} failed ({names})')
    if busy := [o for o in outcomes if o.status == BUSY]:
        parts.append(f'{len(busy)} left to another run ({", ".join(f"sub-{o.participant}" for o in busy)})')
    if skipped:
        parts.append(f'{len(skipped)} had nothing to do')
    word = {0: 'SUCCESS', 1: 'FAILED', 70: 'NOTHING TO DO', 130: 'INTERRUPTED'}.get(code, 'FAILED')
    return f'bids_gsrecon: {word}: {", ".join(parts)}; reports and results in {config.output_dir} (exit code {code})'


def write_status(
    config: Config, outcomes: list[Outcome], *, code: int | None, line: str, started: float
) -> Path:
    """``logs/<run_uuid>/status.json``; ``code`` is None while the run goes on."""
    path = config.log_dir / 'status.json'
    content = {
        'run_uuid': config.execution.run_uuid,
        'analysis_level': config.execution.analysis_level,
        'version': bids_gsrecon.__version__,
        'command': config.execution.command,
        'started': time.strftime('%Y-%m-%dT%H:%M:%S%z', time.localtime(started)),
        'seconds': round(time.time() - started, 1),
        'exit_code': code,
        'verdict': line,
        'participants': {o.participant: asdict(o) for o in outcomes},
    }
    write_text(path, json.dumps(content, indent=2) + '\n')
    return path


def read_status(path: Path) -> dict:
    """A ``status.json``; empty if it cannot be read."""
    try:
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) and isinstance(content.get('participants'), dict) else {}
    except (OSError, ValueError):
        return {}


def last_outcomes(output_dir: Path) -> dict[str, Outcome]:
    """The newest outcome of every participant that any run wrote into ``logs/*/status.json``."""
    return {label: outcome for label, (outcome, _) in last_runs(output_dir).items()}


def last_runs(output_dir: Path) -> dict[str, tuple[Outcome, dict]]:
    """The same, each with the content of its ``status.json``."""
    found: dict[str, tuple[Outcome, dict]] = {}
    for path in sorted(output_dir.glob('logs/*/status.json'), key=lambda item: item.stat().st_mtime_ns):
        status = read_status(path)
        if status.get('analysis_level') == 'group':  # what became of the pairs of a training
            continue
        for label, table in status.get('participants', {}).items():
            try:
                outcome = Outcome(**table)
            except TypeError:
                continue
            if outcome.status != BUSY:
                found[label] = outcome, status
    return found
