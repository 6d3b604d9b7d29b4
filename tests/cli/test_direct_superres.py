"""``gsrecon superres``: its files, and what it says about bad input."""

import dataclasses
import json
import struct

import nibabel as nib
import numpy as np
import pytest

from bids_gsrecon.cli import direct, method_options, superres_files
from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.metrics import resample_to
from bids_gsrecon.imaging.simulate import thick_slices
from bids_gsrecon.interfaces.io import save_volume
from bids_gsrecon.recon.superres import MODELS, PROFILES, SuperresOptions, SuperresResult
from tests.phantoms import head

ALL = [
    'sr.json',
    'sr.nii.gz',
    'sr_amplitude.nii.gz',
    'sr_mask.nii.gz',
    'sr_relaxation-proxy.nii.gz',
    'sr_residual.nii.gz',
]


@pytest.fixture
def case(tmp_path):
    """A thick T2w and its truth; also an isotropic image."""
    t1w, t2w, mask, _ = head((32, 34, 30))
    thick = thick_slices(t2w, axis=2, factor=5)
    save_volume(tmp_path / 'T2w.nii.gz', thick.data, thick.affine)
    save_volume(tmp_path / 'T1w.nii.gz', t1w.data, t1w.affine)
    save_volume(tmp_path / 'mask.nii.gz', mask, t1w.affine, dtype=np.uint8)
    return tmp_path


def one_gaussian():
    return GaussianField(np.zeros((1, 3)), np.zeros((1, 3)), [[1, 0, 0, 0]], [0.0], [[1.0]])


@pytest.fixture
def fake(monkeypatch):
    """Replaces the method by interpolation: these tests are about the command line."""
    import bids_gsrecon.recon.superres as package

    calls = []

    def superres(image, lattice, *, profiles, mask, options, seed, progress):
        calls.append(
            {'lattice': lattice, 'profiles': profiles, 'mask': mask, 'options': options, 'seed': seed}
        )
        progress('fitting Gaussians', 1, 1)
        picture = resample_to(image, lattice, order=1)
        ones = np.ones(lattice.shape, np.float32)
        return SuperresResult(
            lattice, picture, picture, ones, ones > 0, [one_gaussian()],
            np.zeros_like(image.data), {'goal_db': 40.0}, {'geometry': 0.1}, 'cpu',
        )  # fmt: skip

    monkeypatch.setattr(package, 'superres', superres)
    return calls


def run(*args):
    return direct.main(['superres', *[str(a) for a in args]])


