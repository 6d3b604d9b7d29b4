"""What ``gsrecon slurm`` writes: participants.txt, array.sbatch and submit.sh of one data set."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import shutil
import sys
from contextlib import redirect_stderr
from dataclasses import replace
from importlib.resources import files
from io import StringIO
from pathlib import Path

from bids_gsrecon.cli.arguments import output_folder
from bids_gsrecon.cli.outcome import OK, last_outcomes
from bids_gsrecon.cli.resources import parse_memory_gb
from bids_gsrecon.cli.staging import staged
from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.workflows.estimates import Estimate, estimate_participant, job_memory_gb, job_minutes

NAMES = ('participants.txt', 'array.sbatch', 'submit.sh')
# minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds
TIME = re.compile(r'\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}')
PARTICIPANTS_AT_ONCE = 50  # in one index of the data set: its memory, and how often progress is said
OWN_OPTIONS = ('--work-dir', '-w', '--nprocs', '--mem')

SUBMIT = """\
#!/usr/bin/env bash
# Submits all participants of {bids_dir}, in as many arrays as the cluster's limit (MaxArraySize) asks for, one
# after another. Further arguments go to sbatch: bash submit.sh --nice
set -euo pipefail
limit="$(scontrol show config | sed -n 's/^MaxArraySize *= *//p')"
largest=$((${{limit:-1001}} - 1))
previous=''
for ((offset = 0; offset < {n}; offset += largest)); do
    size=$(({n} - offset < largest ? {n} - offset : largest))
    after=()
    if [ -n "$previous" ]; then after=(--dependency="afterany:$previous"); fi
    previous="$(OFFSET=$offset sbatch --parsable --array="1-$size%{concurrent}" "${{after[@]}}" "$@" {script})"
    previous="${{previous%%;*}}"
    echo "job $previous: $size participant(s)"
