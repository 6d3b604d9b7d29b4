#!/usr/bin/env python3
"""What goes wrong on clusters, done on purpose: how each run ends, and whether running it again repairs it.

  faults.py                     every fault on tiny brains through the real super-resolution (minutes)
  faults.py --only disk clock   those whose name contains one of the words
  faults.py --toy               the same on nodes that compute nothing (what the tests run)

Every fault strikes a run on two participants (one at a time unless the name says workers), in the middle of a step
where the table does not say otherwise. `s to end` counts from the fault to the end of the last process. `again` is the
same command without the fault: its exit code, and whether all images equal those of a run that was left alone, byte
for byte. Files, clocks and locks fail through a library that is loaded before the C library (tests/integration/
faults.c); processes are really killed.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))  # run as a script or loaded by a test
from struck_runs import REAL, TOY, Bench, Report, images


def kill_computing(bench: Bench, *arguments, number=signal.SIGKILL) -> Report:
    run = bench.start(*arguments, struck=True)
    victim = run.at_slow_step()
    time.sleep(0.3)
    since = time.monotonic()
    victim.send_signal(number)
    return bench.row(run, since)


def kill_computing_workers(bench: Bench) -> Report:
    return kill_computing(bench, '--nprocs', '2', '--omp-nthreads', '1')


def kill_computing_twice(bench: Bench) -> Report:
    """As the kernel does where there is not enough for the step alone either."""
    run = bench.start('--nprocs', '2', '--omp-nthreads', '1', struck=True)
    victim = run.at_slow_step()
    folder = victim.cwd()
    victim.kill()
    victims = {victim.pid}
    for _ in range(4):  # of both participants, until the first is lost for good
        other = run.until(lambda: run.computing(but=victims))
        victims.add(other.pid)
        same, since = other.cwd() == folder, time.monotonic()
        other.kill()
        if same:
            break
    return bench.row(run, since)


def crash_computing(bench: Bench) -> Report:
    return kill_computing(bench, number=signal.SIGSEGV)


def kill_planning(bench: Bench) -> Report:
    run = bench.start(struck=True)
    # The second process, before it has any log: it is importing, or reads the dataset.
    victim = run.until(lambda: [p for p in run.tree()[1:] if _spawned(p)])[0]
    since = time.monotonic()
    victim.kill()
    return bench.row(run, since)


def _spawned(process: psutil.Process) -> bool:
    try:
        return 'spawn_main' in ' '.join(process.cmdline())
    except psutil.Error:
        return False


def end(bench: Bench, *arguments, number=signal.SIGTERM, group=False, **environment) -> Report:
    run = bench.start(*arguments, struck=True, **environment)
    run.at_slow_step()
    time.sleep(0.3)
    since = time.monotonic()
    if group:
        os.killpg(run.process.pid, number)
    else:
        run.process.send_signal(number)
    return bench.row(run, since, goes_on=False)


def terminate_workers(bench: Bench) -> Report:
    return end(bench, '--nprocs', '2', '--omp-nthreads', '1')


def interrupt(bench: Bench) -> Report:
    return end(bench, number=signal.SIGINT, group=True)


def terminate_deaf(bench: Bench) -> Report:
    return end(bench, TOY_DEAF='1')


def lose_node(bench: Bench) -> Report:
    run = bench.start('--nprocs', '2', '--omp-nthreads', '1', struck=True)
    run.at_slow_step()
    since = time.monotonic()
    for process in run.tree():
        process.kill()
    return bench.row(run, since)


def kill_first_process(bench: Bench) -> Report:
    return end(bench, '--nprocs', '2', '--omp-nthreads', '1', number=signal.SIGKILL)


def lose_files(bench: Bench) -> Report:
    """The node goes down after the first step: what it wrote last is empty when it comes back."""
    run = bench.start(struck=True)
    run.at_slow_step()
    since = time.monotonic()
    for process in run.tree():
        process.kill()
    run.wait()
    for path in bench.work.rglob('result_*.pklz'):
        path.write_bytes(b'')
    return bench.row(run, since)


def fail_files(bench: Bench, folder: str, number: int, *, midway: bool = True) -> Report:
    mark = bench.folder / bench.name / 'mark'
    place = bench.out if folder == 'out' else bench.work
    environment = {'FAULT_PREFIX': place, 'FAULT_ERRNO': number, 'FAULT_MARK': mark if midway else ''}
    run = bench.start(struck=True, **environment)
    since = None
    if midway:
        run.at_slow_step()
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        since = time.monotonic()
    return bench.row(run, since)


def full_work(bench: Bench) -> Report:
    return fail_files(bench, 'work', 28)


def full_output(bench: Bench) -> Report:
    return fail_files(bench, 'out', 28)


def full_from_start(bench: Bench) -> Report:
    return fail_files(bench, 'out', 28, midway=False)


def quota_output(bench: Bench) -> Report:
    return fail_files(bench, 'out', 122)


def read_only_work(bench: Bench) -> Report:
    return fail_files(bench, 'work', 30, midway=False)


def read_only_midway(bench: Bench) -> Report:
    return fail_files(bench, 'work', 30)


def no_locks(bench: Bench) -> Report:
    return bench.row(bench.start(FAULT_LOCKS='1'))


def clock_behind(bench: Bench) -> Report:
    """Killed by a node whose clock is a day ahead; the next node's is right."""
    run = bench.start(struck=True, FAULT_CLOCK=86400)
    run.at_slow_step()
    since = time.monotonic()
    run.process.kill()
    run.wait()
    later = time.time() + 86400
    for path in [*bench.work.rglob('*'), *bench.out.rglob('*')]:
        os.utime(path, (later, later))
    return bench.row(run, since)


