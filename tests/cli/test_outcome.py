import json

import pytest

from bids_gsrecon.cli.outcome import (
    FAILED,
    OK,
    SKIPPED,
    Outcome,
    error_sentence,
    exit_code,
    last_outcomes,
    verdict,
    write_status,
)
from bids_gsrecon.config import Config, Execution

WRAPPED = """Node: bids_gsrecon_wf.sub_01_wf.session_wf.T2w_wf.registration_wf.register
Working directory: /work

Node inputs:
seed = 0

Traceback (most recent call last):
  File "multiproc.py", line 66, in run_node
    result["result"] = node.run(updatehash=updatehash)
nipype.pipeline.engine.nodes.NodeExecutionError: Exception raised while executing Node register.

Traceback:
    Traceback (most recent call last):
      File "images.py", line 200, in _run_interface
        raise sentence(name, error) from error
    %s
"""


def crash(tmp_path, last_line):
    path = tmp_path / 'crash-1.txt'
    path.write_text(WRAPPED % last_line)
    return path


def sentence(path, participant='01'):
    return error_sentence(path.read_text(), participant, path)


def test_sentence_of_an_input_error(tmp_path):
    path = crash(tmp_path, 'bids_gsrecon.errors.InputError: /a/T2w.nii.gz holds NaN: replace them.')
    assert sentence(path) == '/a/T2w.nii.gz holds NaN: replace them.'


def test_sentence_of_any_other_error_names_the_step_and_the_file(tmp_path):
    path = crash(tmp_path, 'ValueError: shapes differ')
    text = sentence(path)
    assert 'sub_01_wf.session_wf.T2w_wf.registration_wf.register' in text
    assert 'ValueError: shapes differ' in text
    assert str(path) in text


def test_sentence_of_a_memory_error_says_what_to_do(tmp_path):
    assert '--mem' in sentence(crash(tmp_path, 'MemoryError'))


@pytest.mark.parametrize(
    ('last_line', 'advice'),
    [
        ("OSError: [Errno 28] No space left on device: '/scratch/a.nii'", 'No space left on device, /scratch/a.nii): the disk is full'),
        ("OSError: [Errno 122] Disk quota exceeded", 'Disk quota exceeded): your quota is used up'),
        ("OSError: [Errno 30] Read-only file system: '/work'", '/work): the disk is read-only'),
        ("BlockingIOError: Unable to open file (unable to lock file, errno = 37, error message = 'No locks available')", 'No locks available): the file system has no locks'),
    ],
)  # fmt: skip
def test_sentence_of_an_error_of_the_system_says_what_to_do(tmp_path, last_line, advice):
    text = sentence(crash(tmp_path, last_line))
    assert advice in text
    assert 'sub-01: the step sub_01_wf' in text and 'run the same command again' in text


@pytest.mark.parametrize(
    ('statuses', 'code'), [((OK, OK), 0), ((OK, SKIPPED), 0), ((OK, FAILED), 1), ((SKIPPED,), 70), ((), 70)]
)
def test_exit_codes(statuses, code):
    assert exit_code([Outcome(str(i), status) for i, status in enumerate(statuses)]) == code


def test_verdict_names_who_failed(tmp_path):
    config = Config(Execution(output_dir=str(tmp_path)))
    line = verdict(config, [Outcome('a', OK), Outcome('b', FAILED), Outcome('c', SKIPPED)], 1)
    assert 'FAILED' in line
    assert '1 of 3' in line
    assert 'sub-b' in line
    assert '\n' not in line


def test_status_is_read_again(tmp_path):
    config = Config(Execution(output_dir=str(tmp_path), run_uuid='run'))
    outcomes = [Outcome('01', FAILED, ['broken.'], recon='harmonize')]
    path = write_status(config, outcomes, code=1, line='line', started=0.0)
    assert json.loads(path.read_text())['exit_code'] == 1
    assert last_outcomes(tmp_path) == {'01': outcomes[0]}
