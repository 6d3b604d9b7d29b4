"""The benchmark's own baseline and table (the speed of anything is not tested)."""

import importlib.util
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from bids_gsrecon.imaging.simulate import thick_slices
from bids_gsrecon.interfaces.io import save_volume
from tests.phantoms import head


@pytest.fixture(scope='module')
def bench():
    path = Path(__file__).parents[2] / 'benchmarks' / 'harmonize.py'
    spec = importlib.util.spec_from_file_location('benchmark_harmonize', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('axis', [0, 2])
def test_guided_minimises_its_own_functional(bench, axis):
    """Against a dense solve of the normal equations, written out voxel by voxel."""
    rng = np.random.default_rng(0)
    shape = [5, 4, 6]
    t1w = rng.random(shape).astype(np.float32) + 0.1
    factor = 2 if axis == 2 else 5
    y_shape = list(shape)
    y_shape[axis] //= factor
    y = rng.random(y_shape).astype(np.float32)
    h, strength = 0.3, 0.05
    n = t1w.size
    index = np.arange(n).reshape(shape)
    scaled = t1w / np.percentile(t1w, 99.5)
    laplacian = np.zeros((n, n))
    for a in np.ndindex(*shape):
        for step in product((-1, 0, 1), repeat=3):
            b = tuple(np.add(a, step))
            if any(step) and all(0 <= v < m for v, m in zip(b, shape)):
                weight = (np.exp(-((scaled[a] - scaled[b]) ** 2) / (2 * h * h)) + 1e-3) / np.dot(step, step)
                laplacian[index[a], index[a]] += weight
                laplacian[index[a], index[b]] -= weight
    slab = np.zeros((y.size, n))
    for a in np.ndindex(*shape):
        b = list(a)
        b[axis] //= factor
        slab[np.ravel_multi_index(b, y_shape), index[a]] = 1 / factor
    expected = np.linalg.solve(slab.T @ slab + strength * laplacian, slab.T @ y.ravel()).reshape(shape)
    found = bench.guided(t1w, y, factor, axis, h=h, strength=strength)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_lesion_contrast_is_that_of_the_image(bench):
    _, t2w, mask, lesion = head()
    whole = bench.lesion_contrast(t2w.data, lesion, mask)
    assert whole > 100
    assert bench.lesion_contrast(0.5 * t2w.data, lesion, mask) == pytest.approx(0.5 * whole, rel=1e-4)


def test_table_has_a_row_per_method_and_reports_failure(bench, tmp_path, capsys):
    t1w, t2w, _, _ = head((30, 32, 30))
    save_volume(tmp_path / 'a_T1w.nii.gz', t1w.data, t1w.affine)
    save_volume(tmp_path / 'a_T2w.nii.gz', t2w.data, t2w.affine)
    pair = ['--t1', str(tmp_path / 'a_T1w.nii.gz'), '--t2', str(tmp_path / 'a_T2w.nii.gz'), '--factors', '3']
    rows = tmp_path / 'rows.jsonl'
    assert bench.main([*pair, '--no-ours', '--json', str(rows)]) == 0
    table = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row['method'] for row in table] == ['linear', 'cubic', 'guided']
    assert table[2]['psnr'] > table[0]['psnr']
    assert bench.main([*pair, '--command', 'python3 -c "raise SystemExit(3)"']) == 1
    assert 'ours     failed' in capsys.readouterr().out


def test_perfect_command_scores_infinite(bench, tmp_path, capsys):
    _, t2w, _, _ = head((30, 32, 30))
    thick = thick_slices(t2w, axis=2, factor=3)
    assert thick.data.shape == (30, 32, 10)
    path = save_volume(tmp_path / 'a_T2w.nii.gz', t2w.data, t2w.affine)
    t1w = save_volume(tmp_path / 'a_T1w.nii.gz', head((30, 32, 30))[0].data, t2w.affine)
    cheat = f'sh -c "mkdir -p {{out}} && cp {path} {{out}}/a_T2w.nii.gz"'
    assert bench.main(['--t1', str(t1w), '--t2', str(path), '--factors', '3', '--size', '30', '32', '30',
                       '--command', cheat]) == 0  # fmt: skip
    assert 'inf' in capsys.readouterr().out.splitlines()[-1]


def test_demo_reports_every_lesion(bench, tmp_path, capsys):
    from bids_gsrecon.interfaces.demo import make_demo

    make_demo(tmp_path / 'demo', resolution_mm=4)
    assert bench.main(['--demo', str(tmp_path / 'demo'), '--no-ours']) == 0
    rows = capsys.readouterr().out.splitlines()[3:]
    assert [row.split()[1:4:2] for row in rows] == [
        ['FLAIR', 'linear'], ['FLAIR', 'cubic'], ['T2w', 'linear'], ['T2w', 'cubic'],
    ]  # fmt: skip
    assert all('lesion contrast' in row for row in rows)
