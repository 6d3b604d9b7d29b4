"""``gsrecon m2asr``: its files, and what it says about bad input."""

import json
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_gsrecon.cli import direct, m2asr_files, method_options
from bids_gsrecon.cli.m2asr_training import locked
from bids_gsrecon.imaging.kspace_crop import crop_kspace
from bids_gsrecon.interfaces.io import load_volume, save_volume
from bids_gsrecon.interfaces.m2asr_files import CheckpointFile, load_weights, save_weights
from bids_gsrecon.interfaces.m2asr_pairs import make_pair, save_pair
from bids_gsrecon.recon.m2asr.config import SIZES
from bids_gsrecon.recon.m2asr.types import UnfitCheckpointError
from tests.m2asr_fakes import ADDED, fake, fake_model, write_pairs

__all__ = ['fake']
STEPS = 100
WRITTEN = ['net.h5', 'net_card.json', 'net_card.md', 'net_split.tsv']


@pytest.fixture
def case(tmp_path):
    return write_pairs(tmp_path / 'data')


@pytest.fixture
def weights(tmp_path):
    return save_weights(tmp_path / 'net.h5', fake_model())


def run(*args):
    return direct.main(['m2asr', *[str(a) for a in args]])


def train(case, *more, numbers=(1, 2), output='out/net.h5'):
    pairs = [[case / f'sub-{n:02d}_T1w.nii.gz', case / f'sub-{n:02d}_T2w.nii.gz'] for n in numbers]
    return run('train', *[a for pair in pairs for a in ('--pair', *pair)], '-o', case / output, *more)


def apply(case, weights, *more, reference='sub-01_T1w', target='sub-01_coarse_T2w', output='out/fine.nii.gz'):
    images = ['--reference', case / f'{reference}.nii.gz', '--target', case / f'{target}.nii.gz']
    return run('apply', '--weights', weights, *images, '-o', case / output, *more)


