"""``group --recon m2asr --train``: pairs out of a dataset, then one network; the method itself is replaced."""

import json
import time

import nibabel as nib
import numpy as np
import pytest

from bids_gsrecon.cli import train
from bids_gsrecon.cli.parser import parse_args
from bids_gsrecon.cli.train import run_training
from bids_gsrecon.interfaces.m2asr_files import CheckpointFile, load_weights
from tests.bids_datasets import healthy, write_description, write_t1w, write_thick
from tests.m2asr_fakes import fake

__all__ = ['fake']


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Trains on the dataset at ``tmp_path / 'bids'``, all in this process, headers trusted; the exit code."""
    from bids_gsrecon.interfaces import bias_field, registration

    class Found:
        moving_to_fixed = np.eye(4)
        metric = initial_metric = 1.1
        moved_mm = moved_deg = 0.0
        how = 'not at all'

    monkeypatch.setattr(registration, 'register_rigid', lambda *args, **kwargs: Found)
    monkeypatch.setattr(bias_field, 'correct_bias_field', lambda volume, mask, seed: volume)

    def run(*arguments):
        folders = [tmp_path / 'bids', tmp_path / 'out', 'group', '-w', tmp_path / 'work']
        more = ['--recon', 'm2asr', '--train', '--nprocs', '1', '--skip-bids-validation']
        return run_training(parse_args([*folders, *more, *arguments]), time.time())

    return run


def status(tmp_path):
    path = max((tmp_path / 'out' / 'logs').glob('*/status.json'), key=lambda item: item.stat().st_mtime)
    return json.loads(path.read_text())


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


def test_a_cohort_is_trained_on_and_little_is_left_on_the_disk(tmp_path, group, fake, capsys):
    root = healthy(tmp_path / 'bids', labels=('01', '02'))
    write_thick(root, '03')
    write_t1w(root, '04')
    write_t1w(root, '05')
    broken = write_thick(root, '05')
    image = nib.load(broken)
    data = image.get_fdata(dtype=np.float32)
    data[5, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), broken)
    assert group('--m2asr-max-minutes', '7') == 1, 'two participants cannot be used'
    captured = capsys.readouterr()
    last = captured.out.strip().splitlines()[-1]
    assert last.startswith('bids_gsrecon: FAILED: tiny trained on 4 pair(s), 1 participant(s) held out')
    assert '2 participant(s) failed (sub-03, sub-05)' in last
    errors = [line for line in captured.err.splitlines() if 'error: ' in line]
    assert len(errors) == 2 and 'has no T1w' in errors[0] and 'NaN' in errors[1]
    known = status(tmp_path)
    assert known['exit_code'] == 1 and known['verdict'] == last
    states = {label: one['status'] for label, one in known['participants'].items()}
    assert states == {'01': 'ok', '02': 'ok', '03': 'failed', '04': 'nothing to do', '05': 'failed'}
    names = [f'm2asr-tiny{end}' for end in ('.h5', '_card.json', '_card.md', '_split.tsv')]
    assert files(tmp_path / 'out' / 'm2asr') == names
    assert 'm2asr' in (tmp_path / 'out' / '.bidsignore').read_text().splitlines()
    card = load_weights(tmp_path / 'out' / 'm2asr' / 'm2asr-tiny.h5').card
    assert card['contrasts'] == ['FLAIR', 'T2w'] and len(card['validation_subjects']) == 1
    assert card['data'][0]['files'] == ['sub-01/anat/sub-01_T1w.nii.gz', 'sub-01/anat/sub-01_FLAIR.nii.gz']
    (pairs, options), _ = fake['train'][0]
    assert (options.max_minutes, options.size, options.n_threads) == (7.0, 'tiny', 1)
    assert pairs.subjects == ['sub-01', 'sub-01', 'sub-02', 'sub-02']
    assert pairs[1].slice_axis == 2 and pairs[0].slice_axis == 1
    inside = pairs[1].mask
    assert 0.1 < inside.mean() < 0.6, 'the brain'
    kept = files(tmp_path / 'work' / 'm2asr_pairs')
    assert kept == [f'sub-{n}_{suffix}.h5' for n in ('01', '02') for suffix in ('FLAIR', 'T2w')]
    left = {p.name for p in (tmp_path / 'work' / 'bids_gsrecon_wf').iterdir() if p.is_dir()}
    assert left == {'sub_05_wf'}, 'what was made on the way goes; what failed can be looked at'


def test_pairs_that_are_there_are_not_made_again(tmp_path, group, fake, monkeypatch):
    healthy(tmp_path / 'bids', labels=('01', '02'))
    assert group('--m2asr-contrasts', 'T2w') == 0
    folder = tmp_path / 'work' / 'm2asr_pairs'
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    first = (tmp_path / 'out' / 'm2asr' / 'm2asr-tiny_split.tsv').read_text()

    def never(*args):
        raise AssertionError('there is nothing to run')

    with monkeypatch.context() as patched:
        patched.setattr('bids_gsrecon.cli.execute.run_workflow', never)
        assert group('--m2asr-contrasts', 'T2w', '--m2asr-size', 'small') == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert fake['train'][1][0][1].size == 'small'
    elsewhere = tmp_path / 'nets' / 'mine.h5'
    split = ['--m2asr-split', tmp_path / 'out' / 'm2asr' / 'm2asr-tiny_split.tsv']
    assert group('--m2asr-contrasts', 'T2w', '--weights', elsewhere, *split) == 0
    assert files(tmp_path / 'nets') == ['mine.h5', 'mine_card.json', 'mine_card.md']
    assert (tmp_path / 'out' / 'm2asr' / 'm2asr-tiny_split.tsv').read_text() == first
    assert group('--m2asr-contrasts', 'T2w', '--clean-workdir') == 0
    assert all(path.stat().st_mtime_ns > stamp for path, stamp in before.items())


def test_an_interruption_is_said_and_the_next_run_goes_on(tmp_path, group, fake, monkeypatch, capsys):
    from bids_gsrecon.recon.m2asr import method

    healthy(tmp_path / 'bids', labels=('01', '02'))
    whole = method.train

    def cut(pairs, options, *, checkpoint, **_):
        checkpoint.save({'step': 100})
        raise KeyboardInterrupt

    monkeypatch.setattr(method, 'train', cut)
    assert group() == 130
    assert status(tmp_path)['exit_code'] == 130
    assert 'run the same command again' in capsys.readouterr().err
    monkeypatch.setattr(method, 'train', whole)
    assert group() == 0
    assert '104 steps' in capsys.readouterr().out
    content = (tmp_path / 'out' / 'm2asr').glob('*checkpoint*')
    assert not list(content)


def test_pairs_alone(tmp_path, group, fake, capsys):
    healthy(tmp_path / 'bids')
    assert group('--train', 'pairs') == 0
    assert 'SUCCESS: 2 pair(s) in ' in capsys.readouterr().out
    assert len(files(tmp_path / 'work' / 'm2asr_pairs')) == 2
    assert fake['train'] == [] and not (tmp_path / 'out' / 'm2asr').exists()


def test_one_participant_is_warned_about(tmp_path, group, fake, capsys):
    healthy(tmp_path / 'bids')
    assert group('--participant-label', '01') == 0
    assert 'warning: there is one subject only' in capsys.readouterr().err


def test_nothing_to_train_on_is_exit_code_70(tmp_path, group, fake, capsys):
    write_t1w(write_description(tmp_path / 'bids'), '01')
    assert group() == 70
    assert 'NOTHING TO DO: nothing was trained' in capsys.readouterr().out
    assert fake['train'] == []


def test_a_full_disk_is_noticed_before(tmp_path, group, fake, monkeypatch, capsys):
    healthy(tmp_path / 'bids')

    class Usage:
        free = 1000

    monkeypatch.setattr(train.shutil, 'disk_usage', lambda path: Usage)
    assert group() == 2
    assert 'free space, choose another folder' in capsys.readouterr().err
    assert status(tmp_path)['exit_code'] == 2


def test_a_checkpoint_of_another_training_ends_it(tmp_path, group, fake, capsys):
    healthy(tmp_path / 'bids')
    (tmp_path / 'out' / 'm2asr').mkdir(parents=True)
    CheckpointFile(tmp_path / 'out' / 'm2asr' / 'm2asr-tiny_checkpoint.pt', {'size': 'small'}).save({})
    assert group() == 2
    captured = capsys.readouterr()
    assert 'another training (size "small" there, "tiny" now' in captured.err
    assert captured.out.strip().splitlines()[-1] == 'bids_gsrecon: FAILED: nothing was trained (exit code 2)'


def test_participants_are_done_a_few_at_a_time(tmp_path):
    labels = [f'{n:02d}' for n in range(11)]
    root = write_description(tmp_path / 'bids')
    for label in labels:
        (root / f'sub-{label}').mkdir()
    folders = [root, tmp_path / 'out', 'group', '-w', tmp_path / 'work']
    config = parse_args([*folders, '--recon', 'm2asr', '--train', '--nprocs', '2', '--omp-nthreads', '2'])
    parts = [part.execution.participant_label for part in train._parts(config)]
    assert [label for part in parts for label in part] == labels and max(map(len, parts)) == train.AT_ONCE
