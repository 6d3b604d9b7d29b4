"""The group level that trains: pairs out of the dataset, a few participants at a time, then one network.

Of a participant nothing is left on the disk but one small file per pair: references and masks that were made on the
way go as soon as its pairs are there.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bids_gsrecon.cli.messages import say, say_plain
from bids_gsrecon.cli.workdir import participant_folder
from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError, about

if TYPE_CHECKING:
    from bids_gsrecon.cli.locks import Locks
    from bids_gsrecon.cli.outcome import Outcome
    from bids_gsrecon.workflows.plan_types import ParticipantPlan

AT_ONCE = 4  # participants per processor whose pairs are made in one go
STEP = 'm2asr.training'  # what is written down as at work while the network trains
PREPARED = 'prepared.pkl'  # in the run's work folder: what became of participants so far
INTERRUPTED_SENTENCE = 'interrupted: run the same command again, it goes on where it stopped'


@dataclass
class Prepared:
    """Pairs that are there, and what became of every participant."""

    files: list[Path] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def run_training(config: Config, started: float) -> int:
    """``group --recon m2asr --train``, from the checked settings to the exit code."""
    from bids_gsrecon.cli import finish, outcome
    from bids_gsrecon.cli.supervise import INTERRUPTED
    from bids_gsrecon.interfaces.processes import end_children

    if config.execution.clean_workdir:
        _clean(config)
    finish.write_dataset_files(config)
    prepared, result = Prepared(), ''
    try:
        _prepare(config, prepared)
        if prepared.files and config.method.m2asr_train == 'pairs':
            result = f'{len(prepared.files)} pair(s) in {prepared.files[0].parent}'
        elif prepared.files:
            result = _train(config, prepared.files)
        code = outcome.exit_code(prepared.outcomes)
    except InputError as error:
        say(f'error: {error}', error=True)
        code = 2
    except KeyboardInterrupt:
        end_children()
        say(INTERRUPTED_SENTENCE, error=True)
        code = INTERRUPTED
    return _conclude(config, prepared, result, code, started)


def lock(config: Config, locks: Locks) -> str:
    """Take what a training writes to, or nothing: the weights, and the work folders of the participants.

    Returns
    -------
    str
        Empty, or a sentence about who holds one of them.
    """
    from bids_gsrecon.cli.m2asr_training import lock_file
    from bids_gsrecon.workflows.names import ROOT_NAME

    weights = _weights_path(config)
    wanted = {
        f'sub-{x}': config.work_dir / ROOT_NAME / f'.lock-sub-{x}' for x in config.execution.participant_label
    }
    if config.method.m2asr_train == 'network':
        wanted[str(weights)] = lock_file(weights)
    for name, path in wanted.items():
        if holder := locks.acquire([path]):
            return (
                f'{name} {holder}, which writes to the same work folder or weights: wait for its end, or choose other '
                'folders.'
            )
    return ''


def conclude_refused(config: Config, sentence: str, started: float) -> int:
    """Say that another run is at it; the exit code."""
    say(f'error: {sentence}', error=True)
    return _conclude(config, Prepared(), '', 1, started, why='another run is at it')


def conclude(config: Config, why: str, started: float, *, interrupted: bool) -> int:
    """What a process that was lost would have said at its end: crash files, status and verdict; the exit code."""
    from bids_gsrecon.cli.engine import PLANS, TRACEBACK
    from bids_gsrecon.cli.outcome import FAILED, Outcome, collect_outcomes
    from bids_gsrecon.cli.steps import crash_text, running_steps, write_steps
    from bids_gsrecon.cli.supervise import INTERRUPTED

    prepared, plans = _load(config.run_dir / PREPARED) or Prepared(), _load(config.run_dir / PLANS) or []
    done = {item.participant for item in prepared.outcomes}
    steps = running_steps(config)
    failures = {} if interrupted else {step.name: step.killed(why) for step in steps}
    plans = [plan for plan in plans if plan.participant not in done]
    prepared.outcomes += collect_outcomes(
        config,
        plans,
        ran=True,
        failures=failures,
        stopped=[step.name for step in steps] if interrupted else [],
    )
    done |= {plan.participant for plan in plans}
    sentence = 'the pairs were not made: run the same command again.'
    prepared.outcomes += [
        Outcome(x, FAILED, [f'sub-{x}: {sentence}'])
        for x in config.execution.participant_label
        if x not in done
    ]
    if interrupted:
        say(INTERRUPTED_SENTENCE, error=True)
    elif all(step.name == STEP for step in steps):  # not while pairs were made
        text = failures.get(STEP) or crash_text(
            STEP,
            f'the training failed ({why}): run the same command again, it goes on at its last checkpoint.',
        )
        with contextlib.suppress(OSError):
            traceback = config.run_dir / TRACEBACK
            config.log_dir.mkdir(parents=True, exist_ok=True)
            (config.log_dir / 'crash-training.txt').write_text(
                f'{text}\n{traceback.read_text() if traceback.is_file() else ""}'
            )
        say(f'error: {text.strip().splitlines()[-1].partition("InputError: ")[2]}', error=True)
    write_steps(config.log_dir, {})
    code = INTERRUPTED if interrupted else 1
    return _conclude(config, prepared, '', code, started, why='' if interrupted else why)


def _weights_path(config: Config) -> Path:
    size = config.method.m2asr.get('size', 'tiny')
    return Path(config.method.m2asr_weights or config.output_dir / 'm2asr' / f'm2asr-{size}.h5')


def _conclude(
    config: Config, prepared: Prepared, result: str, code: int, started: float, *, why: str = ''
) -> int:
    """Status, errors and verdict; a full disk must not keep the run from saying them."""
    from bids_gsrecon.cli import outcome

    line = _verdict(config, prepared, result, code, why)
    try:
        outcome.write_status(config, prepared.outcomes, code=code, line=line, started=started)
    except (InputError, OSError) as error:
        say(f'error: {error}', error=True)
        if code == 0:
            code, line = 1, _verdict(config, prepared, result, 1, why)
    for item in prepared.outcomes:
        for error in item.errors:
            say(f'error: {error}', error=True)
    say_plain(line)
    return code


def _keep(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def _load(path: Path):
    """What `_keep` wrote; None: nothing whole is there."""
    try:
        return pickle.loads(path.read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError):
        return None


def _prepare(config: Config, prepared: Prepared) -> None:
    """Make the pairs of all participants that are not there yet; fills ``prepared`` as it goes."""
    from bids_gsrecon.cli import execute
    from bids_gsrecon.cli.build import build
    from bids_gsrecon.cli.engine import PLANS, announce
    from bids_gsrecon.cli.outcome import collect_outcomes

    execute.apply_nipype_settings(config)
    execute.start_logging(config)
    for part in _parts(config):
        built = build(part)
        announce(part, built)
        _keep(config.run_dir / PLANS, built.plans)
        for target in _targets(built.plans):
            if not target.is_made:
                Path(target.pair_file).unlink(missing_ok=True)
        failures = {}
        if built.workflow is not None and built.workflow.list_node_names():
            failures = execute.run_workflow(built.workflow, part)
        outcomes = collect_outcomes(part, built.plans, ran=built.workflow is not None, failures=failures)
        prepared.outcomes += outcomes
        prepared.files += [path for t in _targets(built.plans) if (path := Path(t.pair_file)).is_file()]
        _remove_intermediate(part, [item.participant for item in outcomes if not item.errors])
        _keep(config.run_dir / PREPARED, prepared)


def _parts(config: Config) -> Iterator[Config]:
    """The settings for a few participants at a time; those that do not exist come with the first."""
    labels, unknown = config.execution.participant_label, config.execution.unknown_participants
    size = AT_ONCE * max(config.resources.nprocs // config.resources.omp_nthreads, 1)
    size = (
        max(size, 64) if config.resources.plugin else size
    )  # a cluster has more processors than this machine
    for start in range(0, max(len(labels), 1), size):
        execution = replace(
            config.execution,
            participant_label=labels[start : start + size],
            unknown_participants=unknown if start == 0 else [],
        )
        yield replace(config, execution=execution)


def _targets(plans: list[ParticipantPlan]) -> list:
    return [target for plan in plans for session in plan.sessions for target in session.targets]


def _remove_intermediate(config: Config, participants: list[str]) -> None:
    """What was made on the way to pairs that are there."""
    for label in participants:
        shutil.rmtree(participant_folder(config, label), ignore_errors=True)


def _clean(config: Config) -> None:
    from bids_gsrecon.workflows.plan_m2asr import pairs_folder

    _remove_intermediate(config, config.execution.participant_label)
    shutil.rmtree(pairs_folder(config), ignore_errors=True)


def _train(config: Config, files: list[Path]) -> str:
    """Split, train, write; what to say of it."""
    from bids_gsrecon.cli.m2asr_training import (
        TrainingFiles,
        check_memory,
        digest_of,
        needed_gb,
        prepare_store,
        score_text,
        train_and_write,
    )
    from bids_gsrecon.cli.progress import ProgressBar
    from bids_gsrecon.cli.steps import write_steps
    from bids_gsrecon.interfaces.m2asr_pairs import HELD_GB, PairFiles
    from bids_gsrecon.interfaces.m2asr_split import update_split
    from bids_gsrecon.recon.m2asr.types import TrainingOptions

    method, execution = config.method, config.execution
    started = time.monotonic()
    memory_gb = config.resources.memory_gb
    held_gb = min(HELD_GB, 0.25 * memory_gb)
    pairs = PairFiles(files, held_gb=held_gb)
    n_voxels = [facts.n_voxels for facts in pairs.facts]
    check_memory(n_voxels, held_gb, memory_gb, '--mem')
    size = method.m2asr.get('size', TrainingOptions().size)
    outputs = TrainingFiles.of(_weights_path(config), method.m2asr_split, config.work_dir)
    outputs.weights.parent.mkdir(parents=True, exist_ok=True)
    held_out, warnings = update_split(
        outputs.split, pairs.subjects, share=method.m2asr_held_out, seed=execution.random_seed
    )
    for warning in warnings:
        say(f'warning: {warning}', error=True)
    with about(outputs.weights):
        options = TrainingOptions(
            **method.m2asr,
            seed=execution.random_seed,
            n_threads=config.resources.nprocs,
            device=method.device,
            validation_subjects=held_out,
        )
    digest = digest_of([json.dumps(facts.key) for facts in pairs.facts])
    trained_on = [box for box, subject in zip(pairs.boxes(), pairs.subjects) if subject not in held_out]
    store, slices_gb = prepare_store(trained_on, outputs, digest, with_labels=options.synthetic_fraction > 0)
    gigabytes = sum(path.stat().st_size for path in files) / 1e9
    say(
        f'training {size} on {len(files)} pair(s) of {len(set(pairs.subjects))} participant(s), {len(held_out)} held out; '
        f'the pairs take {gigabytes:.2g} GB in {files[0].parent}, their prepared slices {slices_gb:.2g} GB in '
        f'{outputs.slices} until the training is done'
    )
    data = [
        {
            'subject': facts.subject,
            'contrast': facts.contrast,
            'files': [_relative(config, p) for p in facts.sources],
        }
        for facts in pairs.facts
    ]
    write_steps(config.log_dir, {STEP: needed_gb(n_voxels, held_gb)})
    with ProgressBar() as progress:
        model = train_and_write(
            pairs,
            options,
            outputs,
            data=data,
            digest=digest,
            store=store,
            progress=progress,
        )
    write_steps(config.log_dir, {})
    score = score_text(model.card)
    return (
        f'{size} trained on {len(files)} pair(s), {len(held_out)} participant(s) held out, {model.card.get("steps", 0)} '
        f'steps in {time.monotonic() - started:.0f} s{"; " + score if score else ""} -> {outputs.weights}'
    )


def _relative(config: Config, path: str) -> str:
    """Below the dataset, as a card travels further than the dataset does."""
    return (
        Path(path).relative_to(config.bids_dir).as_posix() if path.startswith(str(config.bids_dir)) else path
    )


def _verdict(config: Config, prepared: Prepared, result: str, code: int, why: str = '') -> str:
    """The last line of a run; ``why`` nothing was trained, where that is known."""
    from bids_gsrecon.cli.outcome import FAILED

    failed = [f'sub-{item.participant}' for item in prepared.outcomes if item.status == FAILED]
    parts = [result or f'nothing was trained{f" ({why})" if why else ""}']
    if not why and not result and not prepared.files and code in (0, 1, 70):
        parts = [f'nothing was trained: there is no pair of {config.method.reference} and another contrast']
    if failed:
        parts.append(f'{len(failed)} participant(s) failed ({", ".join(failed)})')
    word = {0: 'SUCCESS', 70: 'NOTHING TO DO', 130: 'INTERRUPTED'}.get(code, 'FAILED')
    return f'bids_gsrecon: {word}: {"; ".join(parts)} (exit code {code})'
