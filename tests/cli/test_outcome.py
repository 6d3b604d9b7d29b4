import json

import pytest

from bids_gsrecon.cli.group import run_group
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
        ("OSError: [Errno 28] No space left on device: '/work/a.nii'", 'No space left on device, /work/a.nii): the disk is full'),
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


def test_group_gathers_the_figures_of_merit(tmp_path, capsys):
    config = Config(Execution(output_dir=str(tmp_path)))
    assert run_group(config) == 70
    for label, value in (('01', 1.5), ('02', 2.5)):
        folder = tmp_path / f'sub-{label}' / 'figures'
        folder.mkdir(parents=True)
        name = f'sub-{label}_ses-1_acq-ax_desc-merit_T2w.json'
        (folder / name).write_text(json.dumps({'figures': {'residual_rms_percent': value}}))
    (tmp_path / 'sub-02' / 'figures' / 'sub-02_desc-merit_FLAIR.json').write_text('not json')
    assert run_group(config) == 0
    assert (tmp_path / 'group_merit.tsv').read_text().splitlines() == [
        'participant_id\tsession_id\tcontrast\tresidual_rms_percent',
        'sub-01\tses-1\tacq-ax_T2w\t1.5',
        'sub-02\tses-1\tacq-ax_T2w\t2.5',
    ]
    assert 'SUCCESS' in capsys.readouterr().out