done
"""


def write_job(args: argparse.Namespace) -> str:
    """Plan the participants, estimate what they take, write the scripts; returns the verdict.

    Raises
    ------
    InputError
        Arguments that bids_gsrecon or sbatch would refuse, nobody to process, a folder that cannot be written.
    """
    _check(args)
    app_arguments, labels, needs_gpu = _split(args.passed_on)
    work_dir = (args.work_dir or Path('work')).absolute()
    # Started in a container, it knows of no other program; its path need not be seen inside.
    image = str(args.image.absolute()) if args.image else os.environ.get('APPTAINER_CONTAINER', '')
    config, paths = _app_settings(args, work_dir, app_arguments, labels)
    folder = output_folder((args.scripts or config.output_dir / 'logs' / 'slurm').absolute())
    labels = _wanted(config, unfinished=args.unfinished)
    estimates = _estimates(config, labels)
    gpus = args.gpus or (1 if needs_gpu else 0)
    largest = Estimate(
        max(item.memory_gb for item in estimates.values()),
        max(item.cpu_seconds for item in estimates.values()),
    )
    memory = args.mem or f'{job_memory_gb(largest, args.cpus_per_task)}G'
    time = args.time or _clock(job_minutes(largest, args.cpus_per_task))
    directives = {
        'job-name': 'gsrecon',
        'partition': args.partition,
        'account': args.account,
        'qos': args.qos,
        'constraint': args.constraint,
        'cpus-per-task': args.cpus_per_task,
        'mem': memory,
        'time': time,
        'gres': f'gpu:{gpus}' if gpus else None,
        'chdir': Path.cwd(),
        'output': folder / '%A_%a.out',
    }
    settings = {
        'BIDS_DIR': config.bids_dir,
        'OUTPUT_DIR': config.output_dir,
        'WORK_DIR': work_dir,
        'PARTICIPANTS': folder / 'participants.txt',
        'IMAGE': image,
        'PROGRAM': shutil.which('bids_gsrecon', path=str(Path(sys.executable).parent)) or 'bids_gsrecon',
        'BINDS': ','.join(
            f'{path}:{path}{"" if writable else ":ro"}' for path, writable in sorted(paths.items())
        ),
        'MAX_RESTARTS': args.max_restarts,
    }
    passed_on = [_absolute(text, paths) for text in app_arguments] + (['--device', 'cuda'] if gpus else [])
    script = folder / 'array.sbatch'
    submit = SUBMIT.format(
        bids_dir=config.bids_dir,
        n=len(estimates),
        concurrent=args.concurrent,
        script=shlex.quote(str(script)),
    )
    with staged(folder, NAMES) as staging:
        (staging / 'participants.txt').write_text(''.join(f'{label}\n' for label in estimates))
        (staging / 'array.sbatch').write_text(array_script(directives, settings, passed_on))
        (staging / 'submit.sh').write_text(submit)
        for name in ('array.sbatch', 'submit.sh'):
            (staging / name).chmod(0o755)
    return (
        f'gsrecon slurm: ok, {len(estimates)} of {len(labels)} participant(s), each {args.cpus_per_task} processors, '
        f'{memory} and {time}{f", {gpus} GPU(s)" if gpus else ""} -> bash {shlex.quote(str(folder / "submit.sh"))}'
    )


def array_script(directives: dict, settings: dict, app_arguments: list[str]) -> str:
    """The array script of the package with other resources and with the settings of a data set in it.

    Parameters
    ----------
    directives
        Options of sbatch by their long names; those the script has are replaced, those that are None left out.
    settings
        Values of its variables, which then count more than what the environment happens to hold.
    app_arguments
        Come before those given to sbatch.
    """
    given = {name: value for name, value in directives.items() if value is not None}
    lines = files('bids_gsrecon.data').joinpath('array.sbatch').read_text(encoding='utf-8').splitlines()
    kept = [
        line
        for line in lines
        if not (match := re.match(r'#SBATCH --([\w-]+)', line)) or match[1] not in given
    ]
    first = next(n for n, line in enumerate(kept) if line.startswith('#SBATCH'))
    kept[first:first] = [f'#SBATCH --{name}={_directive(value)}' for name, value in given.items()]
    place = kept.index('# settings') + 1
    kept[place:place] = [f'{name}={shlex.quote(str(value))}' for name, value in settings.items()]
    kept.insert(place + len(settings), f'set -- {shlex.join(app_arguments)} "$@"'.replace('  ', ' '))
    return '\n'.join(kept) + '\n'


def _directive(value) -> str:
    """sbatch reads a value up to a space, or between quotes."""
    text = str(value)
    return f'"{text}"' if ' ' in text else text


def _check(args: argparse.Namespace) -> None:
    if args.time is not None and not TIME.fullmatch(args.time):
        raise InputError(
            f'--time {args.time} is no time limit of SLURM: write for instance 2:30:00 or 1-12:00:00.'
        )
    if args.mem is not None:
        try:
            parse_memory_gb(args.mem)
        except ValueError as error:
            raise InputError(f'--mem {error}.') from None
    if args.image is not None and not args.image.exists():
        raise InputError(
            f'--image {args.image} does not exist: build it with apptainer build (docs/installation).'
        )
    for name in ('partition', 'account', 'qos', 'constraint'):
        value = getattr(args, name)
        if value is not None and not re.fullmatch(r'[\w.,:*&|@()\[\]-]+', value):
            raise InputError(f'--{name} {value!r} is no name that sbatch takes: correct it.')
    for text in args.passed_on:
        name = text.split('=')[0].replace('_', '-') if text.startswith('--') else text
        if name in OWN_OPTIONS:
            raise InputError(f'{name} belongs before the --: gsrecon slurm sets it for every participant.')


def _split(passed_on: list[str]) -> tuple[list[str], list[str], bool]:
    """What holds for every task, whom it is about, and whether a GPU is needed: here, where jobs are made, need be none.

    Raises
    ------
    InputError
        A device that does not exist, no label where one must be.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'])
    parser.add_argument('--participant-label', '--participant_label', nargs='+', default=[])
    try:
        known, others = parser.parse_known_args(passed_on)
    except argparse.ArgumentError as error:
        raise InputError(f'after --: {error}.') from None
    if known.device in ('auto', 'cpu'):
        others += ['--device', known.device]
    return others, known.participant_label, known.device == 'cuda'


