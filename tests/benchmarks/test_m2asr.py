"""The GaussM2ASR benchmark trains, tests and prints every kind of row."""

import importlib.util
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_gsrecon.recon.m2asr.config import SIZES
from bids_gsrecon.recon.m2asr.network import Network, n_parameters
from tests.m2asr_cases import make_pair

FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture(scope='module')
def benchmark():
    spec = importlib.util.spec_from_file_location('benchmark_m2asr', FOLDER / 'm2asr.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_prints_rows(benchmark, tmp_path, capsys):
    for seed, subject in enumerate((benchmark.TRAINED, benchmark.TESTED)):
        pair = make_pair(shape=(70, 70, 70), seed=seed)
        folder = tmp_path / 'multicontrast' / subject / 'anat'
        folder.mkdir(parents=True)
        for contrast, image in (('T1w', pair.reference), ('T2w', np.where(pair.mask, pair.target, 0))):
            nib.Nifti1Image(image, pair.lattice.affine).to_filename(folder / f'{subject}_{contrast}.nii.gz')
    (tmp_path / 'labels').mkdir()
    labels = np.random.default_rng(0).integers(0, 600, (66, 66, 66)).astype(np.int16)
    nib.Nifti1Image(labels, np.eye(4)).to_filename(tmp_path / benchmark.LABELS)
    arguments = ['--data', str(tmp_path), '--minutes', '0.0001', '--every', '20']
    assert benchmark.main([*arguments, '--rows', 'cnn', 'tiny', 'synthetic', 'random']) == 0
    rows = [r.split('|') for r in capsys.readouterr().out.split('\n') if r.startswith('|')][2:]
    names = [r[1].strip() for r in rows]
    expected = ['zero-filled, dB', 'bicubic, dB']
    for name in ('cnn', 'tiny', 'synthetic', 'random'):
        text = benchmark.ROWS[name][0]
        expected += [text, f'{text}, consistent']
        if name in ('tiny', 'synthetic'):
            expected.append(f'{text}; reference inverted')
    assert names == expected
    table = np.array([[float(c.split('(')[0]) for c in r[2:-2]] for r in rows])
    # A step or two change nothing: the exact start is the zero-filled image, the published one is far from it.
    assert (np.diff(table[0]) < 0).all() and np.abs(table[2:-2]).max() < 1 and table[-2].max() < -3


def test_the_baseline_is_as_large_and_starts_at_its_input(benchmark):
    config = SIZES['tiny'].network
    baseline = benchmark.ResidualCnn(config)
    assert 0.8 < n_parameters(baseline) / n_parameters(Network(config)) < 1.25
    image = torch.rand(2, 32, 32)
    assert torch.equal(baseline(image, image, torch.ones(2)).render(), image)


def test_a_training_step(benchmark, capsys):
    assert benchmark.main(['--step', 'tiny', '--batch', '1', '--repeats', '1']) == 0
    said = capsys.readouterr().out
    assert 'a training step of tiny (0.22 M parameters) on the CPU, batch 1 of 64 x 64, bfloat16' in said


def test_speed(benchmark, capsys):
    assert benchmark.main(['--speed']) == 0
    assert capsys.readouterr().out.count('of a +-64 window') == 3