def two_at_once(bench: Bench) -> Report:
    first = bench.start(struck=True)
    first.at_slow_step()
    second = bench.start()
    second.wait()
    seconds = time.monotonic() - second.started
    bench.let_go()
    if first.wait().returncode != 0 or images(bench.out) != bench.truth:
        raise RuntimeError(f'the run that was there first was disturbed:\n{first.wait().stdout}')
    report = bench.row(second)
    report.seconds = seconds
    return report


def two_participants_at_once(bench: Bench) -> Report:
    first = bench.start(struck=True, labels=['01'])
    second = bench.start(labels=['02'])
    bench.let_go()
    first.wait()
    return bench.row(second)


def out_of_memory_error(bench: Bench) -> Report:
    return bench.row(bench.start(TOY_RAISES='MemoryError'))


TOY_ONLY = ('SIGTERM, deaf step', 'MemoryError')
FAULTS: dict[str, Callable[[Bench], Report]] = {
    'killed (out of memory), one process': kill_computing,
    'worker killed once': kill_computing_workers,
    'worker killed (out of memory)': kill_computing_twice,
    'segmentation fault': crash_computing,
    'killed while planning': kill_planning,
    'MemoryError': out_of_memory_error,
    'SIGTERM (scancel, time limit)': end,
    'SIGTERM, workers': terminate_workers,
    'SIGTERM, deaf step': terminate_deaf,
    'SIGINT (Ctrl-C)': interrupt,
    'node lost (all killed)': lose_node,
    'first process killed': kill_first_process,
    'node lost, last files empty': lose_files,
    'disk full: work': full_work,
    'disk full: output': full_output,
    'disk full from the start': full_from_start,
    'quota: output': quota_output,
    'read-only work from the start': read_only_work,
    'read-only work midway': read_only_midway,
    'locks refused (NFS)': no_locks,
    'clock a day ahead, killed': clock_behind,
    'two runs on one output': two_at_once,
    'two runs, other participants': two_participants_at_once,
}


def strike(bench: Bench, fault: str) -> Report:
    """One fault, in folders of its own."""
    bench.name = re.sub(r'\W+', '-', fault)
    report = FAULTS[fault](bench)
    report.fault = fault
    return report


def table(reports: list[Report]) -> str:
    rows = [f'{"fault":38} {"code":>4} {"s to end":>8} {"again":>5} {"equal":>5}  what it says']
    for r in reports:
        said = re.sub(r'/\S*/(logs|work|out)\b', r'<\1>', r.said)
        rows.append(
            f'{r.fault:38} {r.exit_code:4d} {r.seconds:8.1f} {r.again_code:5d} '
            f'{"yes" if r.again_equal else "NO":>5}  {said}'
        )
        rows += [f'{"":38} LEFT OVER: {item}' for item in r.left_over]
    return '\n'.join(rows)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--toy', action='store_true', help='nodes that compute nothing')
    parser.add_argument('--only', nargs='+', metavar='WORD', help='faults whose name contains one of these')
    given = parser.parse_args(arguments)
    names = [n for n in FAULTS if not given.only or any(word in n for word in given.only)]
    names = [n for n in names if given.toy or n not in TOY_ONLY]
    print(
        f'{shlex.join(["faults.py", *(arguments or sys.argv[1:])])}   '
        f'{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, load '
        f'{os.getloadavg()[0]:.1f}'
    )
    with tempfile.TemporaryDirectory(prefix='gsrecon-faults-') as folder:
        bench = Bench(folder, TOY if given.toy else REAL)
        reports = []
        for name in names:
            print(f'... {name}', file=sys.stderr, flush=True)
            reports.append(strike(bench, name))
        print(table(reports))
    return 0 if all(r.again_equal and r.again_code == 0 and not r.left_over for r in reports) else 1


if __name__ == '__main__':
    sys.exit(main())
