"""``gsrecon``: the file-level commands, their outputs, and what they say about bad input."""

import contextlib
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_gsrecon.cli import direct
from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.metrics import evaluate, resample_to
from bids_gsrecon.imaging.simulate import thick_slices
from bids_gsrecon.interfaces.io import save_volume
from bids_gsrecon.interfaces.processes import starting_up
from bids_gsrecon.recon.harmonize.types import ContrastResult, HarmonizeResult
from tests.phantoms import head


@pytest.fixture
def case(tmp_path):
    t1w, t2w, mask, _ = head((32, 34, 30))
    thick = thick_slices(t2w, axis=2, factor=5)
    save_volume(tmp_path / 'T1w.nii.gz', t1w.data, t1w.affine)
    save_volume(tmp_path / 'T2w.nii.gz', thick.data, thick.affine)
    save_volume(tmp_path / 'truth.nii.gz', t2w.data, t2w.affine)
    save_volume(tmp_path / 'mask.nii.gz', mask, t1w.affine, dtype=np.uint8)
    return tmp_path


def one_gaussian():
    return GaussianField(
        np.zeros((1, 3)), np.zeros((1, 3)), [[1, 0, 0, 0]], [0.0], [[1.0]], channels=('T1w',)
    )


@pytest.fixture
def fake(monkeypatch):
    """Replaces the method by interpolation: these tests are about the command line."""
    import bids_gsrecon.recon.harmonize as package

    calls = []

    def harmonize(reference, targets, *, mask, scaffold, lattice, options, seed, progress):
        calls.append(
            {
                'targets': targets,
                'mask': mask,
                'lattice': lattice,
                'options': options,
                'seed': seed,
                'scaffold': scaffold,
            }
        )
        progress('appearance', 1, 1)
        contrasts = [
            ContrastResult(
                name=t.name,
                image=resample_to(t.volume, lattice, order=1),
                uncertainty=np.ones(lattice.shape, np.float32),
                layers=[one_gaussian()],
                target_to_reference=t.target_to_reference,
                residual=np.zeros_like(t.volume.data),
                figures={'slice_residual_percent': 1.5},
            )
            for t in targets
        ]
        return HarmonizeResult(
            lattice, np.ones(lattice.shape, bool), one_gaussian(), contrasts, {'appearance': 0.1}
        )

    def check_reference(volume):
        if volume.lattice.voxel_sizes_mm.max() > 2.5:
            raise ValueError('its voxels are too thick to carry the anatomy: choose an isotropic image')

    monkeypatch.setattr(package, 'harmonize', harmonize, raising=False)
    monkeypatch.setattr(package, 'check_reference', check_reference, raising=False)
    monkeypatch.setattr(package, 'estimate_memory_gb', lambda *a: 0.1, raising=False)
    return calls


def run(*args):
    return direct.main([str(a) for a in args])


