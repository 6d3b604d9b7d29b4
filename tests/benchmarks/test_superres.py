"""The baselines of the super-resolution benchmark and its table (the speed of anything is not tested)."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from scipy import optimize

from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.sampling import make_sampling
from bids_gsrecon.interfaces.io import save_volume
from tests.phantoms import head


@pytest.fixture(scope='module')
def bench():
    path = Path(__file__).parents[2] / 'benchmarks' / 'superres.py'
    spec = importlib.util.spec_from_file_location('benchmark_superres', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def random_problem(bench, protocol, shape=(8, 12, 12), sizes=(1.0, 1.0, 1.0), seed=0):
    data = np.random.default_rng(seed).random(shape)
    truth = Volume.from_affine(data, np.diag([*sizes, 1.0]))
    coarse, profiles, truth = bench.degrade(truth, protocol)
    return bench.Problem(protocol, coarse, profiles, truth, np.ones(truth.data.shape, bool))


def operator(problem):
    return make_sampling(problem.truth.lattice, problem.coarse.lattice, problem.profiles)


def gradients(shape, sizes):
    """Three dense forward-difference matrices, in units of the finest voxel size."""
    index = np.arange(np.prod(shape)).reshape(shape)
    out = []
    for axis in range(3):
        low, high = np.take(index, range(shape[axis] - 1), axis), np.take(index, range(1, shape[axis]), axis)
        matrix = np.zeros((index.size, index.size))
        matrix[low.ravel(), low.ravel()] = -min(sizes) / sizes[axis]
        matrix[low.ravel(), high.ravel()] = min(sizes) / sizes[axis]
        out.append(matrix)
    return out


def dense(problem):
    sampling = operator(problem)
    matrix = np.ones((1, 1))
    for band in sampling.bands:
        matrix = np.kron(matrix, band.dense().astype(np.float64))
    return matrix


@pytest.mark.parametrize(
    'protocol', ['cell-x2', 'cell-x3', 'cell-x4', 'trilinear-x2', 'trilinear-x3', 'trilinear-x4',
                 'slab-x3', 'slab-x5'],
)  # fmt: skip
def test_the_methods_are_told_the_true_operator(bench, protocol):
    problem = random_problem(bench, protocol, (12, 13, 15), (0.8, 1.1, 0.9))
    np.testing.assert_allclose(operator(problem).forward(problem.truth.data), problem.coarse.data, atol=1e-5)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_slabs_along_any_axis(bench, axis):
    truth = head((20, 21, 22))[1]
    coarse, profiles, fine = bench.degrade(truth, 'slab-x3', axis)
    found = make_sampling(fine.lattice, coarse.lattice, profiles).forward(fine.data)
    np.testing.assert_allclose(found, coarse.data, rtol=1e-4, atol=1e-3)


def test_tikhonov_minimises_its_functional(bench):
    problem = random_problem(bench, 'slab-x3', (4, 5, 6), (1.0, 2.0, 1.5))
    strength, a = 0.02, dense(problem)
    smooth = sum(g.T @ g for g in gradients((4, 5, 6), (1.0, 2.0, 1.5)))
    expected = np.linalg.solve(a.T @ a + strength * smooth, a.T @ problem.coarse.data.ravel())
    found = bench.baselines.tikhonov(problem.coarse, problem.truth.lattice, operator(problem), strength)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-4)


def test_total_variation_minimises_its_functional(bench):
    """No smooth solver finds an image that scores better, started from where this one ended."""
    problem = random_problem(bench, 'cell-x2', (4, 4, 6), (1.0, 1.0, 1.5))
    strength, a, shape = 0.01, dense(problem), (4, 4, 6)
    steps = gradients(shape, (1.0, 1.0, 1.5))
    unit = np.percentile(problem.coarse.data, 99.5)
    y = problem.coarse.data.ravel() / unit

    def energy(x, rounding=0.0):
        slopes = [g @ x for g in steps]
        length = np.sqrt(sum(slope**2 for slope in slopes) + rounding)
        residual = a @ x - y
        value = 0.5 * (residual**2).sum() + strength * length.sum()
        if not rounding:
            return value
        turn = sum(g.T @ (slope / length) for g, slope in zip(steps, slopes))
        return value, a.T @ residual + strength * turn

    found = bench.baselines.total_variation(
        problem.coarse, problem.truth.lattice, operator(problem), strength, tolerance=0, n_iter=4000
    )
    found = found.ravel().astype(np.float64) / unit
    truth = problem.truth.data.ravel() / unit
    better = optimize.minimize(
        energy, truth, args=(1e-8,), jac=True, method='L-BFGS-B', options={'maxiter': 3000}
    )
    assert energy(found) < energy(truth)
    assert energy(found) == pytest.approx(energy(better.x), rel=2e-3)


@pytest.mark.parametrize('protocol', ['cell-x2', 'slab-x3', 'trilinear-x3'])
@pytest.mark.parametrize('method', ['cubic+', 'nlm'])
def test_consistent_methods_explain_the_data(bench, method, protocol):
    problem = random_problem(bench, protocol)
    found = bench.solve_baseline(method, problem, None)
    np.testing.assert_allclose(operator(problem).forward(found), problem.coarse.data, atol=1e-4)


def test_overlapping_voxels_are_refused(bench):
    problem = random_problem(bench, 'slab-x3')
    wide = [type(p)('gaussian', 4.0, p.axis) for p in problem.profiles]
    sampling = make_sampling(problem.truth.lattice, problem.coarse.lattice, wide)
    with pytest.raises(ValueError, match='overlap'):
        bench.baselines.row_gram(sampling)


@pytest.mark.parametrize('protocol', ['cell-x2', 'slab-x3'])
def test_every_baseline_beats_linear_interpolation(bench, protocol):
    truth = head((36, 36, 36))[1]
    coarse, profiles, truth = bench.degrade(truth, protocol)
    problem = bench.Problem(protocol, coarse, profiles, truth, truth.data > 0)
    scores = {m: bench.measured(m, problem)['psnr_masked'] for m in bench.BASELINES}
    assert min(scores, key=scores.get) == 'linear', scores


def fake_superres(monkeypatch, answer):
    """A module in place of the method: these tests are about the table."""
    module = ModuleType('bids_gsrecon.recon.superres')
    module.SuperresOptions = lambda model='auto': SimpleNamespace(model=model)

    def superres(image, lattice, *, profiles, mask=None, options, seed=0, progress=None):
        return SimpleNamespace(image=answer(image, lattice, options))

    module.superres = superres
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_table_and_summary(bench, tmp_path, capsys, monkeypatch):
    def answer(image, lattice, options):
        return bench.baselines.spline(image, lattice, 3 if options.model == 'auto' else 1)

    fake_superres(monkeypatch, answer)
    truth = head((30, 32, 30))[1]
    path = save_volume(tmp_path / 'a_T2w.nii.gz', truth.data, truth.affine)
    rows = tmp_path / 'rows.jsonl'
    assert bench.main(['--case', str(path), '--protocols', 'cell-x2', 'slab-x3', '--crop', '24', '--methods',
                       'linear', 'cubic', 'gsrecon', 'physics', '--json', str(rows)]) == 0  # fmt: skip
    table = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row['method'] for row in table] == ['linear', 'cubic', 'gsrecon', 'physics'] * 2
    assert table[1]['psnr_masked'] == pytest.approx(table[2]['psnr_masked'], abs=0.2)  # clipped or not
    assert table[0]['psnr_masked'] == table[3]['psnr_masked'] < table[2]['psnr_masked']
    out = capsys.readouterr().out
    assert '| cell-x2 | a_T2w | gsrecon |' in out and 'PSNR of gsrecon minus' in out
    assert out.strip().splitlines()[-1].startswith('| slab-x3 | a_T2w | +')


def test_a_failing_method_is_a_row_and_an_exit_code(bench, tmp_path, capsys, monkeypatch):
    def answer(image, lattice, options):
        raise RuntimeError('solver diverged')

    fake_superres(monkeypatch, answer)
    truth = head((30, 32, 30))[1]
    path = save_volume(tmp_path / 'a_T2w.nii.gz', truth.data, truth.affine)
    assert bench.main(['--case', str(path), '--protocols', 'cell-x2', '--methods', 'linear', 'gsrecon']) == 1
    captured = capsys.readouterr()
    assert '| cell-x2 | a_T2w | gsrecon | failed |' in captured.out
    assert 'solver diverged' in captured.err


def test_absent_cases_are_said(bench, tmp_path, capsys):
    truth = head((30, 32, 30))[1]
    (tmp_path / 'single').mkdir()
    save_volume(tmp_path / 'single' / 'niimath_T1w.nii.gz', truth.data, truth.affine)
    assert bench.main(['--data', str(tmp_path), '--protocols', 'cell-x2', '--methods', 'cubic']) == 0
    out = capsys.readouterr().out
    assert 'sub-m12: left out' in out
    assert '| cell-x2 | niimath | cubic |' in out


def test_scan_has_a_row_per_strength(bench, tmp_path, capsys):
    truth = head((30, 32, 30))[1]
    path = save_volume(tmp_path / 'a_T2w.nii.gz', truth.data, truth.affine)
    assert bench.main(['--case', str(path), '--protocols', 'cell-x3', '--crop', '24', '--scan', '--methods',
                       'cubic', 'tikhonov']) == 0  # fmt: skip
    rows = [line for line in capsys.readouterr().out.splitlines() if '| tikhonov ' in line]
    assert len(rows) == len(bench.SCAN['tikhonov'])


def test_cut_out_keeps_the_place(bench):
    truth = head((30, 32, 30))[1]
    for size in (None, 20, 100):
        part, mask = bench.cut_out(truth, truth.data > 0, size)
        start = np.round(truth.lattice.to_index(part.affine[:3, 3])).astype(int)
        box = tuple(slice(a, a + n) for a, n in zip(start, part.data.shape))
        np.testing.assert_array_equal(part.data, truth.data[box])
        assert mask.shape == part.data.shape and (size != 20 or mask.shape == (20, 20, 20))
