"""One run at a time per participant and folder, on any file system.

Network file systems may refuse ``flock``, so a lock is a file that is made exclusively. Its owner touches it while it
lives; whether it still does is told by the process (on the same machine) or by whether the file is touched. Ages are
taken between times that the file system itself has set: clocks of nodes may disagree.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

from bids_gsrecon.errors import InputError

BEAT_SECONDS = 15.0
STALE_SECONDS = 60.0  # four beats; also longer than file systems keep attributes


class Locks:
    """Locks of one run, touched by a thread until `release`.

    Parameters
    ----------
    run_uuid
        Of the run that holds them.

    Attributes
    ----------
    taken_over
        Locks whose owner had gone without giving them back.
    """

    def __init__(self, run_uuid: str):
        self._owner = {'run': run_uuid, **_this_process()}
        self.taken_over: list[Path] = []
        self._paths: list[Path] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, paths) -> str:
        """Take all of ``paths`` or none.

        Returns
        -------
        str
            Empty, or who holds one of them (a clause without a subject).

        Raises
        ------
        InputError
            A folder cannot be written.
        """
        taken: list[Path] = []
        for path in map(Path, paths):
            holder = self._take(path)
            if holder:
                for mine in taken:
                    _remove(mine)
                return holder
            taken.append(path)
        self._paths += taken
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name='locks', daemon=True)
            self._thread.start()
        return ''

    def release(self) -> None:
        """Give all of them back."""
        self._stop.set()
        while self._paths:
            path = self._paths.pop()
            if _read(path).get('run') == self._owner['run']:
                _remove(path)

    def _take(self, path: Path) -> str:
        first_touched = None
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if self._create(path):
                    return ''
                held = is_held(path)
                if held is False:
                    path.unlink(missing_ok=True)
                    self.taken_over.append(path)
                    continue
            except OSError as error:
                raise InputError(
                    f'{path} cannot be written ({error.strerror}): free space or choose a writable folder.'
                ) from error
            touched = _touched(path)
            first_touched = touched if first_touched is None else first_touched
            if held or touched != first_touched:
                owner = _read(path)
                return f'is being processed by run {owner.get("run", "?")} on {owner.get("host", "?")}'
            time.sleep(1.0)  # it is touched again, or gets too old

    def _create(self, path: Path) -> bool:
        """Make the file with its content, at once: a link fails where there is one, on NFS too. False: it is there."""
        temporary = path.with_name(f'.tmp-{path.name}.{os.getpid()}.{self._owner["host"]}.{id(self)}')
        try:
            temporary.write_text(json.dumps(self._owner))
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                try:
                    with path.open('x') as file:
                        file.write(json.dumps(self._owner))
                except FileExistsError:
                    return False
            return True
        finally:
            _remove(temporary)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            for path in list(self._paths):
                with contextlib.suppress(OSError):
                    os.utime(path)


def is_held(path) -> bool | None:
    """Whether the owner of a lock lives; None: it did a minute ago, and only waiting will tell."""
    path = Path(path)
    owner, here = _read(path), _this_process()
    if owner and owner.get('namespace') == here['namespace']:
        return _started(owner.get('pid')) == owner.get('started')
    touched = _touched(path)
    if touched is None or _now(path.parent) - touched > STALE_SECONDS:
        return False
    return None


def _this_process() -> dict:
    """Who holds a lock; process numbers count only within one boot of one machine and one container."""
    namespace = platform.node()
    with contextlib.suppress(OSError):
        namespace += ' ' + Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        namespace += ' ' + os.readlink('/proc/self/ns/pid')
    pid = os.getpid()
    return {'host': platform.node(), 'pid': pid, 'started': _started(pid), 'namespace': namespace}


def _started(pid) -> str:
    """When a process began, by a clock that nobody sets; empty: there is no such process."""
    try:
        # After the name, which may hold anything: the 22nd field.
        return Path(f'/proc/{int(pid)}/stat').read_text().rpartition(')')[2].split()[19]
    except (OSError, TypeError, ValueError, IndexError):
        pass
    if os.path.isdir('/proc/self'):
        return ''
    import psutil

    try:
        return f'{psutil.Process(pid).create_time():.0f}'
    except (psutil.Error, TypeError, ValueError):
        return ''


def _touched(path: Path) -> float | None:
    """Of the file as it is on the server: opening it makes a client of NFS ask."""
    try:
        with path.open('rb') as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _now(folder: Path) -> float:
    """The time by the clock of the file system."""
    try:
        with tempfile.NamedTemporaryFile(prefix='.tmp-', dir=folder) as probe:
            os.utime(probe.name)
            return os.stat(probe.name).st_mtime
    except OSError:
        return time.time()


def _read(path: Path) -> dict:
    try:
        owner = json.loads(path.read_text())
        return owner if isinstance(owner, dict) else {}
    except (OSError, ValueError):
        return {}


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