def error_line(capsys):
    """The one line on standard error, beside what there is to know."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line and ': note: ' not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith('gsrecon m2asr: error: ')
    return lines[0]


def edit(path, change=None, affine=None):
    image = nib.load(path)
    data = np.asarray(image.dataobj).astype(np.float32)
    data = data if change is None else change(data)
    nib.save(nib.Nifti1Image(data, image.affine if affine is None else affine), path)
    return path


def test_choices_are_those_of_the_method():
    assert tuple(SIZES) == method_options.M2ASR_SIZES


def test_training_writes_weights_card_and_split(case, fake, capsys):
    assert train(case, '--max-steps', 5, '--random-seed', 3) == 0
    out = capsys.readouterr().out
    assert 'gsrecon m2asr: ok, size tiny trained on 2 pair(s), 1 subject(s) held out' in out
    assert 'held out x2: 30.00 dB (zero-filled 27.00)' in out
    folder = case / 'out'
    assert sorted(path.name for path in folder.iterdir()) == WRITTEN
    (pairs, options), keywords = fake['train'][0]
    assert [(p.subject, p.contrast, p.reference_contrast) for p in pairs] == [
        ('sub-01', 'T2w', 'T1w'),
        ('sub-02', 'T2w', 'T1w'),
    ]
    truth = load_volume(case / 'sub-02_T2w.nii.gz')
    np.testing.assert_array_equal(pairs[1].target, truth.data)
    np.testing.assert_array_equal(pairs[1].mask, truth.data > 0)
    assert (options.size, options.max_steps, options.seed, options.max_minutes) == ('tiny', 5, 3, None)
    assert keywords['checkpoint'].path == folder / 'net_checkpoint.pt'
    model = load_weights(folder / 'net.h5')
    card = json.loads((folder / 'net_card.json').read_text())
    assert card == model.card
    assert card['validation_subjects'] == list(options.validation_subjects)
    low, high = card['edge_correlation']
    assert -1 <= low <= high < 0, 'T1w and T2w'
    assert card['data'][0]['files'][1].endswith('sub-01_T2w.nii.gz')
    text = (folder / 'net_card.md').read_text()
    for words in ('# Model card: net', '| 2 | 30 | 27 |', 'Held out 1: ', 'T2w', '| bids_gsrecon |'):
        assert words in text
    split = (folder / 'net_split.tsv').read_text()
    assert split.startswith('participant_id\tsplit\nsub-01\t') and split.count('validation') == 1


def test_the_split_stays(case, fake):
    write_pairs(case, 4)
    assert train(case) == 0
    first = (case / 'out' / 'net_split.tsv').read_text()
    assert train(case, numbers=(1, 2, 3, 4), output='out/more.h5') == 0
    assert train(case, '--split', case / 'out' / 'net_split.tsv', numbers=(1, 2, 3, 4)) == 0
    again = (case / 'out' / 'net_split.tsv').read_text()
    assert again.startswith(first.rstrip('\n')) and again.count('validation') == 1
    held_out = [call[0][1].validation_subjects for call in fake['train']]
    assert held_out[2] == held_out[0]


def test_two_trainings_of_one_file_are_one_too_many(case, fake, capsys):
    with locked(case / 'out' / 'net.h5'):
        assert train(case) == 2
        assert 'net.h5 is being processed by run of process' in error_line(capsys)
    assert fake['train'] == [] and train(case) == 0
    assert sorted(path.name for path in (case / 'out').iterdir()) == WRITTEN


def test_one_subject_is_warned_about(case, fake, capsys):
    assert train(case, numbers=(1,)) == 0
    assert 'there is one subject only: no one can be held out' in capsys.readouterr().err
    assert fake['train'][0][0][1].validation_subjects == ()
    assert 'Nobody was held out' in (case / 'out' / 'net_card.md').read_text()


def test_an_interrupted_training_goes_on(case, fake, monkeypatch, capsys):
    from bids_gsrecon.recon.m2asr import method

    whole = method.train

    def cut(pairs, options, *, checkpoint, **_):
        checkpoint.save({'step': 100})
        raise KeyboardInterrupt

    monkeypatch.setattr(method, 'train', cut)
    assert train(case) == 1
    assert 'interrupted: run the same command again, it goes on where it stopped' in capsys.readouterr().err
    assert sorted(path.name for path in (case / 'out').iterdir()) == ['net_checkpoint.pt', 'net_split.tsv']
    monkeypatch.setattr(method, 'train', whole)
    capsys.readouterr()
    assert train(case, '--max-minutes', 3) == 0
    assert '102 steps' in capsys.readouterr().out
    assert sorted(path.name for path in (case / 'out').iterdir()) == WRITTEN


def test_a_checkpoint_that_does_not_fit_is_one_sentence(case, fake, capsys):
    def checkpoint():
        (case / 'out').mkdir(exist_ok=True)
        CheckpointFile(case / 'out' / 'net_checkpoint.pt', {'size': 'small'}).save({'step': 1})
        return case / 'out' / 'net_checkpoint.pt'

    checkpoint()
    assert train(case) == 2
    line = error_line(capsys)
    assert 'another training (size "small" there, "tiny" now' in line and 'delete it' in line
    content = checkpoint().read_bytes()
    checkpoint().write_bytes(content[: len(content) // 2])
    assert train(case) == 2
    assert 'net_checkpoint.pt is truncated' in error_line(capsys)
    assert not (case / 'out' / 'net.h5').exists()


def test_what_the_method_says_of_a_checkpoint_names_the_file(case, monkeypatch, capsys):
    from bids_gsrecon.recon.m2asr import method

    def refuse(*args, **kwargs):
        raise UnfitCheckpointError('it is a checkpoint of another version: delete it to start over')

    monkeypatch.setattr(method, 'train', refuse)
    assert train(case) == 2
    assert 'out/net_checkpoint.pt is a checkpoint of another version: delete it' in error_line(capsys)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'change': lambda d: np.where(d == d.max(), np.nan, d)}, 'NaN'),
        ({'change': lambda d: np.full_like(d, 3)}, 'is constant'),
        ({'change': lambda d: d[:-2]}, 'another grid than its reference'),
        ({'affine': np.diag([1.0, 1.0, 1.2, 1.0])}, 'another grid than its reference'),
        ({'change': lambda d: d[:, :, :1]}, 'single slice'),
    ],
)
def test_bad_images_of_a_pair_are_one_sentence(case, fake, capsys, change, said):
    edit(case / 'sub-02_T2w.nii.gz', **change)
    assert train(case) == 2
    line = error_line(capsys)
    assert said in line and 'sub-02_T2w.nii.gz' in line
    assert fake['train'] == [] and not list((case / 'out').glob('*'))


def test_bad_arguments_of_training_are_one_sentence(case, fake, capsys):
    assert run('train', '-o', case / 'net.h5') == 2
    assert '--pair REFERENCE TARGET' in error_line(capsys)
    assert run('train', '--pairs', case, '-o', case / 'net.h5') == 2
    assert 'holds no pairs' in error_line(capsys)
    assert train(case, '--pairs', case) == 2
    assert 'takes the place of --pair' in error_line(capsys)
    assert train(case, output='net.pt') == 2
    assert 'does not end in .h5' in error_line(capsys)
    labels = save_volume(case / 'labels.nii.gz', np.ones((4, 4, 4)), np.eye(4))
    assert train(case, '--labels', labels) == 2
    assert '--synthetic-fraction' in error_line(capsys)
    assert train(case, '--labels', labels, '--synthetic-fraction', 0.2) == 2
    assert 'fewer than two tissues' in error_line(capsys)
    save_volume(labels, np.linspace(0, 1, 64).reshape(4, 4, 4), np.eye(4))
    assert train(case, '--labels', labels, '--synthetic-fraction', 0.2) == 2
    assert 'no map of labels' in error_line(capsys)
    (case / 'split.tsv').write_text('participant_id\tsplit\nsub-01\ttest\n')
    assert train(case, '--split', case / 'split.tsv') == 2
    assert "has the role 'test' for sub-01" in error_line(capsys)
    with pytest.raises(SystemExit):
        train(case, '--size', 'huge')
    assert fake['train'] == []


def test_pairs_that_the_app_made_are_trained_on(case, fake, monkeypatch, capsys):
    for n in (1, 2):
        t1w, t2w = (load_volume(case / f'sub-{n:02d}_{suffix}.nii.gz') for suffix in ('T1w', 'T2w'))
        pair = make_pair(t1w, t2w, subject=f'sub-{n:02d}', contrast='T2w')
        save_pair(case / f'sub-{n:02d}_T2w.h5', pair, key=str(n), sources=[f'{n}_T1w', f'{n}_T2w'])
    assert run('train', '--pairs', case, '-o', case / 'out' / 'net') == 0
    (pairs, _), _ = fake['train'][0]
    assert pairs.subjects == ['sub-01', 'sub-02']
    card = json.loads((case / 'out' / 'net_card.json').read_text())
    assert run('train', '--pairs', case / 'sub-02_T2w.h5', '-o', case / 'out' / 'one') == 0
    assert fake['train'][1][0][0].subjects == ['sub-02']
    assert card['data'][1] == {'subject': 'sub-02', 'contrast': 'T2w', 'files': ['2_T1w', '2_T2w']}
    assert 'net_slices until the training is done' in capsys.readouterr().err
    assert not (case / 'out' / 'net_slices').exists()
    monkeypatch.setattr(m2asr_files, 'available_memory_gb', lambda: 0.5)
    assert run('train', '--pairs', case, '-o', case / 'out' / 'net') == 2
    assert 'GB of memory for its largest pair and the limit here is 0.5 GB' in error_line(capsys)


def test_slices_that_do_not_fit_on_the_disk_are_noticed_before(case, fake, monkeypatch, capsys):
    class Usage:
        free = 1000

    monkeypatch.setattr('shutil.disk_usage', lambda path: Usage)
    assert train(case) == 2
    assert 'net_slices needs about 0.00 GB for prepared slices and 0.00 GB are free' in error_line(capsys)
    assert fake['train'] == []


def test_labels_reach_the_method(case, fake):
    values = np.arange(4 * 4 * 4).reshape(4, 4, 4) % 5
    labels = save_volume(case / 'labels.nii.gz', values, np.eye(4), dtype=np.int16)
    assert train(case, '--labels', labels, '--synthetic-fraction', 0.2) == 0
    (_, options), keywords = fake['train'][0]
    assert options.synthetic_fraction == 0.2
    np.testing.assert_array_equal(keywords['labels'][0].labels, values)


def test_references_are_brought_to_their_targets_if_asked_to(case, fake, monkeypatch):
    """A shifted, coarser reference lands where the registration says."""
    from bids_gsrecon.interfaces import registration

    t1w = load_volume(case / 'sub-01_T1w.nii.gz')
    shift = np.eye(4)
    shift[:3, 3] = [2.0, -1.0, 3.0]
    save_volume(case / 'sub-01_T1w.nii.gz', t1w.data, shift @ t1w.affine)

    class Found:
        moving_to_fixed = shift

    monkeypatch.setattr(registration, 'register_rigid', lambda *args, **kwargs: Found)
    assert train(case, '--register', 'rigid', numbers=(1,)) == 0
    np.testing.assert_allclose(fake['train'][0][0][0][0].reference, t1w.data, atol=1e-3)


def test_subjects_are_told_apart(tmp_path):
    names = m2asr_files.subject_names(
        [('/a/T1w.nii', '/a/T2w.nii'), ('/b/T1w.nii', '/b/T2w.nii'), ('/a/T1w.nii', '/a/FLAIR.nii')]
    )
    assert names[0] == names[2] != names[1]
    assert m2asr_files.subject_names([('x/sub-07_T1w.nii', 'y/t2.nii')]) == ['sub-07']
    assert m2asr_files.subject_names([('x/m1_t1.nii', 'y/m1_t2.nii')]) == ['m1_t1']
    assert m2asr_files.contrast_of('m1_t2w.nii.gz') == 'T2w'
    assert m2asr_files.contrast_of('sub-1_FLAIR.nii') == 'FLAIR'
    assert m2asr_files.contrast_of('t2.nii') == ''


def test_application_writes_image_and_record(case, weights, fake, capsys):
    (case / 'out').mkdir()
    assert apply(case, weights) == 0
    captured = capsys.readouterr()
    assert 'pixels 2 x 2 times finer' in captured.out
    image, truth = nib.load(case / 'out' / 'fine.nii.gz'), nib.load(case / 'sub-01_T2w.nii.gz')
    np.testing.assert_allclose(image.affine, truth.affine, atol=1e-5)
    inside = truth.get_fdata() > 0
    assert np.median((image.get_fdata() - truth.get_fdata())[inside]) == pytest.approx(ADDED, abs=3)
    record = json.loads((case / 'out' / 'fine.json').read_text())
    assert record['InPlaneFactors'] == [2.0, 2.0] and record['SliceAxis'] == 2
    assert record['Network']['size'] == 'tiny' and len(record['Network']['WeightsSHA256']) == 64
    assert record['FiguresOfMerit']['in_plane_factor'] == 2.0
    assert record['FiguresOfMerit']['own_gain_db'] < 0, 'what is added only harms'
    assert record['Verdict'] in ('check', 'do not use') and 'zero-filling' in record['Reasons'][0]
    (_, reference, *_), keywords = fake['apply'][0]
    np.testing.assert_array_equal(keywords['mask'], reference > 0)
    assert (keywords['contrast'], keywords['slice_axis']) == ('T2w', 2)


def test_what_the_network_does_not_know_is_said(case, weights, fake, capsys):
    (case / 'sub-01_coarse_T2w.nii.gz').rename(case / 'coarse_FLAIR.nii.gz')
    assert apply(case, weights, target='coarse_FLAIR') == 0
    assert 'note: the network was trained on T2w, not on FLAIR.' in capsys.readouterr().err
    (case / 'sub-01_T1w.nii.gz').rename(case / 'sub-01_PDw.nii.gz')
    assert apply(case, weights, target='coarse_FLAIR', reference='sub-01_PDw') == 0
    assert 'trained with a T1w as reference, not a PDw.' in capsys.readouterr().err


def moved(axis, by):
    def change(affine):
        affine = affine.copy()
        affine[axis, 3] += by
        return affine

    return change


def turned(affine):
    angle = np.radians(5)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


@pytest.mark.parametrize(
    ('name', 'affine', 'data', 'said'),
    [
        ('sub-01_coarse_T2w', moved(0, 5.0), None, 'field of view'),
        ('sub-01_coarse_T2w', moved(2, 5.0), None, 'field of view'),
        ('sub-01_coarse_T2w', turned, None, 'direction of their axes'),
        ('sub-01_coarse_T2w', None, lambda d: d[:-3], 'field of view'),
        ('sub-01_coarse_T2w', None, lambda d: np.full_like(d, 2), 'constant'),
        ('sub-01_coarse_T2w', None, lambda d: np.where(d == d.max(), np.inf, d), 'NaN or infinite'),
        ('sub-01_T1w', None, lambda d: d * np.nan, 'NaN'),
    ],
)
def test_images_that_do_not_fit_are_one_sentence(case, weights, fake, capsys, name, affine, data, said):
    path = case / f'{name}.nii.gz'
    edit(path, data, None if affine is None else affine(nib.load(path).affine))
    assert apply(case, weights) == 2
    line = error_line(capsys)
    assert said in line and path.name in line
    assert fake['apply'] == [] and not (case / 'out' / 'fine.nii.gz').exists()


def test_slices_that_differ_and_pixels_alike_are_one_sentence(case, weights, fake, capsys):
    target = load_volume(case / 'sub-01_T2w.nii.gz')
    assert apply(case, weights, target='sub-01_T2w') == 2
    assert 'pixels of the same size' in error_line(capsys)
    coarse, lattice = crop_kspace(target.data, target.lattice, 2, 2.0)
    coarse, lattice = crop_kspace(coarse, lattice, 0, 2.0)
    save_volume(case / 'coarse.nii.gz', coarse, lattice.affine)
    assert apply(case, weights, target='coarse') == 2
    assert 'no slices in common' in error_line(capsys)
    assert apply(case, weights, '--axis', 0) == 2
    assert 'no slices in common' in error_line(capsys)


def test_factors_beyond_6_are_refused_and_those_beyond_the_training_warned_about(case, tmp_path, capsys):
    """By the method itself, before it computes anything."""
    target = load_volume(case / 'sub-01_T2w.nii.gz')
    weights = save_weights(tmp_path / 'net.h5', fake_model(scales=[1.0, 1.5]))
    for factor, code in ((8.0, 2), (2.0, 0)):
        coarse, lattice = crop_kspace(target.data, target.lattice, 2, factor)
        save_volume(case / 'lr_T2w.nii.gz', coarse, lattice.affine)
        assert apply(case, weights, target='lr_T2w') == code
    lines = capsys.readouterr().err.splitlines()
    assert (
        'lr_T2w.nii.gz is ' in lines[0] and '8 x 7.33 times as coarse' in lines[0] and '6 at most' in lines[0]
    )
    assert 'factors 2 x 2 are outside those of the training, 1 to 1.5' in lines[1]
    record = json.loads((case / 'out' / 'fine.json').read_text())
    assert record['Verdict'] != 'trust' and record['Warnings'] == [lines[1].split('note: ')[1]]


def test_without_weights_it_says_how_to_get_them(case, capsys):
    images = ['--reference', case / 'sub-01_T1w.nii.gz', '--target', case / 'sub-01_coarse_T2w.nii.gz']
    assert run('apply', *images, '-o', case / 'fine.nii.gz') == 2
    line = error_line(capsys)
    assert (
        '--weights FILE' in line and 'gsrecon m2asr train' in line and 'group --recon m2asr --train' in line
    )
    assert run('apply', '--weights', case / 'none.h5', *images, '-o', case / 'fine.nii.gz') == 2
    assert 'none.h5 does not exist' in error_line(capsys)
    assert run('apply', '--weights', images[1], *images, '-o', case / 'fine.nii.gz') == 2
    assert 'sub-01_T1w.nii.gz' in error_line(capsys)


def test_no_input_is_overwritten(case, weights, fake, capsys):
    assert apply(case, weights, output='sub-01_T1w.nii.gz') == 2
    assert 'would be overwritten' in error_line(capsys)
    assert apply(case, weights, output='fine.png') == 2
    assert 'does not end in .nii' in error_line(capsys)


def test_errors_of_the_method_name_the_file(case, weights, monkeypatch, capsys):
    from bids_gsrecon.recon.m2asr import method

    def refuse(*args, **kwargs):
        raise ValueError('it is odd: leave it')

    monkeypatch.setattr(method, 'apply', refuse)
    assert apply(case, weights) == 2
    assert 'sub-01_coarse_T2w.nii.gz is odd: leave it.' in error_line(capsys)


@pytest.mark.integration
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_in_the_middle_it_goes_on_to_the_same_network(tmp_path, number):
    """SIGKILL: from the last of the regular checkpoints; others: from one that the signal made it write."""
    case = write_pairs(tmp_path, 1, shape=(72, 80, 6), slice_mm=3.0)
    pair = ['--pair', case / 'sub-01_T1w.nii.gz', case / 'sub-01_T2w.nii.gz']
    more = ['--max-steps', STEPS, '--checkpoint-minutes', 0.02, '--threads', 1]
    program = [sys.executable, '-m', 'bids_gsrecon.cli.direct', 'm2asr', 'train']
    command = [str(a) for a in [*program, *pair, '-o', case / 'cut.h5', *more]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    checkpoint, slices = case / 'cut_checkpoint.pt', case / 'cut_slices'
    deadline = time.monotonic() + 300
    while not checkpoint.exists():
        assert process.poll() is None, 'it must not end before it is struck'
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = torch.load(checkpoint, weights_only=True)['state']['step']
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert slices.exists() and not (case / 'cut.h5').exists()
    step = torch.load(checkpoint, weights_only=True)['state']['step']
    if number == signal.SIGKILL:
        assert before == step
    else:
        assert before < step < STEPS and process.returncode == 1
        end = 'interrupted: run the same command again, it goes on where it stopped.'
        assert said.splitlines()[-1].endswith(end)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f'{STEPS} steps' in done.stdout and not checkpoint.exists() and not slices.exists()
    assert run('train', *pair, '-o', case / 'whole.h5', *more) == 0
    cut, whole = (load_weights(case / f'{name}.h5') for name in ('cut', 'whole'))
    for name, values in whole.state.items():
        np.testing.assert_array_equal(cut.state[name].numpy(), values.numpy(), err_msg=name)


def test_tiny_learns_and_is_applied(tmp_path, capsys):
    """The real thing: a few steps, then one image; the result keeps the measured frequencies."""
    case = write_pairs(tmp_path, shape=(72, 80, 6), slice_mm=3.0)
    for name in (
        'sub-01_T2w',
        'sub-01_coarse_T2w',
        'sub-02_T1w',
    ):  # slices of one value are no reason to fail
        edit(case / f'{name}.nii.gz', lambda data: data * (np.arange(6) != 2))
    assert train(case, '--max-steps', 12, '--threads', 2) == 0
    assert 'held out x4' in capsys.readouterr().out
    card = json.loads((case / 'out' / 'net_card.json').read_text())
    assert card['steps'] == 12 and set(card['scores']) == {'1.5', '2', '3', '4'}
    assert card['field_of_view_mm'] == [72.0, 80.0]
    assert apply(case, case / 'out' / 'net.h5', '--threads', 2) == 0
    truth, image = (load_volume(case / name) for name in ('sub-01_T2w.nii.gz', 'out/fine.nii.gz'))
    target = load_volume(case / 'sub-01_coarse_T2w.nii.gz')
    again, _ = crop_kspace(image.data, image.lattice, 2, 2.0)
    np.testing.assert_allclose(again, target.data, atol=0.03 * target.data.max())
    assert np.corrcoef(image.data.ravel(), truth.data.ravel())[0, 1] > 0.95
    assert np.abs(image.data[:, :, 2]).max() < 0.02 * truth.data.max()
    record = json.loads((case / 'out' / 'fine.json').read_text())
    assert record['Network']['steps'] == 12 and 'own_gain_db' in record['FiguresOfMerit']