def error_line(capsys):
    """The one line on standard error."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_harmonize_writes_named_outputs_on_the_reference_grid(case, fake, capsys):
    out = case / 'out'
    assert run('harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o', out, '--save-field') == 0
    assert sorted(p.name for p in out.iterdir()) == [
        'T1w_mask.nii.gz',
        'T1w_scaffold.h5',
        'T2w.json',
        'T2w.nii.gz',
        'T2w_field.h5',
        'T2w_residual.nii.gz',
        'T2w_uncertainty.nii.gz',
    ]
    reference, result = nib.load(case / 'T1w.nii.gz'), nib.load(out / 'T2w.nii.gz')
    assert result.shape == reference.shape
    np.testing.assert_allclose(result.affine, reference.affine)
    sidecar = json.loads((out / 'T2w.json').read_text())
    assert sidecar['SliceAxis'] == 2 and sidecar['SliceThickness'] == pytest.approx(5)
    assert sidecar['FiguresOfMerit'] == {'slice_residual_percent': 1.5}
    assert sidecar['Mask'] == 'nonzero'
    captured = capsys.readouterr()
    assert captured.out.startswith('gsrecon harmonize: ok, T2w.nii.gz on a grid of 32x34x30')
    assert captured.err == ''  # no progress bar where there is no terminal


def test_harmonize_options_reach_the_method(case, fake):
    (case / 'T2w.json').write_text('{"SliceThickness": 4.0}')
    assert run('harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o', case / 'a',
               '--mask', case / 'mask.nii.gz', '--profile', 'gaussian', '--resolution', '2',
               '--relax-geometry', '--random-seed', '7') == 0  # fmt: skip
    call = fake[0]
    profile = call['targets'][0].profile
    assert (profile.kind, profile.axis, profile.thickness_mm) == ('gaussian', 2, 4.0)
    assert call['mask'].sum() == np.asarray(nib.load(case / 'mask.nii.gz').dataobj).sum()
    np.testing.assert_allclose(call['lattice'].voxel_sizes_mm, 2)
    assert call['options'].relax_geometry is True
    assert call['seed'] == 7
    assert run('harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o', case / 'b', '--slice-axis', '1',
               '--thickness', '3', '--like', case / 'T2w.nii.gz') == 0  # fmt: skip
    assert fake[1]['targets'][0].profile.axis == 1 and fake[1]['targets'][0].profile.thickness_mm == 3
    assert fake[1]['lattice'].shape == (32, 34, 6)


def test_incredible_sidecar_thickness_is_reported_and_ignored(case, fake, capsys):
    (case / 'T2w.json').write_text('{"SliceThickness": 0.005}')
    assert run('harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o', case / 'a') == 0
    assert fake[0]['targets'][0].profile.thickness_mm == pytest.approx(5)
    assert 'note: ' in (said := capsys.readouterr().err) and 'SliceThickness 0.005 mm does not fit' in said


def spoil(case, kind):
    """Make one input bad; the arguments of the command that meets it."""
    t1w, t2w = case / 'T1w.nii.gz', case / 'T2w.nii.gz'
    image = nib.load(t2w)
    data, affine = np.asarray(image.dataobj).copy(), image.affine
    extra = []
    if kind == '4D':
        data = np.stack([data, data], -1)
    elif kind == 'NaN':
        data[3, 3, 3] = np.nan
    elif kind == 'single slice':
        data = data[:, :, :1]
    elif kind == 'no overlap':
        affine = affine.copy()
        affine[0, 3] += 500
    elif kind == 'constant':
        data[:] = 3
    elif kind == 'empty mask':
        save_volume(case / 'mask.nii.gz', np.zeros(nib.load(t1w).shape), nib.load(t1w).affine, dtype=np.uint8)
        extra = ['--mask', case / 'mask.nii.gz']
    elif kind == 'thick reference':
        t1w, t2w = t2w, t1w
    elif kind == 'missing':
        t2w = case / 'none.nii.gz'
    elif kind == 'twice':
        extra = [t2w]
    if kind in ('4D', 'NaN', 'single slice', 'no overlap', 'constant'):
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), t2w)
    elif kind == 'truncated':
        t2w.write_bytes(t2w.read_bytes()[:900])
    elif kind == 'not an image':
        t2w.write_text('hello')
    return t1w, t2w, extra


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('4D', '4 dimensions'),
        ('NaN', 'NaN'),
        ('single slice', 'single slice'),
        ('truncated', 'cannot be read'),
        ('not an image', 'cannot be read'),
        ('no overlap', 'overlap'),
        ('constant', 'constant'),
        ('empty mask', 'empty mask'),
        ('thick reference', 'T2w.nii.gz: its voxels are too thick'),
        ('missing', 'does not exist'),
        ('twice', 'overwrite each other'),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(case, fake, capsys, kind, words):
    t1w, t2w, extra = spoil(case, kind)
    targets = [t2w, *extra] if kind == 'twice' else [t2w]
    options = [] if kind == 'twice' else extra
    assert run('harmonize', t1w, *targets, '-o', case / 'out', *options) == 2
    message = error_line(capsys)
    assert (
        message.startswith('gsrecon harmonize: error: ') and words in message and 'Traceback' not in message
    )
    assert not fake
    assert not (case / 'out').exists() or not any((case / 'out').iterdir())


def test_inputs_are_never_overwritten(case, fake, capsys):
    before = (case / 'T2w.nii.gz').read_bytes()
    assert run('harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o', case) == 2
    assert 'overwritten' in error_line(capsys)
    assert (
        run('simulate', 'slices', case / 'T2w.nii.gz', case / 'T2w.nii.gz', '--axis', 0, '--factor', 2) == 2
    )
    assert 'overwritten' in error_line(capsys)
    assert (case / 'T2w.nii.gz').read_bytes() == before


def test_unwritable_output(case, fake, capsys):
    (case / 'file').write_text('')
    assert run('harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o', case / 'file' / 'out') == 2
    assert 'cannot be written' in error_line(capsys)
    assert not fake


def test_failure_while_running_is_exit_code_one(case, fake, monkeypatch, capsys):
    import bids_gsrecon.recon.harmonize as package

    def broken(*args, **kwargs):
        raise RuntimeError('solver diverged')

    monkeypatch.setattr(package, 'harmonize', broken)
    assert run('harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o', case / 'out') == 1
    assert 'solver diverged' in error_line(capsys)
    assert not any((case / 'out').iterdir())
    assert run('harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o', case / 'out', '-v') == 1
    assert 'Traceback' in capsys.readouterr().err


def test_simulate_writes_the_image_and_its_sidecar(case, capsys):
    out = case / 'thick.nii.gz'
    assert run('simulate', 'slices', case / 'truth.nii.gz', out, '--axis', 2, '--factor', 5) == 0
    np.testing.assert_allclose(
        nib.load(out).get_fdata(), nib.load(case / 'T2w.nii.gz').get_fdata(), atol=1e-3
    )
    np.testing.assert_allclose(nib.load(out).affine, nib.load(case / 'T2w.nii.gz').affine, atol=1e-5)
    assert json.loads((case / 'thick.json').read_text())['SliceThickness'] == 5
    assert 'ok, 6 slices' in capsys.readouterr().out
    assert run('simulate', 'slices', case / 'truth.nii.gz', out, '--axis', 2, '--factor', 500) == 2
    assert 'fits' in error_line(capsys)
    assert run('simulate', 'slices', case / 'truth.nii.gz', case / 'x.txt', '--axis', 2, '--factor', 5) == 2
    assert '.nii' in error_line(capsys)


def test_simulate_coarse_writes_the_image_and_its_sidecar(case, capsys):
    out = case / 'coarse.nii.gz'
    assert run('simulate', 'coarse', case / 'truth.nii.gz', out, '--factor', 2) == 0
    assert 'ok, 16 x 17 x 15 voxels' in capsys.readouterr().out
    truth = nib.load(case / 'truth.nii.gz')
    block = truth.get_fdata()[:2, :2, :2].mean()
    assert nib.load(out).get_fdata()[0, 0, 0] == pytest.approx(block, abs=1e-3)
    np.testing.assert_allclose(nib.load(out).affine[:3, 3], truth.affine[:3] @ [0.5, 0.5, 0.5, 1], atol=1e-5)
    sidecar = json.loads((case / 'coarse.json').read_text())
    assert sidecar['VoxelSampling'] == 'cell' and sidecar['CoarseningFactors'] == [2, 2, 2]
    options = ['--factor', 1, 3, 1, '--how', 'trilinear', '--noise', 0.02, '--seed', 1]
    assert run('simulate', 'coarse', case / 'truth.nii.gz', out, *options) == 0
    assert nib.load(out).shape == (32, 11, 30)
    for bad, words in (([500], 'no voxel'), ([2, 2], 'per stored axis')):
        assert run('simulate', 'coarse', case / 'truth.nii.gz', out, '--factor', *bad) == 2
        assert words in error_line(capsys)


def test_simulate_stacks_writes_everything_together(case, capsys):
    out = case / 'stacks'
    options = ['--mask', case / 'mask.nii.gz', '--in-plane', 2, '--thickness', 4, '--gap', 1, '--stacks', 2]
    assert run('simulate', 'stacks', case / 'truth.nii.gz', out, *options, '--seed', 3) == 0
    assert 'ok, 2 stacks' in capsys.readouterr().out
    names = {f'{kind}-{n}' for kind in ('stack', 'mask') for n in (1, 2)}
    assert {p.name for p in out.iterdir()} == {f'{name}.nii.gz' for name in names} | {
        *('stack-1.json', 'stack-2.json', 'poses.tsv', 'truth.nii.gz', 'truth-mask.nii.gz')
    }
    header, *rows = [line.split('\t') for line in (out / 'poses.tsv').read_text().splitlines()]
    assert header[:3] == ['stack', 'slice', 'm00'] and len(header) == 18
    images = [nib.load(out / f'stack-{n}.nii.gz') for n in (1, 2)]
    assert len(rows) == sum(image.shape[2] for image in images)
    np.testing.assert_allclose(np.array(rows, float)[:, -4:], np.tile([0, 0, 0, 1], (len(rows), 1)))
    for n, image in enumerate(images, 1):
        np.testing.assert_allclose(image.header.get_zooms(), [2, 2, 5], atol=1e-5)
        assert nib.load(out / f'mask-{n}.nii.gz').shape == image.shape
        sidecar = json.loads((out / f'stack-{n}.json').read_text())
        assert (sidecar['SliceThickness'], sidecar['SpacingBetweenSlices']) == (4, 5)
        assert sorted(sidecar['SliceTiming']) == list(range(image.shape[2]))
    before = (out / 'stack-1.nii.gz').read_bytes()
    for bad, words in (
        ([*options, '--share-moving', 2], 'between 0 and 1'),
        ([*options[:-1], 9], 'number of stacks'),
        ([*options[:-1], 1], 'another simulation'),
    ):
        assert run('simulate', 'stacks', case / 'truth.nii.gz', out, *bad) == 2
        assert words in error_line(capsys)
    assert run('simulate', 'stacks', out / 'truth.nii.gz', out, *options) == 2
    assert 'overwritten' in error_line(capsys)
    assert (out / 'stack-1.nii.gz').read_bytes() == before


def test_evaluate_prints_a_line_or_json(case, capsys):
    assert (
        run('evaluate', case / 'T2w.nii.gz', case / 'truth.nii.gz', '--mask', case / 'mask.nii.gz', '--json')
        == 0
    )
    row = json.loads(capsys.readouterr().out)
    assert {'psnr', 'ssim', 'nrmse', 'ncc', 'convention'} <= set(row)
    assert run('evaluate', case / 'T2w.nii.gz', case / 'truth.nii.gz', '--mask', case / 'mask.nii.gz') == 0
    assert f'psnr {row["psnr"]:.3f} dB' in capsys.readouterr().out
    assert run('evaluate', case / 'none.nii.gz', case / 'truth.nii.gz') == 2
    assert 'does not exist' in error_line(capsys)


@pytest.mark.parametrize(
    'args', [[], ['nothing'], ['harmonize', 'a'], ['evaluate', 'a', 'b', '--convention', 'x']]
)
def test_unusable_arguments_exit_with_two(args, capsys):
    with pytest.raises(SystemExit) as stop:
        direct.main(args)
    assert stop.value.code == 2
    assert 'usage: gsrecon' in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        'import sys; from bids_gsrecon.cli import direct\n'
        'try: direct.main(["harmonize", "--help"])\n'
        'except SystemExit: pass\n'
        'print([m for m in ("numpy", "torch", "nibabel", "nipype", "scipy") if m in sys.modules])'
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=root, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == '[]'
    assert 'REFERENCE TARGET' in done.stdout


def test_registration_is_used_when_asked_for(case, fake, monkeypatch):
    from bids_gsrecon.interfaces import registration

    motion = np.eye(4)
    motion[:3, 3] = [1.0, 2.0, -1.0]

    class Found:
        moving_to_fixed = motion

    asked = {}

    def register(fixed, moving, *, fixed_mask, seed, n_threads):
        asked.update(fixed=fixed, moving=moving, seed=seed)
        return Found

    monkeypatch.setattr(registration, 'register_rigid', register)
    arguments = [
        'harmonize',
        case / 'T1w.nii.gz',
        case / 'T2w.nii.gz',
        '-o',
        case / 'out',
        '--random-seed',
        '3',
    ]
    assert run(*arguments, '--register', 'rigid') == 0
    assert asked['fixed'].data.shape == (32, 34, 30) and asked['seed'] == 3
    np.testing.assert_array_equal(fake[0]['targets'][0].target_to_reference, motion)
    saved = registration.load_itk_transform(case / 'out' / 'T2w_to-reference.txt')
    np.testing.assert_allclose(saved, motion, atol=1e-6)


def test_scaffold_and_field_round_trip(case, fake, capsys):
    arguments = ['harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o']
    assert run(*arguments, case / 'a', '--save-field') == 0
    assert run(*arguments, case / 'b', '--scaffold', case / 'a' / 'T1w_scaffold.h5') == 0
    assert len(fake[1]['scaffold']) == 1
    capsys.readouterr()
    for path, words in (
        (case / 'none.h5', 'does not exist'),
        (case / 'T1w.nii.gz', 'cannot be read as a Gaussian field'),
    ):
        assert run(*arguments, case / 'c', '--scaffold', path) == 2
        assert words in error_line(capsys)
    out = case / 'fine.nii.gz'
    assert run('sample', case / 'a' / 'T2w_field.h5', '--like', case / 'T1w.nii.gz', '-o', out) == 0
    image = nib.load(out)
    assert image.shape == (32, 34, 30)
    peak = np.unravel_index(np.argmax(image.get_fdata()), image.shape)
    assert np.abs(nib.affines.apply_affine(image.affine, peak)).max() < 1.5  # the Gaussian sits at the origin
    capsys.readouterr()
    assert run('sample', case / 'a' / 'T2w_field.h5', '--resolution', '2', '-o', out) == 0
    np.testing.assert_allclose(nib.load(out).header.get_zooms(), 2)
    assert run('sample', case / 'a' / 'T2w_field.h5', '--resolution', '2', '-o', out, '--channel', 'x') == 2
    assert 'no channel x' in error_line(capsys)


def test_what_an_earlier_run_left_does_not_survive_beside_another_result(case, fake, capsys):
    out = case / 'out'
    arguments = ['harmonize', case / 'T1w.nii.gz', case / 'T2w.nii.gz', '-o', out]
    assert run(*arguments, '--save-field') == 0
    (out / 'T2w_to-reference.txt').write_text('of a registration')
    (out / 'FLAIR_field.h5').write_text('of another contrast')
    assert run(*arguments, '--scaffold', out / 'T2w_field.h5') == 2
    assert 'overwritten' in error_line(capsys) and (out / 'T2w_field.h5').exists()
    assert run(*arguments) == 0
    assert not (out / 'T2w_field.h5').exists() and not (out / 'T2w_to-reference.txt').exists()
    assert (out / 'FLAIR_field.h5').exists() and (out / 'T2w_uncertainty.nii.gz').exists()


def test_the_real_method_beats_interpolation_and_repeats_itself(tmp_path, capsys):
    t1w, t2w, mask, lesion = head((36, 38, 35))
    thick = thick_slices(t2w, axis=2, factor=5)
    save_volume(tmp_path / 'T1w.nii.gz', t1w.data, t1w.affine)
    save_volume(tmp_path / 'T2w.nii.gz', thick.data, thick.affine)
    for name in ('a', 'b'):
        assert run('harmonize', tmp_path / 'T1w.nii.gz', tmp_path / 'T2w.nii.gz', '-o', tmp_path / name) == 0
    images = [np.asarray(nib.load(tmp_path / name / 'T2w.nii.gz').dataobj) for name in ('a', 'b')]
    assert np.array_equal(*images)
    ours, cubic = (
        evaluate(Volume(image, t2w.lattice), t2w, mask)
        for image in (images[0], resample_to(thick, t2w.lattice, order=3))
    )
    assert ours['psnr'] > cubic['psnr'] + 1 and ours['ssim'] > cubic['ssim']
    sidecar = json.loads((tmp_path / 'a' / 'T2w.json').read_text())
    assert sidecar['FiguresOfMerit']['slice_factor'] == 5
    around = ndimage.binary_dilation(lesion, iterations=3) & ~ndimage.binary_dilation(lesion)
    assert images[0][lesion].mean() > 1.25 * np.median(images[0][around])


@pytest.mark.parametrize('error', [None, ValueError])
def test_garbage_is_looked_for_again_after_the_start(error):
    with pytest.raises(error) if error else contextlib.nullcontext(), starting_up():
        assert not gc.isenabled()
        if error:
            raise error
    assert gc.isenabled()
    gc.unfreeze()
