"""``group --recon m2asr --train`` under what goes wrong on clusters: how it ends, and that the next run goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from bids_gsrecon.interfaces.m2asr_files import load_weights
from tests.bids_datasets import affine, brain, write_description, write_image, write_t1w

pytestmark = pytest.mark.integration
STEPS = '120'
TIMEOUT_S = 300


class Case:
    """A cohort whose pairs are made; every run has an output folder of its own."""

    def __init__(self, root):
        self.root = root
        bids = write_description(root / 'bids')
        for label in ('01', '02'):
            write_t1w(bids, label, sizes=(1.25, 1.25, 1.25))
            sizes = (1.25, 1.25, 5.0)
            image = bids / f'sub-{label}' / 'anat' / f'sub-{label}_T2w.nii.gz'
            write_image(
                image, brain((64, 64, 16), sizes, -1.0), affine(sizes), metadata={'SliceThickness': 5.0}
            )
        done = self.start('undisturbed').communicate(timeout=TIMEOUT_S)
        self.truth = load_weights(self.weights('undisturbed'))
        assert f'{STEPS} steps' in done[0]

    def start(self, name, **kwargs):
        """The app; pairs of the first run are there for those after it."""
        if name != 'undisturbed' and not (self.root / name).exists():
            pairs = self.root / 'undisturbed' / 'work' / 'm2asr_pairs'
            shutil.copytree(pairs, self.root / name / 'work' / 'm2asr_pairs')
        command = [
            sys.executable,
            '-m',
            'bids_gsrecon',
            self.root / 'bids',
            self.root / name / 'out',
            'group',
        ]
        command += ['-w', self.root / name / 'work', '--recon', 'm2asr', '--train', '--skip-bids-validation']
        command += ['--nprocs', '1', '--mem', '6G', '--m2asr-max-steps', STEPS]
        command += ['--m2asr-checkpoint-minutes', '0.02']
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        return subprocess.Popen(list(map(str, command)), **pipes, **kwargs)

    def weights(self, name):
        return self.root / name / 'out' / 'm2asr' / 'm2asr-tiny.h5'

    def checkpoint(self, name):
        return self.weights(name).with_name('m2asr-tiny_checkpoint.pt')

    def at_training(self, name):
        """A run that has left its first checkpoint, and the process that computes."""
        process = self.start(name)
        deadline = time.monotonic() + TIMEOUT_S
        while not self.checkpoint(name).exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = [
            p for p in psutil.Process(process.pid).children() if 'spawn_main' in ' '.join(p.cmdline())
        ]
        return process, children[0]

    def check_again(self, name):
        """The same command goes on to the weights of the undisturbed run, and leaves nothing else."""
        done = self.start(name)
        out, err = done.communicate(timeout=TIMEOUT_S)
        assert done.returncode == 0, err
        for key, values in self.truth.state.items():
            found = load_weights(self.weights(name)).state[key]
            np.testing.assert_array_equal(found.numpy(), values.numpy(), err_msg=key)
        folder = self.root / name
        assert not self.checkpoint(name).exists() and not list(
            (folder / 'work' / 'm2asr_slices').rglob('*.h5')
        )
        assert not list(folder.rglob('.lock-*')) and not list(folder.rglob('.tmp-*'))
        return out

    def status(self, name):
        paths = (self.root / name / 'out').glob('logs/*/status.json')
        return json.loads(max(paths, key=lambda path: path.stat().st_mtime_ns).read_text())


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp('cohort'))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_leaves_a_checkpoint_of_its_last_step(case, number):
    import torch

    name = f'told{number}'
    process, _ = case.at_training(name)
    before = torch.load(case.checkpoint(name), weights_only=True)['state']['step']
    time.sleep(0.4)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out.count('bids_gsrecon: INTERRUPTED: nothing was trained') == 1
    assert 'it goes on where it stopped' in err and 'Traceback' not in err
    assert case.status(name)['exit_code'] == 130
    assert torch.load(case.checkpoint(name), weights_only=True)['state']['step'] > before
    case.check_again(name)


@pytest.mark.parametrize(
    ('number', 'said'), [(signal.SIGKILL, 'most likely out of memory'), (signal.SIGSEGV, 'crashed')]
)
def test_killed_in_its_middle_it_is_said_and_goes_on(case, number, said):
    name = f'killed{number}'
    process, engine = case.at_training(name)
    engine.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert out.count('bids_gsrecon: FAILED: nothing was trained (its process got SIG') == 1
    errors = [line for line in err.splitlines() if ': error: ' in line]
    assert len(errors) == 1 and said in errors[0] and 'm2asr.training' in errors[0]
    assert 'Traceback' not in err
    status = case.status(name)
    assert status['exit_code'] == 1
    assert {one['status'] for one in status['participants'].values()} == {'ok'}, 'their pairs are there'
    (crash,) = (case.root / name / 'out' / 'logs').glob('*/crash-training.txt')
    assert said in crash.read_text()
    case.check_again(name)


def test_killed_while_pairs_are_made_it_names_the_step(case):
    (case.root / 'pairs').mkdir()  # nothing is made beforehand
    process = case.start('pairs')
    deadline = time.monotonic() + TIMEOUT_S
    while not list((case.root / 'pairs').glob('out/logs/*/steps.json')):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children()
    next(p for p in children if 'spawn_main' in ' '.join(p.cmdline())).kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'the process of bids_gsrecon_wf.sub_01_wf' in err and 'most likely out of memory' in err
    assert out.count('bids_gsrecon: FAILED: nothing was trained (its process got SIGKILL)') == 1
    assert [path.name for path in case.root.glob('pairs/out/logs/*/*/crash-*.txt')] != []
    states = {label: one['status'] for label, one in case.status('pairs')['participants'].items()}
    assert states == {'01': 'failed', '02': 'failed'}
    case.check_again('pairs')


def test_all_end_with_the_first_process_and_the_next_run_goes_on(case):
    process, engine = case.at_training('first')
    process.kill()
    process.communicate()
    psutil.wait_procs([engine], timeout=10)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    assert case.status('first')['exit_code'] is None
    case.check_again('first')


def test_two_runs_on_one_output_are_one_too_many(case):
    first, _ = case.at_training('both')
    second = case.start('both')
    out, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert 'is being processed by run' in err and err.count(': error: ') == 1
    assert (
        out.strip()
        .splitlines()[-1]
        .startswith('bids_gsrecon: FAILED: nothing was trained (another run is at it)')
    )
    out, err = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 0 and f'{STEPS} steps' in out, err
    assert not list((case.root / 'both').rglob('.lock-*'))
