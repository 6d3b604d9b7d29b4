"""The process that plans, builds the graph and runs it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import sys
import traceback

from bids_gsrecon.cli.build import Build, build
from bids_gsrecon.cli.messages import say
from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError

PLANS = 'plans.pkl'  # in the run's work folder: what was to be done, should this process not live to tell
TRACEBACK = 'traceback.txt'  # there too: of an error of the app itself


def main(config_file: str, started: float, answer) -> None:
    """Entry of the process: settings from a TOML file; the exit code goes to the connection ``answer``."""
    from bids_gsrecon.interfaces.processes import follow_parent, interrupt_on_signals

    follow_parent()
    config = Config.from_toml(config_file)
    try:
        if config.method.m2asr_train:
            from bids_gsrecon.cli.train import run_training

            interrupt_on_signals()  # a checkpoint is left
            answer.send(run_training(config, started))
        else:
            answer.send(run_participants(config, started))
    except Exception:
        # The first process sees that nothing was concluded, and does it.
        (config.run_dir / TRACEBACK).write_text(traceback.format_exc())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if not multiprocessing.active_children():
        os._exit(0)  # all is on disk and said: taking torch and its like down in order would take seconds


def run_participants(config: Config, started: float) -> int:
    """The participant level, from the checked settings to the exit code."""
    from bids_gsrecon.cli import finish
    from bids_gsrecon.cli.outcome import FAILED, Outcome, collect_outcomes

    labels = config.execution.participant_label
    try:
        built = build(config)
    except InputError as error:
        return finish.conclude(
            config, [Outcome(x, FAILED, [str(error)]) for x in labels], '', started, code=2
        )
    except Exception as error:
        detail = traceback.format_exc() if config.execution.verbose else f'{type(error).__name__}: {error}'
        sentence = f'the workflow could not be built: {detail}'
        return finish.conclude(config, [Outcome(x, FAILED, [sentence]) for x in labels], '', started, code=70)
    (config.run_dir / PLANS).write_bytes(pickle.dumps((built.plans, built.boilerplate)))
    announce(config, built)
    if built.boilerplate:
        citation = finish.write_citation(config, built.boilerplate)
        if config.execution.boilerplate_only:
            say(f'SUCCESS: methods text in {citation} (exit code 0)')
            return 0
    finish.write_dataset_files(config)  # also a run that is killed leaves a valid dataset
    failures, ran = {}, built.workflow is not None and not config.execution.boilerplate_only
    if ran:
        failures = _run(config, built.workflow)
    outcomes = collect_outcomes(config, built.plans, ran=ran, failures=failures)
    return finish.conclude(config, outcomes, built.boilerplate, started)


def _run(config: Config, workflow) -> dict[str, str]:
    from bids_gsrecon.cli import execute
    from bids_gsrecon.interfaces.processes import end_children

    execute.apply_nipype_settings(config)
    execute.start_logging(config)
    if config.execution.write_graph:
        say(execute.write_graph(workflow, config))
    failures = execute.run_workflow(workflow, config)
    if failures and config.execution.stop_on_first_crash:
        end_children()
    profile = config.work_dir / workflow.name / 'resource_monitor.json'
    if config.execution.resource_monitor and profile.is_file():
        shutil.copyfile(profile, config.log_dir / 'resource_monitor.json')
        say(f'memory and processor use: {config.log_dir / "resource_monitor.json"}')
    return failures


def announce(config: Config, built: Build) -> None:
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
