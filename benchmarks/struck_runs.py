"""Runs of the app that something may strike: how they are started, watched, ended, and run again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 600.0


@dataclass
class App:
    """How the app is called, and which of its nodes is struck.

    Attributes
    ----------
    module
        For ``python -m``.
    slow
        Start of the name of the node.
    extra
        Further arguments.
    waits
        Its slow node waits for the file ``TOY_WAIT``.
    """

    module: str
    slow: str
    extra: list[str] = field(default_factory=list)
    waits: bool = False


REAL = App('bids_gsrecon', 'super_resolve', ['--sloppy'])
TOY = App('tests.toy_method', 'double', waits=True)


@dataclass
class Report:
    """One row of the table; the rest is for tests."""

    fault: str
    exit_code: int
    seconds: float
    text: str
    status: dict
    crash_files: list[str]
    again_code: int = -1
    again_equal: bool = False
    left_over: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """The first sentence about an error, else the verdict."""
        lines = [line.removeprefix('bids_gsrecon: ') for line in self.text.splitlines()]
        errors = [line for line in lines if line.startswith('error: ')]
        if self.exit_code < 0:
            people = self.status.get('participants', {}).values()
            errors = [f'(status.json: {text})' for person in people for text in person['errors']]
        return errors[0] if errors else lines[-1]


class Bench:
    """A dataset, the images of a run that nothing disturbed, and folders for those that something does."""

    def __init__(self, folder, app: App):
        self.folder, self.app = Path(folder), app
        self.bids = write_dataset(self.folder / 'bids')
        self.library = compile_faults(self.folder)
        self.name = 'undisturbed'
        done = self.start().wait()
        if done.returncode != 0:
            raise RuntimeError(f'the undisturbed run failed:\n{done.stdout}')
        self.truth = images(self.out)

    @property
    def out(self) -> Path:
        return self.folder / self.name / 'out'

    @property
    def work(self) -> Path:
        return self.folder / self.name / 'work'

    @property
    def go(self) -> Path:
        """The file for which the slow node of the toy waits."""
        return self.folder / self.name / 'go'

    def start(self, *arguments, struck: bool = False, labels=(), **environment) -> Run:
        """The app, in a session of its own; ``struck``: its slow node takes its time."""
        command = [sys.executable, '-m', self.app.module, str(self.bids), str(self.out), 'participant']
        command += ['-w', str(self.work), '--recon', 'superres', '--skip-bids-validation', '--mem', '6G']
        command += [*self.app.extra, *(arguments or ('--nprocs', '1'))]
        command += ['--participant-label', *labels] if labels else []
        python_path = os.pathsep.join(filter(None, [os.environ.get('PYTHONPATH'), str(ROOT)]))
        full = {**os.environ, 'PYTHONPATH': python_path, 'PYTHONSAFEPATH': '1'}
        if struck and self.app.waits:
            full['TOY_WAIT'] = str(self.go)
        if environment:
            full |= {'LD_PRELOAD': str(self.library)} | {k: str(v) for k, v in environment.items()}
        return Run(self, command, full)

    def let_go(self) -> None:
        """The slow node of the toy need not wait any longer."""
        self.go.parent.mkdir(parents=True, exist_ok=True)
        self.go.touch()

    def row(self, run: Run, since: float | None = None, *, goes_on: bool = True) -> Report:
        """What became of ``run``, and of the same command run again.

        ``goes_on``: what is not struck comes to its end.
        """
        if goes_on:
            self.let_go()
        done = run.wait()
        seconds = time.monotonic() - (run.started if since is None else since)
        left_over = run.left_over()
        crash_files = [path.read_text() for path in self.out.glob('logs/*/*/crash-*.txt')]
        report = Report('', done.returncode, seconds, done.stdout, last_status(self.out), crash_files)
        report.left_over = left_over
        again = self.start().wait()
        report.again_code = again.returncode
        report.again_equal = images(self.out) == self.truth
        report.left_over += [str(path) for path in self.out.rglob('.tmp-*')]
        report.left_over += [str(path) for path in self.out.parent.rglob('.lock-*')]
        if again.returncode != 0:
            report.text += f'\n--- again ---\n{again.stdout}'
        return report


class Run:
    """A started app."""

    def __init__(self, bench: Bench, command: list[str], environment: dict[str, str]):
        self.bench = bench
        self.started = time.monotonic()
        self._mark = f'FAULTS_RUN={time.monotonic_ns()}'
        name, _, value = self._mark.partition('=')
        self._file = tempfile.TemporaryFile('w+')  # noqa: SIM115 - and not a pipe: orphans would keep it open
        self.process = subprocess.Popen(
            command,
            env={**environment, name: value},
            stdout=self._file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=bench.folder,
        )

    def wait(self) -> subprocess.CompletedProcess:
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for process in self.tree():
                process.kill()
            self.process.wait()
            self._file.write(f'\nHANGS: not ended after {TIMEOUT_S:g} s\n')
        self._file.seek(0)
        return subprocess.CompletedProcess([], self.process.returncode, self._file.read())

    def until(self, ready: Callable[[], object]):
        """Wait until ``ready`` returns something; that."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if result := ready():
                return result
            if self.process.poll() is not None:
                raise RuntimeError(f'it ended before it could be struck:\n{self.wait().stdout}')
            time.sleep(0.02)
        raise RuntimeError('it never came to the step that is to be struck')

    def at_slow_step(self) -> psutil.Process:
        """The process that computes the slow node, as soon as there is one."""
        return self.until(self.computing)

    def tree(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.Error:
            return []

    def computing(self, but=()) -> psutil.Process | None:
        for process in self.tree()[1:]:
            if process.pid in but:
                continue
            try:
                folder = Path(process.cwd())  # nodes run in their folder
            except psutil.Error:
                continue
            if folder.name.startswith(self.bench.app.slow):
                return process
        return None

    def left_over(self) -> list[str]:
        """Processes of this run that live three seconds after its end."""
        name, _, value = self._mark.partition('=')
        deadline = time.monotonic() + 3.0
        while True:
            alive = []
            for process in psutil.process_iter():
                try:
                    if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                        alive.append(f'process {process.pid}: {" ".join(process.cmdline())[:80]}')
                except psutil.Error:
                    continue
            if not alive or time.monotonic() > deadline:
                return alive
            time.sleep(0.1)


def write_dataset(bids: Path, labels=('01', '02'), shape=(20, 20, 10)) -> Path:
    """Participants with one thick scan each: a ball with structure, 4 x 4 x 8 mm."""
    import nibabel as nib
    import numpy as np

    bids.mkdir(parents=True)
    description = {'Name': 'tiny', 'BIDSVersion': '1.10.0'}
    (bids / 'dataset_description.json').write_text(json.dumps(description))
    sizes = np.array([4.0, 4.0, 8.0])
    x, y, z = np.moveaxis((np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) / 2) * sizes, 1, 0)
    inside = (x / 34) ** 2 + (y / 38) ** 2 + (z / 34) ** 2 < 1
    for number, label in enumerate(labels):
        tissue = 500 + 200 * np.sin(x / 7 + number) * np.cos(y / 9) + 150 * np.cos(z / 8)
        data = np.where(inside, tissue, 0).reshape(shape).astype(np.float32)
        folder = bids / f'sub-{label}' / 'anat'
        folder.mkdir(parents=True)
        image = nib.Nifti1Image(data, np.diag([*sizes, 1.0]))
        image.header.set_xyzt_units('mm', 'sec')
        nib.save(image, folder / f'sub-{label}_T2w.nii.gz')
    return bids


def compile_faults(folder: Path) -> Path:
    """The library that makes files, clocks and locks fail.

    Raises
    ------
    RuntimeError
        No C compiler.
    """
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None or sys.platform != 'linux':
        raise RuntimeError('a C compiler on Linux is needed')
    library = folder / 'faults.so'
    source = ROOT / 'tests' / 'integration' / 'faults.c'
    subprocess.run([compiler, '-shared', '-fPIC', '-O1', '-o', library, source, '-ldl'], check=True)
    return library


def images(out: Path) -> dict[str, str]:
    """Hash of every image of a run."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob('sub-*/**/*.nii.gz'))
    }


def last_status(out: Path) -> dict:
    paths = sorted(out.glob('logs/*/status.json'), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(paths[-1].read_text()) if paths else {}
