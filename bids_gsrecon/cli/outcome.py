"""What became of every participant: errors out of plans and crash files, status.json, the verdict line."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import bids_gsrecon
from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.bids import write_text

if TYPE_CHECKING:
    from bids_gsrecon.workflows.plan_types import ParticipantPlan

OK, FAILED, SKIPPED = 'ok', 'failed', 'nothing to do'
INPUT_ERROR = re.compile(r'bids_gsrecon\.errors\.InputError: (.+)')
ANY_ERROR = re.compile(
    r'^\s*([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Killed))(?:: (.*))?$', re.MULTILINE
)


@dataclass
class Outcome:
    """One participant at the end of a run.

    Attributes
    ----------
    participant
        Label.
    status
        ``ok``, ``failed`` or ``nothing to do``.
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


def collect_outcomes(config: Config, plans: list[ParticipantPlan], *, ran: bool) -> list[Outcome]:
    """The outcome of every participant, by its plan, its crash files and its results.

    Parameters
    ----------
    ran
        The graph was run: results must be there. (With ``--boilerplate-only`` none are expected.)
    """
    from bids_gsrecon.workflows.base import crash_folder

    outcomes = []
    for plan in plans:
        errors = list(plan.errors)
        crash_files = sorted(crash_folder(config.log_dir, plan.participant).glob('crash-*.txt'))
        for path in crash_files:
            error = error_sentence(path, plan.participant)
            if error not in errors:
                errors.append(error)
        missing = missing_results(config, plan) if ran else []
        if missing and not errors:
            errors.append(
                f'sub-{plan.participant} was not finished ({len(missing)} result(s) missing, e.g. {missing[0]}): '
                'run the same command again.'
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


def _verdicts(config: Config, plan: ParticipantPlan) -> list[str]:
    from bids_gsrecon.workflows.registry import session_verdicts

    return [text for session in plan.sessions for text in session_verdicts(plan.recon)(config, session)]


def missing_results(config: Config, plan: ParticipantPlan) -> list[str]:
    """Images that the plan promised and that are not there, relative to the output folder."""
    from bids_gsrecon.workflows.registry import session_results

    results = session_results(plan.recon) if plan.sessions else None
    paths = [path for session in plan.sessions for path in results(config, session)]
    return [path.as_posix() for path in paths if not (config.output_dir / path).is_file()]


def error_sentence(crash_file: Path, participant: str) -> str:
    """The one sentence of a nipype crash file: that of an `InputError`, else node, error and file."""
    text = crash_file.read_text(errors='replace')
    found = INPUT_ERROR.findall(text)
    if found:
        return found[-1].strip()
    node = re.search(r'^Node: (.*)$', text, re.MULTILINE)
    step = node[1].split('.', 1)[-1] if node else crash_file.name
    errors = [match for match in ANY_ERROR.findall(text) if not match[0].endswith('NodeExecutionError')]
    kind, message = errors[-1] if errors else ('an unknown error', '')
    if kind.endswith('MemoryError'):
        return (
            f'sub-{participant}: the step {step} ran out of memory: give it more (--mem), or use --low-mem.'
        )
    what = f'{kind.rsplit(".", 1)[-1]}: {message.strip()[:200]}' if message.strip() else kind
    return f'sub-{participant}: the step {step} failed ({what}): details are in {crash_file}.'


def exit_code(outcomes: list[Outcome]) -> int:
    """0 if all went well (or had nothing to do beside others that did), 1 after a failure, 70 if nothing ran."""
    if any(outcome.status == FAILED for outcome in outcomes):
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
    if skipped:
        parts.append(f'{len(skipped)} had nothing to do')
    word = {0: 'SUCCESS', 1: 'FAILED', 70: 'NOTHING TO DO', 130: 'INTERRUPTED'}.get(code, 'FAILED')
    return f'bids_gsrecon: {word}: {", ".join(parts)}; reports and results in {config.output_dir} (exit code {code})'


def write_status(config: Config, outcomes: list[Outcome], *, code: int, line: str, started: float) -> Path:
    """``logs/<run_uuid>/status.json``."""
    path = config.log_dir / 'status.json'
    content = {
        'run_uuid': config.execution.run_uuid,
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


def last_outcomes(output_dir: Path) -> dict[str, Outcome]:
    """The newest outcome of every participant that any earlier run wrote into ``logs/*/status.json``."""
    found: dict[str, Outcome] = {}
    for path in sorted(output_dir.glob('logs/*/status.json'), key=lambda item: item.stat().st_mtime):
        try:
            for label, table in json.loads(path.read_text())['participants'].items():
                found[label] = Outcome(**table)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found
