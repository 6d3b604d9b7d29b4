"""The cine benchmark runs, and its L+S solves what it says."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture(scope='module')
def benchmark():
    spec = importlib.util.spec_from_file_location('benchmark_cine', FOLDER / 'cine.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_prints_every_method(benchmark, capsys):
    arguments = ['--cases', 'soft-R2', '--matrix', '40', '33', '--frames', '6', '--published', '--ablations']
    benchmark.PHANTOMS = (*benchmark.PHANTOMS, 'soft-R2')
    assert benchmark.main([*arguments, '--published-steps', '3']) == 0
    rows = [line.split('|') for line in capsys.readouterr().out.split('\n') if line.startswith('| soft')]
    names = [row[2].strip() for row in rows]
    assert names[:5] == ['zero-filled', 'view sharing', 'subspace-SENSE', 'L+S, best setting', 'gsrecon cine']
    assert len(names) == 5 + len(benchmark.ABLATIONS) + 2
    psnr = {name: float(row[4]) for name, row in zip(names, rows)}
    assert psnr['gsrecon cine'] > psnr['view sharing'] and psnr['L+S, best setting'] > psnr['zero-filled']


def test_low_rank_plus_sparse_without_penalties_fits_the_data(benchmark, tmp_path):
    kspace, _ = benchmark.make_case('soft-R2', None, tmp_path, (40, 33), 6)
    ready = benchmark.prepare(kspace, 2)
    loose = benchmark.baselines.low_rank_plus_sparse(ready, 1e-6, 1e-6, n_iterations=60)
    tight = benchmark.baselines.low_rank_plus_sparse(ready, 0.03, 0.03, n_iterations=60)
    power = [ready.series.gradient(images.astype(np.complex64))[1] for images in (loose, tight)]
    assert power[0] < power[1]
    singular = [np.linalg.svd(images.reshape(6, -1), compute_uv=False) for images in (loose, tight)]
    assert singular[1][1] / singular[1][0] < singular[0][1] / singular[0][0]
