"""The BIDS-App: parse, plan, build, run, and always report.

Exit codes: 0 all went well; 1 a participant or a report failed; 2 wrong arguments; 70 nothing to do, or the
workflow could not be built; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError

INTERRUPTED = 130


def main(arguments=None) -> int:
    """Run the app; see the module for the exit codes."""
    from bids_gsrecon.cli.parser import parse_args

    started = time.time()
    config = parse_args(arguments)
    from bids_gsrecon.cli.execute import prepare_environment

    prepare_environment(config)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if config.method.m2asr_train:
            from bids_gsrecon.cli.train import run_training

            return run_training(config, started)
        if config.execution.analysis_level == 'group':
            from bids_gsrecon.cli.group import run_group

            return run_group(config)
        if config.execution.reports_only:
            return run_reports_only(config, started)
        return run_participants(config, started)
    except InputError as error:
        say(f'error: {error}', error=True)
        return 2
    except KeyboardInterrupt:
        stop_children()
        say('interrupted: run the same command again, it goes on where it stopped', error=True)
        return INTERRUPTED
    except Exception as error:
        if config.execution.verbose:
            raise
        say(f'internal error ({type(error).__name__}: {error}): run again with -v for details', error=True)
        return 1


def run_participants(config: Config, started: float) -> int:
    """The participant level, from the checked settings to the exit code."""
    from bids_gsrecon.cli import checks, finish
    from bids_gsrecon.cli.build import Build, BuildError, build_in_child
    from bids_gsrecon.cli.outcome import collect_outcomes
    from bids_gsrecon.interfaces.bids import remove_stale_temporaries

    for message in checks.dataset_messages(config):
        say(f'warning: {message}', error=True)
    if config.execution.clean_workdir:
        clean(config)
    remove_stale_temporaries(config.output_dir)
    try:
        built: Build = build_in_child(config)
    except BuildError as error:
        detail = str(error) if config.execution.verbose else str(error).strip().splitlines()[-1]
        say(f'the workflow could not be built: {detail}', error=True)
        return 70
    config.to_toml(config.log_dir / 'config.toml')
    announce(config, built)
    if built.boilerplate:
        citation = finish.write_citation(config, built.boilerplate)
        if config.execution.boilerplate_only:
            say(f'SUCCESS: methods text in {citation} (exit code 0)')
            return 0
    finish.write_dataset_files(config)  # also a run that is killed leaves a valid dataset
    interrupted, ran = False, built.workflow is not None and not config.execution.boilerplate_only
    if ran:
        try:
            _run(config, built.workflow)
        except KeyboardInterrupt:
            interrupted = True
            stop_children()
    outcomes = collect_outcomes(config, built.plans, ran=ran)
    return _conclude(config, outcomes, built.boilerplate, started, interrupted=interrupted)


def run_reports_only(config: Config, started: float) -> int:
    """Assemble the reports again from the figures that are there."""
    from bids_gsrecon.cli.outcome import OK, SKIPPED, Outcome, last_outcomes

    known = last_outcomes(config.output_dir)
    outcomes = []
    for label in config.execution.participant_label:
        has_figures = any((config.output_dir / f'sub-{label}' / 'figures').glob('sub-*'))
        outcomes.append(known.get(label) or Outcome(label, OK if has_figures else SKIPPED))
    citation = config.output_dir / 'logs' / 'CITATION.md'
    boilerplate = citation.read_text() if citation.is_file() else ''
    return _conclude(config, outcomes, boilerplate, started)


def _run(config: Config, workflow) -> None:
    from bids_gsrecon.cli import execute

    execute.apply_nipype_settings(config)
    execute.start_logging(config)
    if config.execution.write_graph:
        say(execute.write_graph(workflow, config))
    if not execute.run_workflow(workflow, config) and config.execution.stop_on_first_crash:
        stop_children()
    profile = config.work_dir / workflow.name / 'resource_monitor.json'
    if config.execution.resource_monitor and profile.is_file():
        shutil.copyfile(profile, config.log_dir / 'resource_monitor.json')
        say(f'memory and processor use: {config.log_dir / "resource_monitor.json"}')


def _conclude(
    config: Config, outcomes, boilerplate: str, started: float, *, interrupted: bool = False
) -> int:
    """Reports, dataset files, status and verdict: whatever happened before."""
    from bids_gsrecon.cli import finish, outcome

    finish.write_reports(config, outcomes, boilerplate, started)
    finish.write_dataset_files(config)
    code = INTERRUPTED if interrupted else outcome.exit_code(outcomes)
    line = outcome.verdict(config, outcomes, code)
    outcome.write_status(config, outcomes, code=code, line=line, started=started)
    for item in outcomes:
        for text in item.verdicts:
            say(text)
        for error in item.errors:
            prefix = '' if f'sub-{item.participant}' in error else f'sub-{item.participant}: '
            say(f'error: {prefix}{error}', error=True)
    _print(line, sys.stdout)
    return code


def announce(config: Config, built) -> None:
    """What will be done and why, participant by participant; and where."""
    for plan in built.plans:
        n_images = sum(len(session.targets) for session in plan.sessions)
        if plan.sessions:
            say(f'sub-{plan.participant}: --recon {plan.recon} ({plan.reason}): {n_images} image(s)')
        elif plan.nothing_to_do:
            say(f'sub-{plan.participant}: nothing to do')
        for message in plan.messages:
            say(f'sub-{plan.participant}: {message}')
    if built.backend:
        threads = f'{config.resources.omp_nthreads} thread(s) per node, {config.resources.nprocs} in all'
        say('computing on a GPU (CUDA)' if built.backend == 'cuda' else f'computing on the CPU ({threads})')
    if config.execution.sloppy:
        say('--sloppy: low quality, for testing only', error=True)


def clean(config: Config) -> None:
    """Remove what earlier runs left in the work folder, and nothing else that may lie there."""
    from bids_gsrecon.workflows.base import ROOT_NAME

    shutil.rmtree(config.work_dir / ROOT_NAME, ignore_errors=True)
    for old in config.work_dir.glob('*/config.toml'):
        if old.parent != config.run_dir and old.parent.name[:8].isdigit():
            shutil.rmtree(old.parent, ignore_errors=True)


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def stop_children() -> None:
    """End the worker processes of this run; without it Python would wait for their current node."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.terminate()
        except psutil.Error:
            continue


def say(text: str, *, error: bool = False) -> None:
    """One line for the user."""
    _print(f'bids_gsrecon: {text}', sys.stderr if error else sys.stdout)


def _print(text: str, stream) -> None:
    """A reader that went away (``| head``) must not keep the run from its reports."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        print(text, file=stream, flush=True)


if __name__ == '__main__':
    sys.exit(main())
