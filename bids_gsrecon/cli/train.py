"""The group level that trains: pairs out of the dataset, a few participants at a time, then one network.

Of a participant nothing is left on the disk but one small file per pair: references and masks that were made on the
way go as soon as its pairs are there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bids_gsrecon.cli.messages import say, say_plain
from bids_gsrecon.cli.workdir import participant_folder
from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError

if TYPE_CHECKING:
    from bids_gsrecon.cli.outcome import Outcome
    from bids_gsrecon.workflows.plan_types import ParticipantPlan

AT_ONCE = 4  # participants per processor whose pairs are made in one go


@dataclass
class Prepared:
    """Pairs that are there, and what became of every participant."""

    files: list[Path] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def run_training(config: Config, started: float) -> int:
    """``group --recon m2asr --train``, from the checked settings to the exit code."""
    from bids_gsrecon.cli import checks, finish, outcome
    from bids_gsrecon.cli.supervise import INTERRUPTED
    from bids_gsrecon.interfaces.processes import end_children

    for message in checks.dataset_messages(config):
        say(f'warning: {message}', error=True)
    if config.execution.clean_workdir:
        _clean(config)
    config.to_toml(config.log_dir / 'config.toml')
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
        say('interrupted: run the same command again, it goes on where it stopped', error=True)
        code = INTERRUPTED
    line = _verdict(config, prepared, result, code)
    outcome.write_status(config, prepared.outcomes, code=code, line=line, started=started)
    for item in prepared.outcomes:
        for error in item.errors:
            say(f'error: {error}', error=True)
    say_plain(line)
    return code


def _prepare(config: Config, prepared: Prepared) -> None:
    """Make the pairs of all participants that are not there yet; fills ``prepared`` as it goes."""
    from bids_gsrecon.cli import execute
    from bids_gsrecon.cli.build import build
    from bids_gsrecon.cli.engine import announce
    from bids_gsrecon.cli.outcome import collect_outcomes

    execute.apply_nipype_settings(config)
    execute.start_logging(config)
    for part in _parts(config):
        built = build(part)
        announce(part, built)
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
        score_text,
        train_and_write,
    )
    from bids_gsrecon.cli.progress import ProgressBar
    from bids_gsrecon.interfaces.m2asr_pairs import PairFiles
    from bids_gsrecon.interfaces.m2asr_split import update_split
    from bids_gsrecon.recon.m2asr.types import TrainingOptions

    method, execution = config.method, config.execution
    started = time.monotonic()
    pairs = PairFiles(files, held_gb=0.25 * config.resources.memory_gb)
    check_memory(sum(facts.n_voxels for facts in pairs.facts), config.resources.memory_gb, '--mem')
    size = method.m2asr.get('size', TrainingOptions().size)
    weights = Path(method.m2asr_weights or config.output_dir / 'm2asr' / f'm2asr-{size}.h5')
    outputs = TrainingFiles.of(weights, method.m2asr_split)
    outputs.weights.parent.mkdir(parents=True, exist_ok=True)
    held_out, warnings = update_split(
        outputs.split, pairs.subjects, share=method.m2asr_held_out, seed=execution.random_seed
    )
    for warning in warnings:
        say(f'warning: {warning}', error=True)
    gigabytes = sum(path.stat().st_size for path in files) / 1024**3
    say(
        f'training {size} on {len(files)} pair(s) of {len(set(pairs.subjects))} participant(s), {len(held_out)} held out; '
        f'the pairs take {gigabytes:.2g} GB in {files[0].parent}'
    )
    options = TrainingOptions(
        **method.m2asr,
        seed=execution.random_seed,
        n_threads=config.resources.nprocs,
        device=method.device,
        validation_subjects=held_out,
    )
    data = [
        {
            'subject': facts.subject,
            'contrast': facts.contrast,
            'files': [_relative(config, p) for p in facts.sources],
        }
        for facts in pairs.facts
    ]
    with ProgressBar() as progress:
        model = train_and_write(
            pairs,
            options,
            outputs,
            data=data,
            digest=digest_of([json.dumps(facts.key) for facts in pairs.facts]),
            progress=progress,
        )
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


def _verdict(config: Config, prepared: Prepared, result: str, code: int) -> str:
    """The last line of a run."""
    from bids_gsrecon.cli.outcome import FAILED

    failed = [f'sub-{item.participant}' for item in prepared.outcomes if item.status == FAILED]
    parts = [result or 'nothing was trained']
    if not result and not prepared.files and code in (0, 1, 70):
        parts = [f'nothing was trained: there is no pair of {config.method.reference} and another contrast']
    if failed:
        parts.append(f'{len(failed)} participant(s) failed ({", ".join(failed)})')
    word = {0: 'SUCCESS', 70: 'NOTHING TO DO', 130: 'INTERRUPTED'}.get(code, 'FAILED')
    return f'bids_gsrecon: {word}: {"; ".join(parts)} (exit code {code})'