def error_line(capsys):
    """The one line on standard error."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def sizes(call):
    return call['lattice'].voxel_sizes_mm.round(6).tolist()


def test_it_writes_all_its_files(case, fake, capsys):
    out = case / 'new' / 'sr.nii.gz'
    assert run(case / 'T2w.nii.gz', '-o', out) == 0
    assert sorted(p.name for p in out.parent.iterdir()) == ALL
    thick, image = nib.load(case / 'T2w.nii.gz'), nib.load(out)
    assert image.shape == (32, 34, 30)
    assert nib.load(out.with_name('sr_residual.nii.gz')).shape == thick.shape
    sidecar = json.loads(out.with_name('sr.json').read_text())
    assert sidecar['SliceAxis'] == 2 and sidecar['SliceThickness'] == pytest.approx(5)
    assert sidecar['InputShape'] == [32, 34, 6] and sidecar['OutputVoxelSizes'] == [1, 1, 1]
    assert sidecar['FiguresOfMerit'] == {'goal_db': 40.0} and sidecar['Mask'] == 'nonzero'
    assert sidecar['Options']['model'] == 'auto'
    captured = capsys.readouterr()
    assert captured.out.startswith('gsrecon superres: ok, 32 x 34 x 30 voxels of 1 x 1 x 1 mm')
    assert captured.err == ''
    assert run(case / 'T2w.nii.gz', '-o', case / 'plain.nii', '--save-field') == 0
    assert (case / 'plain_amplitude.nii').exists() and (case / 'plain_field.h5').exists()


@pytest.mark.parametrize(
    ('name', 'options', 'expected'),
    [
        ('T2w', [], [1, 1, 1]),
        ('T2w', ['--isotropic'], [1, 1, 1]),
        ('T2w', ['--zooms', 0.5], [0.5, 0.5, 0.5]),
        ('T2w', ['--zooms', 1, 1, 2.5], [1, 1, 2.5]),
        ('T2w', ['--shape', 64, 34, 15], [0.5, 1, 2]),
        ('T2w', ['--like', 'T1w.nii.gz'], [1, 1, 1]),
        ('T1w', [], [0.5, 0.5, 0.5]),
    ],
)
def test_output_grids(case, fake, monkeypatch, name, options, expected):
    monkeypatch.chdir(case)
    assert run(f'{name}.nii.gz', '-o', 'sr.nii.gz', *options) == 0
    assert sizes(fake[0]) == expected
    image = nib.load(f'{name}.nii.gz')
    centre = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    np.testing.assert_allclose(fake[0]['lattice'].centre_mm, centre, atol=1e-5)


def test_options_reach_the_method(case, fake, monkeypatch):
    monkeypatch.setattr(direct, '_limit_threads', lambda threads: None)  # it would last
    switches = [item.name for item in dataclasses.fields(SuperresOptions) if item.type == 'bool']
    assert set(switches) == {*method_options.SHARED_SWITCHES, *method_options.SUPERRES_SWITCHES}
    off = [f'--no-{name.replace("_", "-")}' for name in switches]
    assert run(case / 'T2w.nii.gz', '-o', case / 'sr.nii.gz', '--model', 'physics', '--iterations', 7, *off,
               '--profile', 'gaussian', '--thickness', 4, '--slice-axis', 1, '--random-seed', 3,
               '--threads', 1, '--device', 'cpu', '--mask', case / 'mask.nii.gz', '--zooms', 0.5) == 0  # fmt: skip
    call = fake[0]
    options = call['options']
    assert (options.model, options.iterations, options.device, options.n_threads) == ('physics', 7, 'cpu', 1)
    assert not any(getattr(options, name) for name in switches)
    assert [(p.kind, p.thickness_mm) for p in call['profiles']] == [('box', 1), ('gaussian', 4), ('box', 5)]
    assert call['seed'] == 3
    assert call['mask'].shape == (32, 34, 6), 'on the grid of the image'


def test_choices_of_the_command_line_are_those_of_the_method():
    assert method_options.SUPERRES_MODELS == MODELS
    assert method_options.VOXEL_PROFILES == PROFILES
    fields = {item.name for item in dataclasses.fields(SuperresOptions)} - {'device', 'n_threads'}
    assert set(method_options.SUPERRES_FIELDS.values()) == fields
    assert SuperresOptions(**method_options.SUPERRES_SLOPPY).iterations < SuperresOptions().iterations


@pytest.mark.parametrize(
    ('thickness', 'used', 'said'), [(4.0, 4.0, 'with gaps'), (6.0, 6.0, 'overlap'), (0.01, 5.0, 'not fit')]
)
def test_thickness_of_the_sidecar(case, fake, capsys, thickness, used, said):
    (case / 'T2w.json').write_text(json.dumps({'SliceThickness': thickness}))
    assert run(case / 'T2w.nii.gz', '-o', case / 'sr.nii.gz') == 0
    assert fake[0]['profiles'][2].thickness_mm == pytest.approx(used)
    note = error_line(capsys)
    assert note.startswith('gsrecon superres: note: ') and 'T2w.nii.gz' in note and said in note


@pytest.mark.parametrize('dtype', [np.int16, np.uint8])
def test_scaled_integers_are_read_in_their_units(case, fake, dtype):
    image = nib.load(case / 'T2w.nii.gz')
    scaled = nib.Nifti1Image((np.asarray(image.dataobj) / 4).astype(dtype), image.affine)
    scaled.header.set_slope_inter(0.5, 10)
    nib.save(scaled, case / 'int.nii.gz')
    assert run(case / 'int.nii.gz', '-o', case / 'sr.nii.gz') == 0
    result = np.asarray(nib.load(case / 'sr.nii.gz').dataobj)
    assert result.max() == pytest.approx(np.asarray(nib.load(case / 'int.nii.gz').dataobj).max(), rel=0.05)


def test_an_image_that_is_fine_already_is_refused_or_copied(case, fake, capsys):
    out = case / 'new' / 'sr.nii.gz'
    assert run(case / 'T1w.nii.gz', '-o', out, '--zooms', 1) == 2
    message = error_line(capsys)
    assert 'T1w.nii.gz has voxels of 1 x 1 x 1 mm' in message and '--copy-if-fine' in message
    assert not out.parent.exists()
    assert run(case / 'T1w.nii.gz', '-o', out, '--isotropic', '--copy-if-fine') == 0
    assert out.read_bytes() == (case / 'T1w.nii.gz').read_bytes()
    assert sorted(p.name for p in out.parent.iterdir()) == ['sr.json', 'sr.nii.gz']
    assert 'fine as the output already: copied' in capsys.readouterr().out
    assert run(case / 'T1w.nii.gz', '-o', case / 'sr.nii', '--isotropic', '--copy-if-fine') == 0
    np.testing.assert_array_equal(
        nib.load(case / 'sr.nii').get_fdata(), nib.load(case / 'T1w.nii.gz').get_fdata()
    )
    assert not fake


def test_what_an_earlier_run_left_does_not_survive_beside_another_result(case, fake):
    out = case / 'new' / 'sr.nii.gz'
    assert run(case / 'T2w.nii.gz', '-o', out, '--save-field') == 0
    (out.parent / 'sr_notes.txt').write_text('not ours')
    assert sorted(p.name for p in out.parent.iterdir()) == sorted([*ALL, 'sr_field.h5', 'sr_notes.txt'])
    assert run(case / 'T2w.nii.gz', '-o', out) == 0
    assert sorted(p.name for p in out.parent.iterdir()) == sorted([*ALL, 'sr_notes.txt'])
    assert run(case / 'T1w.nii.gz', '-o', out, '--isotropic', '--copy-if-fine') == 0
    assert sorted(p.name for p in out.parent.iterdir()) == ['sr.json', 'sr.nii.gz', 'sr_notes.txt']


def test_a_copy_is_not_passed_off_as_the_grid_of_like(case, fake, capsys):
    image = nib.load(case / 'T1w.nii.gz')
    shifted = image.affine.copy()
    shifted[:3, 3] += 0.5
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), shifted), case / 'like.nii.gz')
    out = case / 'new' / 'sr.nii.gz'
    assert run(case / 'T1w.nii.gz', '-o', out, '--like', case / 'like.nii.gz', '--copy-if-fine') == 2
    message = error_line(capsys)
    assert 'T1w.nii.gz' in message and 'like.nii.gz' in message and 'leave out --like' in message
    assert not out.exists() and not fake
    same = case / 'T1w.nii.gz'
    (case / 'same.nii.gz').write_bytes(same.read_bytes())
    assert run(same, '-o', out, '--like', case / 'same.nii.gz', '--copy-if-fine') == 0


@pytest.mark.parametrize('seed', ['-1', '1.5', str(2**31)])
def test_a_seed_that_cannot_be_is_refused_at_once(case, fake, capsys, seed):
    with pytest.raises(SystemExit) as left:
        run(case / 'T2w.nii.gz', '-o', case / 'sr.nii.gz', '--random-seed', seed)
    assert left.value.code == 2
    assert f'--random-seed: {seed!r} is not a whole number' in capsys.readouterr().err
    assert not fake


def test_memory_that_runs_out_has_a_remedy_that_superres_knows(case, fake, capsys, monkeypatch):
    import bids_gsrecon.recon.superres as package

    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(package, 'superres', full)
    assert run(case / 'T2w.nii.gz', '-o', case / 'sr.nii.gz') == 1
    message = error_line(capsys)
    assert 'out of memory' in message and 'larger voxels' in message and '--resolution' not in message


def spoil(path, kind):
    image = nib.load(path)
    data, affine, dtype = np.asarray(image.dataobj).copy(), image.affine, np.float32
    if kind == '4D':
        data = np.stack([data, data], -1)
    elif kind == 'NaN':
        data[3, 3, 3] = np.nan
    elif kind == 'single slice':
        data = data[:, :, :1]
    elif kind == 'two dimensions':
        data = data[:, :, 0]
    elif kind == 'constant':
        data[:] = 3
    elif kind == 'complex':
        dtype = np.complex64
    if kind == 'RGB':
        colours = np.zeros(data.shape, [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
        nib.save(nib.Nifti1Image(colours, affine), path)
    elif kind == 'truncated':
        path.write_bytes(path.read_bytes()[:900])
    elif kind == 'not an image':
        path.write_text('hello')
    elif kind == 'missing':
        path.unlink()
    elif kind in ('zero voxel size', 'negative voxel size'):
        plain = path.with_suffix('')
        nib.save(image, plain)
        content = bytearray(plain.read_bytes())
        struct.pack_into('<f', content, 88, 0.0 if kind.startswith('zero') else -5.0)  # pixdim[3]
        struct.pack_into('<h', content, 254, 0)  # no sform: the voxel sizes are all there is
        plain.write_bytes(content)
        return plain
    else:
        nib.save(nib.Nifti1Image(data.astype(dtype), affine), path)
    return path


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('4D', '4 dimensions'),
        ('NaN', 'NaN'),
        ('single slice', 'single slice'),
        ('two dimensions', '2 dimensions'),
        ('truncated', 'cannot be read'),
        ('not an image', 'cannot be read'),
        ('missing', 'does not exist'),
        ('constant', 'constant'),
        ('complex', 'RGB or complex'),
        ('RGB', 'RGB or complex'),
        ('zero voxel size', 'voxel size'),
        ('negative voxel size', 'voxel size'),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(case, capsys, kind, words):
    path = spoil(case / 'T2w.nii.gz', kind)
    out = case / 'new' / 'sr.nii.gz'
    assert run(path, '-o', out, '--zooms', '1') == 2
    message = error_line(capsys)
    assert message.startswith('gsrecon superres: error: ') and str(path) in message and words in message
    assert not out.parent.exists() or not any(out.parent.iterdir())


def test_grids_that_cannot_be(case, fake, capsys, monkeypatch):
    out = case / 'sr.nii.gz'
    assert run(case / 'T2w.nii.gz', '-o', out, '--zooms', 1, 1) == 2
    assert '--zooms' in error_line(capsys)
    for bad in ('0', '-1', 'nan'):
        with pytest.raises(SystemExit) as stop:
            run(case / 'T2w.nii.gz', '-o', out, '--zooms', bad)
        assert stop.value.code == 2 and 'not a positive number' in capsys.readouterr().err
    away = nib.load(case / 'T1w.nii.gz').affine.copy()
    away[0, 3] += 500
    save_volume(case / 'away.nii.gz', np.eye(4)[:3, :3, None].repeat(3, 2), away)
    assert run(case / 'T2w.nii.gz', '-o', out, '--like', case / 'away.nii.gz') == 2
    assert 'away.nii.gz does not overlap' in error_line(capsys)
    (case / 'Z.nii.gz').write_bytes((case / 'T1w.nii.gz').read_bytes())
    assert run(case / 'T2w.nii.gz', '-o', out, '--like', spoil(case / 'Z.nii.gz', 'zero voxel size')) == 2
    assert 'Z.nii has no usable grid (a zero or negative voxel size)' in error_line(capsys)
    monkeypatch.setattr(superres_files, 'available_memory_gb', lambda: 4.0)
    assert run(case / 'T2w.nii.gz', '-o', out, '--zooms', '0.01') == 2
    message = error_line(capsys)
    assert 'limit here is 4.0 GB' in message and 'T2w.nii.gz' in message
    assert not fake and not out.exists()


def test_no_input_is_overwritten(case, fake, capsys):
    assert run(case / 'T2w.nii.gz', '-o', case / 'T2w.nii.gz') == 2
    assert 'overwritten' in error_line(capsys)
    (case / 'mask.nii.gz').rename(case / 'sr_mask.nii.gz')
    arguments = ['-o', case / 'sr.nii.gz', '--mask', case / 'sr_mask.nii.gz']
    assert run(case / 'T2w.nii.gz', *arguments) == 2
    assert 'overwritten' in error_line(capsys)
    assert run(case / 'T2w.nii.gz', '-o', case / 'sr.txt') == 2
    assert '.nii' in error_line(capsys)
    assert not fake


def test_unwritable_output(case, fake, capsys):
    (case / 'file').write_text('')
    assert run(case / 'T2w.nii.gz', '-o', case / 'file' / 'sr.nii.gz') == 2
    assert 'cannot be written' in error_line(capsys)
    assert not fake


def test_a_full_disk_leaves_nothing(case, fake, capsys, monkeypatch):
    saved = []

    def full_disk(path, *args, **kwargs):
        if saved:
            raise OSError(28, 'No space left on device')
        saved.append(save_volume(path, *args, **kwargs))

    monkeypatch.setattr(superres_files, 'save_volume', full_disk)
    assert run(case / 'T2w.nii.gz', '-o', case / 'new' / 'sr.nii.gz') == 2
    assert 'No space left' in error_line(capsys)
    assert not any((case / 'new').iterdir())


def test_the_real_method_explains_its_input_and_its_field_is_sampled_again(case):
    out = case / 'sr.nii.gz'
    assert run(case / 'T2w.nii.gz', '-o', out, '--save-field', '--iterations', 8) == 0
    figures = json.loads((case / 'sr.json').read_text())['FiguresOfMerit']
    assert figures['residual_rms_percent'] < 3
    thick, residual = (nib.load(case / name).get_fdata() for name in ('T2w.nii.gz', 'sr_residual.nii.gz'))
    assert np.abs(residual).mean() < 0.02 * thick.max()
    image = nib.load(out).get_fdata()
    again = case / 'again.nii.gz'
    assert direct.main(['sample', str(case / 'sr_field.h5'), '--like', str(out), '-o', str(again)]) == 0
    inside = nib.load(case / 'sr_mask.nii.gz').get_fdata() > 0
    # The image is kept from going below what was acquired; the field itself is not.
    sampled = np.maximum(nib.load(again).get_fdata(), thick.min())
    np.testing.assert_allclose(sampled[inside], image[inside], atol=1e-3 * image.max())