def _app_settings(
    args: argparse.Namespace, work_dir: Path, app_arguments: list[str], labels: list[str]
) -> tuple[Config, dict[str, bool]]:
    """The settings of the jobs, and the paths that their arguments name (True: is written to)."""
    from bids_gsrecon.cli.parser import build_parser, parse_args

    command = [
        str(args.bids_dir),
        str(args.output_dir),
        'participant',
        '--work-dir',
        str(work_dir),
        *app_arguments,
    ]
    command += ['--participant-label', *labels] if labels else []
    said = StringIO()
    try:
        with redirect_stderr(said):
            config = parse_args(command)
    except SystemExit:
        sentence = (
            said.getvalue().strip().removeprefix('bids_gsrecon: error: ') or 'arguments after -- are wrong.'
        )
        raise InputError(sentence) from None
    config.resources.memory_gb = math.inf  # not that of the machine where the jobs are made
    config.resources.nprocs = args.cpus_per_task
    config.resources.omp_nthreads = min(args.cpus_per_task, 8)
    given = build_parser().parse_args(command)
    execution, method = config.execution, config.method
    named = [*execution.derivatives.values(), execution.bids_filter_file, given.config_file, given.use_plugin]
    named += [
        method.m2asr_weights,
        method.svr_template,
        method.brain_template if method.brain_template != 'auto' else '',
    ]
    paths = {str(Path(path).absolute()): False for path in named if path}
    if execution.bids_database_dir:
        paths[execution.bids_database_dir] = True
    return config, paths


def _absolute(text: str, paths: dict[str, bool]) -> str:
    """An argument of the app with its path, if it names one of ``paths``, from the root."""
    name, equals, value = text.rpartition('=')
    path = str(Path(value).absolute())
    return f'{name}{equals}{path}' if value and path in paths else text


def _wanted(config: Config, *, unfinished: bool) -> list[str]:
    if config.execution.unknown_participants:
        names = ', '.join(f'sub-{label}' for label in config.execution.unknown_participants)
        raise InputError(f'{config.bids_dir} has no {names}: correct --participant-label.')
    labels = config.execution.participant_label
    if unfinished:
        last = last_outcomes(config.output_dir)
        labels = [label for label in labels if label not in last or last[label].status != OK]
        if not labels:
            raise InputError(
                f'all participants are finished in {config.output_dir}: there is nothing to submit.'
            )
    return labels


def _estimates(config: Config, labels: list[str]) -> dict[str, Estimate]:
    """What every participant takes who has something to run; why others have not is said."""
    from bids_gsrecon.cli.parser import read_filters
    from bids_gsrecon.workflows.plan import plan_participants

    filters = read_filters(config.execution.bids_filter_file) if config.execution.bids_filter_file else {}
    estimates, reasons = {}, []
    for start in range(0, len(labels), PARTICIPANTS_AT_ONCE):
        some = labels[start : start + PARTICIPANTS_AT_ONCE]
        execution = replace(config.execution, participant_label=some)
        for plan in plan_participants(replace(config, execution=execution), filters):
            if plan.sessions:
                estimates[plan.participant] = estimate_participant(config, plan)
                continue
            why = plan.errors or [f'sub-{plan.participant}: nothing to do ({"; ".join(plan.messages)})']
            reasons += why
            for sentence in why:
                print(f'gsrecon slurm: left out: {sentence}', file=sys.stderr)
        if len(labels) > PARTICIPANTS_AT_ONCE:
            print(f'gsrecon slurm: {start + len(some)} of {len(labels)} participants read', file=sys.stderr)
    if not estimates:
        raise InputError(f'no participant has anything to reconstruct (e.g. {reasons[0].rstrip(".")}).')
    return estimates


def _clock(minutes: int) -> str:
    days, minutes = divmod(minutes, 24 * 60)
    clock = f'{minutes // 60:02d}:{minutes % 60:02d}:00'
    return f'{days}-{clock}' if days else clock
