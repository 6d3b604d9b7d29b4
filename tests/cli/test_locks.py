import json
import os
import subprocess
import sys
import threading
import time

import pytest

from bids_gsrecon.cli import locks
from bids_gsrecon.cli.locks import Locks, is_held
from bids_gsrecon.errors import InputError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, 'BEAT_SECONDS', 0.1)
    monkeypatch.setattr(locks, 'STALE_SECONDS', 1.0)


def foreign(path):
    """As if of another machine: its process cannot be asked."""
    path.write_text(json.dumps({'run': 'other', 'host': 'elsewhere', 'pid': 1, 'namespace': 'elsewhere'}))
    return path


def test_the_second_is_told_who_is_there_and_takes_nothing(tmp_path):
    first, second = Locks('first'), Locks('second')
    assert first.acquire([tmp_path / 'b']) == ''
    assert 'run first on' in second.acquire([tmp_path / 'a', tmp_path / 'b'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['b']
    first.release()
    assert list(tmp_path.iterdir()) == []
    assert second.acquire([tmp_path / 'a', tmp_path / 'b']) == ''
    second.release()


def test_a_process_that_died_holds_nothing(tmp_path):
    code = (
        'import os, sys\nfrom bids_gsrecon.cli.locks import Locks\n'
        'assert Locks("dead").acquire([sys.argv[1]]) == ""\nos._exit(9)'
    )
    assert subprocess.run([sys.executable, '-c', code, str(tmp_path / 'a')], check=False).returncode == 9
    assert is_held(tmp_path / 'a') is False
    mine = Locks('mine')
    assert mine.acquire([tmp_path / 'a']) == ''
    assert mine.taken_over == [tmp_path / 'a']
    mine.release()


def test_another_machine_is_believed_while_it_touches_its_lock(tmp_path):
    path = foreign(tmp_path / 'a')
    stop = threading.Event()

    def beat():
        while not stop.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert 'run other on elsewhere' in Locks('mine').acquire([path])
    finally:
        stop.set()
        thread.join()
    started = time.monotonic()
    mine = Locks('mine')
    assert mine.acquire([path]) == '', 'it is not touched any more'
    assert time.monotonic() - started < 10
    mine.release()


@pytest.mark.parametrize('content', ['', 'not json', '[]'])
def test_a_lock_that_says_nothing_is_old_some_time(tmp_path, content):
    path = tmp_path / 'a'
    path.write_text(content)
    os.utime(path, (time.time() - 100, time.time() - 100))
    mine = Locks('mine')
    assert mine.acquire([path]) == ''
    mine.release()


def test_the_owner_touches_its_lock(tmp_path):
    mine = Locks('mine')
    mine.acquire([tmp_path / 'a'])
    before = (tmp_path / 'a').stat().st_mtime_ns
    time.sleep(0.5)
    assert (tmp_path / 'a').stat().st_mtime_ns > before
    mine.release()


def test_one_of_many_wins(tmp_path):
    runs = [Locks(str(n)) for n in range(8)]
    answers = []
    threads = [
        threading.Thread(target=lambda run=run: answers.append(run.acquire([tmp_path / 'a']))) for run in runs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count('') == 1
    for run in runs:
        run.release()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot be written'):
        Locks('mine').acquire([tmp_path / 'file' / 'a'])
