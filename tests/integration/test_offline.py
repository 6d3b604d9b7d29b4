"""No program of ours ever asks the network while it runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bids_datasets import healthy
from tests.integration.test_faults import RUNS

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != 'linux', reason='the guard is a library of Linux'),
    pytest.mark.skipif(not (shutil.which('cc') or shutil.which('gcc')), reason='no C compiler for faults.c'),
]


def offline(folder, *command):
    """Run a program whose connections and look-ups fail and are noted; (finished process, what it asked for)."""
    note = folder / 'network.txt'
    environment = {
        **os.environ,
        'LD_PRELOAD': str(RUNS.compile_faults(folder)),
        'FAULT_NETWORK': str(note),
        'HOME': str(folder),  # no caches of this user
        'TEMPLATEFLOW_HOME': str(folder / 'templateflow'),
        'NUMBA_CACHE_DIR': os.environ.get('NUMBA_CACHE_DIR', ''),
    }
    if not environment['NUMBA_CACHE_DIR']:
        del environment['NUMBA_CACHE_DIR']
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=600, env=environment, cwd=folder
    )
    return done, note.read_text() if note.exists() else ''


def test_the_guard_notes_what_asks(tmp_path):
    code = 'import urllib.request as u\ntry:\n    u.urlopen("http://example.org")\nexcept OSError:\n    pass'
    done, asked = offline(tmp_path, '-c', code)
    assert done.returncode == 0, done.stderr
    assert 'example.org' in asked


def test_the_app_asks_nothing(tmp_path):
    bids = healthy(tmp_path / 'bids')
    arguments = [bids, tmp_path / 'out', 'participant', '-w', tmp_path / 'work', '--sloppy', '--nprocs', '1']
    arguments += ['--scaffold-iterations', '2', '--mem', '6G']
    done, asked = offline(tmp_path, '-m', 'bids_gsrecon', *map(str, arguments))
    assert done.returncode == 0, done.stderr
    assert asked == ''
    done, asked = offline(tmp_path, '-m', 'bids_gsrecon', str(bids), str(tmp_path / 'out'), 'group')
    assert done.returncode == 0, done.stderr
    assert asked == ''


def test_a_template_that_is_not_there_is_said_and_not_asked_for(tmp_path):
    bids = healthy(tmp_path / 'bids')
    arguments = [bids, tmp_path / 'out', 'participant', '-w', tmp_path / 'work']
    arguments += ['--brain-template', 'MNI152NLin2009cAsym']
    done, asked = offline(tmp_path, '-m', 'bids_gsrecon', *map(str, arguments))
    assert done.returncode == 2
    assert 'gsrecon fetch-templates MNI152NLin2009cAsym' in done.stderr
    assert asked == ''


def test_fetching_without_network_is_one_sentence(tmp_path):
    done, asked = offline(tmp_path, '-m', 'bids_gsrecon.cli.direct', 'fetch-templates', 'MNI152NLin2009cAsym')
    assert done.returncode == 2, done.stderr
    assert 'there is no network here' in done.stderr
    assert 'Traceback' not in done.stderr
    assert 'templateflow' in asked, 'the one command that asks'
    assert not list(Path(tmp_path).rglob('.tmp-*'))
