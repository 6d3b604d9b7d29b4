"""The first process of a run: it starts the one that computes, and says what became of it, whatever that is."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import shutil
import signal
import tempfile
from pathlib import Path

from bids_gsrecon.cli.locks import Locks
from bids_gsrecon.cli.messages import say
from bids_gsrecon.cli.resources import allocation_messages
from bids_gsrecon.cli.workdir import participant_folder, remove_broken_nodes
from bids_gsrecon.config import Config

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL for what computes; SLURM gives 30 s in all
TRAINING_GRACE_SECONDS = 20.0  # the same for a training: it leaves a checkpoint
POLL_SECONDS = 0.2
INTERRUPTED = 130
LOCAL_PLUGINS = ('', 'Linear', 'MultiProc')


def supervise(config: Config, started: float) -> int:
    """Run the participant level, or the group level that trains, in a process of its own.

    Returns
    -------
    int
        Exit code of the app.

    Raises
    ------
    InputError
        The dataset or a folder cannot be used.
    """
    from bids_gsrecon.cli import checks, finish, train

    trains = bool(config.method.m2asr_train)
    resources = config.resources
    for message in checks.dataset_messages(config) + allocation_messages(
        resources.nprocs, resources.memory_gb
    ):
        say(f'warning: {message}', error=True)
    locks = Locks(config.execution.run_uuid)
    scratch = tempfile.mkdtemp(prefix='bids_gsrecon-')
    if config.resources.plugin in LOCAL_PLUGINS:  # other machines do not have this folder
        os.environ['TMPDIR'] = tempfile.tempdir = scratch  # what a killed process leaves behind goes with it
    try:
        if not trains:
            _lock_participants(config, locks)
        elif holder := train.lock(config, locks):
            return train.conclude_refused(config, holder, started)
        _clean(config, after_crash=bool(locks.taken_over))
        config_file = finish.start(config, started)
        return _supervise(config, config_file, started)
    finally:
        _clean_after(config)
        locks.release()
        with contextlib.suppress(OSError):  # empty, unless participants were kept or other runs are at others
            participant_folder(config, '').parent.rmdir()
        shutil.rmtree(scratch, ignore_errors=True)


def _supervise(config: Config, config_file: Path, started: float) -> int:
    from bids_gsrecon.cli import engine
    from bids_gsrecon.interfaces.processes import end_tree

    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda signum, frame: received.append(signum))
    context = multiprocessing.get_context('spawn')
    answer, sender = context.Pipe(duplex=False)
    process = context.Process(target=engine.main, args=(str(config_file), started, sender), name='engine')
    process.start()
    sender.close()
    while process.is_alive() and not received:
        multiprocessing.connection.wait([process.sentinel], timeout=POLL_SECONDS)
    if received:
        grace_s = TRAINING_GRACE_SECONDS if config.method.m2asr_train else GRACE_SECONDS
        end_tree(process, grace_s=grace_s)
    process.join()
    with contextlib.suppress(EOFError):
        if answer.poll():
            return answer.recv()
    _remove_temporaries(config)
    if config.resources.plugin == 'SLURM':
        from bids_gsrecon.cli.execute import JOBS_FILE
        from bids_gsrecon.interfaces.plugins import cancel_jobs

        cancel_jobs(config.log_dir / JOBS_FILE)
    return _conclude(config, process.exitcode, started, interrupted=bool(received))


def _conclude(config: Config, exitcode: int | None, started: float, *, interrupted: bool) -> int:
    """What a process that could not do it itself would have said at its end."""
    from bids_gsrecon.cli import finish, train
    from bids_gsrecon.cli.engine import PLANS
    from bids_gsrecon.cli.outcome import collect_outcomes
    from bids_gsrecon.cli.steps import crash_text, running_steps, write_steps
    from bids_gsrecon.workflows.names import participant_name
    from bids_gsrecon.workflows.plan_types import ParticipantPlan

    if config.method.m2asr_train:
        return train.conclude(config, _why(config, exitcode), started, interrupted=interrupted)
    why, boilerplate = _why(config, exitcode), ''
    steps = running_steps(config)
    failures = {} if interrupted else {step.name: step.killed(why) for step in steps}
    stopped = [step.name for step in steps] if interrupted else []
    try:
        plans, boilerplate = pickle.loads((config.run_dir / PLANS).read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError):
        what = 'was interrupted' if interrupted else f'failed ({why})'
        sentence = f'the run {what} before anything was computed: run the same command again.'
        plans = [
            ParticipantPlan(x, errors=[f'sub-{x}: {sentence}']) for x in config.execution.participant_label
        ]
        if not interrupted:
            failures = {f'{participant_name(plan.participant)}.plan': plan.errors[0] for plan in plans}
            failures = {step: crash_text(step, text) for step, text in failures.items()}
    outcomes = collect_outcomes(config, plans, ran=True, failures=failures, stopped=stopped)
    write_steps(config.log_dir, {})
    return finish.conclude(config, outcomes, boilerplate, started, code=INTERRUPTED if interrupted else None)


def _why(config: Config, exitcode: int | None) -> str:
    from bids_gsrecon.cli.engine import TRACEBACK

    with contextlib.suppress(OSError):
        text = (config.run_dir / TRACEBACK).read_text()
        if config.execution.verbose:
            say(text, error=True)
        return f'internal error, {text.strip().splitlines()[-1]}'
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f'its process got {signal.Signals(-exitcode).name}'
    return f'its process ended with code {exitcode}'


def _lock_participants(config: Config, locks: Locks) -> None:
    """Participants that another run is at are left to it."""
    from bids_gsrecon.workflows.names import ROOT_NAME

    execution, free = config.execution, []
    for label in execution.participant_label:
        places = [config.output_dir / 'logs', config.work_dir / ROOT_NAME]
        if holder := locks.acquire(folder / f'.lock-sub-{label}' for folder in places):
            execution.busy_participants[label] = (
                f'sub-{label} {holder}, which writes to the same output or work folder: wait for its end, or choose '
                'other folders.'
            )
        else:
            free.append(label)
    execution.participant_label = free


def _clean(config: Config, *, after_crash: bool) -> None:
    """What earlier runs left of these participants, under ``--clean-workdir`` or not to be trusted."""
    for label in config.execution.participant_label:
        folder = participant_folder(config, label)
        if config.execution.clean_workdir:
            shutil.rmtree(folder, ignore_errors=True)
        elif after_crash:
            remove_broken_nodes(folder)
    _remove_temporaries(config)


def _clean_after(config: Config) -> None:
    """The run's own folder, and under ``--clean-workdir`` that of every participant that succeeded."""
    from bids_gsrecon.cli.outcome import OK, read_status

    shutil.rmtree(config.run_dir, ignore_errors=True)
    if config.execution.clean_workdir:
        participants = read_status(config.log_dir / 'status.json').get('participants', {})
        for label in config.execution.participant_label:
            if participants.get(label, {}).get('status') == OK:
                shutil.rmtree(participant_folder(config, label), ignore_errors=True)


def _remove_temporaries(config: Config) -> None:
    """``.tmp-*`` files that a killed run left: while the participants are locked there are no others.

    A training writes to no participant's results, and others may.
    """
    if config.method.m2asr_train:
        return
    for label in config.execution.participant_label:
        for path in (config.output_dir / f'sub-{label}').glob('**/.tmp-*'):
            with contextlib.suppress(OSError):
                path.unlink()
        for path in (config.output_dir / 'logs').glob(f'.tmp-.lock-sub-{label}.*'):
            with contextlib.suppress(OSError):
                path.unlink()
