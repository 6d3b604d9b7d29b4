"""``gsrecon svr``: its files, and what it says about bad input."""

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from bids_gsrecon.cli import direct, method_options, svr_files
from bids_gsrecon.imaging.stacks import SLICE_ORDERS
from bids_gsrecon.interfaces.io import save_volume
from bids_gsrecon.interfaces.registration import load_itk_transform
from tests.svr_cases import replace_svr, small_motion, write_stacks

ALL = [
    'out.json',
    'out.nii.gz',
    'out_coverage.nii.gz',
    'out_mask.nii.gz',
    'out_slices.tsv',
    'out_stacks.tsv',
    'out_uncertainty.nii.gz',
]


@pytest.fixture
def case(tmp_path):
    write_stacks(tmp_path)
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Replaces the method: these tests are about the command line."""
    return replace_svr(monkeypatch)


def run(*args):
    return direct.main(['svr', *[str(a) for a in args]])


def arguments(case, output='new/out.nii.gz', numbers=(1, 2, 3), masks=True):
    stacks = [case / f'stack-{n}.nii.gz' for n in numbers]
    given = ['--masks', *[case / f'mask-{n}.nii.gz' for n in numbers]] if masks else []
    return [*stacks, *given, '-o', case / output, '--resolution', 1.5]


def notes(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line]


def error_line(capsys):
    """The one line on standard error."""
    lines = notes(capsys)
    assert len(lines) == 1, lines
    assert lines[0].startswith('gsrecon svr: error: ')
    return lines[0]


def table(path):
    header, *rows = [line.split('\t') for line in path.read_text().splitlines()]
    return [dict(zip(header, row)) for row in rows]


def edit(path, change=None, affine=None, dtype=np.float32):
    """Rewrite an image with changed values or header."""
    image = nib.load(path)
    data = np.asarray(image.dataobj).astype(np.float32)
    data = data if change is None else change(data)
    nib.save(nib.Nifti1Image(data.astype(dtype), image.affine if affine is None else affine), path)


def test_it_writes_all_its_files(case, fake, capsys):
    assert run(*arguments(case)) == 0
    out = case / 'new'
    assert sorted(p.name for p in out.iterdir()) == ALL
    captured = capsys.readouterr()
    assert captured.out.startswith('gsrecon svr: ok, 3 stacks, ') and 'voxels of 1.5 mm' in captured.out
    assert captured.err == ''
    image, mask = nib.load(out / 'out.nii.gz'), nib.load(out / 'out_mask.nii.gz')
    np.testing.assert_allclose(image.header.get_zooms(), 1.5)
    assert mask.get_data_dtype() == np.uint8 and image.shape == mask.shape
    sidecar = json.loads((out / 'out.json').read_text())
    assert [item['SliceThickness'] for item in sidecar['Stacks']] == [3, 3, 3]
    assert [item['SliceThicknessSource'] for item in sidecar['Stacks']] == ['SliceThickness'] * 3
    assert [item['SliceOrder'] for item in sidecar['Stacks']] == ['SliceTiming'] * 3
    assert sidecar['Warnings'] == [] and sidecar['Options']['resolution_mm'] == 1.5
    slices, stacks = table(out / 'out_slices.tsv'), table(out / 'out_stacks.tsv')
    assert len(slices) == sum(int(row['slices_in_mask']) for row in stacks)
    assert [row['file'] for row in stacks] == ['stack-1.nii.gz', 'stack-2.nii.gz', 'stack-3.nii.gz']
    assert 'n/a' in {row['ncc'] for row in slices}
    assert sum(int(row['excluded']) for row in slices) == sum(int(row['slices_excluded']) for row in stacks)
    row = slices[5]
    vector = [float(row[f'rot_{a}_deg']) for a in 'xyz']
    expected = small_motion(int(row['stack']) - 1, int(row['slice']))
    np.testing.assert_allclose(Rotation.from_rotvec(vector, degrees=True).as_matrix(), expected[:3, :3], atol=1e-4)  # fmt: skip
    np.testing.assert_allclose([float(row[f'trans_{a}_mm']) for a in 'xyz'], expected[:3, 3], atol=1e-4)


@pytest.mark.parametrize('name', ['bare', 'folder/bare'])
def test_a_name_without_ending_becomes_an_image(case, fake, name):
    assert run(*arguments(case, name)) == 0
    assert (case / f'{name}.nii.gz').is_file() and (case / f'{name}_slices.tsv').is_file()


def test_options_reach_the_method(case, fake, monkeypatch):
    monkeypatch.setattr(direct, '_limit_threads', lambda threads: None)  # it would last
    more = ['--no-slice-motion', '--no-robust', '--threads', 1, '--reference', case / 'stack-2.nii.gz']
    more += ['--thickness', 2, 2.5, 3, '--slice-order', 'descending']
    assert run(*arguments(case), *more) == 0
    options, stacks = fake[0]['options'], fake[0]['stacks']
    assert (options.slice_motion, options.robust, options.n_threads, options.reference) == (
        False,
        False,
        1,
        1,
    )
    assert [stack.thickness_mm for stack in stacks] == [2, 2.5, 3]
    n = stacks[0].data.shape[2]
    assert stacks[0].acquisition_rank().tolist() == list(range(n))[::-1]
    assert run(*arguments(case), '--reference', 3, '--thickness', 2.5) == 0
    assert fake[1]['options'].reference == 2
    assert [stack.thickness_mm for stack in fake[1]['stacks']] == [2.5] * 3


def test_names_of_slice_orders_are_those_of_the_stacks():
    assert tuple(SLICE_ORDERS) == method_options.SLICE_ORDERS


def test_poses_and_simulated_slices(case, fake):
    folder = case / 'poses'
    assert run(*arguments(case), '--poses', folder) == 0
    rows, matrices = table(folder / 'poses.tsv'), np.load(folder / 'poses.npy')
    assert matrices.shape == (len(rows), 4, 4)
    for row, matrix in zip(rows, matrices):
        expected = small_motion(int(row['stack']) - 1, int(row['slice']))
        np.testing.assert_allclose(matrix, expected)
        np.testing.assert_allclose(load_itk_transform(folder / row['transform']), expected, atol=1e-9)
        np.testing.assert_allclose([float(row[f'm0{j}']) for j in range(4)], expected[0], rtol=1e-7)
    assert len(list(folder.glob('*.tfm'))) == len(rows)
    order = [(int(row['stack']), int(row['slice'])) for row in rows]
    assert order == sorted(order)
    for number in (1, 2, 3):
        stack, simulated = nib.load(case / f'stack-{number}.nii.gz'), nib.load(folder / f'stack-{number}_simulated.nii.gz')  # fmt: skip
        mask = np.asarray(nib.load(case / f'mask-{number}.nii.gz').dataobj) > 0
        np.testing.assert_allclose(simulated.affine, stack.affine)
        np.testing.assert_allclose(simulated.get_fdata(), np.where(mask, stack.get_fdata(), 0), rtol=1e-6)


def test_simulated_slices_lie_on_the_stored_grid(case, fake):
    """A file that stores its slices along the first axis gets its simulated slices so, under its own header."""
    for kind in ('stack', 'mask'):
        path = case / f'{kind}-2.nii.gz'
        image = nib.load(path)
        order = [2, 0, 1]
        affine = image.affine.copy()
        affine[:, :3] = affine[:, order]
        turned = nib.Nifti1Image(np.asarray(image.dataobj).transpose(order), affine)
        turned.header['descrip'] = b'kept'
        nib.save(turned, path)
    assert run(*arguments(case), '--poses', case / 'poses') == 0
    assert fake[0]['stacks'][1].lattice.voxel_sizes_mm[2] == pytest.approx(3)
    stack, simulated = (
        nib.load(case / 'stack-2.nii.gz'),
        nib.load(case / 'poses' / 'stack-2_simulated.nii.gz'),
    )
    assert simulated.shape == stack.shape and simulated.header['descrip'].item() == b'kept'
    mask = np.asarray(nib.load(case / 'mask-2.nii.gz').dataobj) > 0
    np.testing.assert_allclose(simulated.get_fdata(), np.where(mask, stack.get_fdata(), 0), rtol=1e-6)


def test_transforms_as_ants_reads_them(case, fake):
    """The file maps a point of the volume to the slice as stored, in LPS mm: the resampling direction."""
    ants = pytest.importorskip('ants')
    assert run(*arguments(case), '--poses', case / 'poses') == 0
    row = table(case / 'poses' / 'poses.tsv')[7]
    transform = ants.read_transform(str(case / 'poses' / row['transform']))
    assert transform.transform_type == 'Euler3DTransform'
    pose = small_motion(int(row['stack']) - 1, int(row['slice']))
    stored = np.array([3.0, -7.0, 11.0, 1.0])
    placed = pose @ stored
    lps = np.array([-1, -1, 1])
    np.testing.assert_allclose(
        lps * ants.apply_ants_transform_to_point(transform, lps * placed[:3]), stored[:3], atol=1e-5
    )


def test_left_and_right_do_not_depend_on_how_a_file_is_stored(case, fake):
    """A mirrored storage (negative determinant) shows the same world."""
    assert run(*arguments(case, 'a.nii.gz')) == 0
    for kind in ('stack', 'mask'):
        path = case / f'{kind}-1.nii.gz'
        image = nib.load(path)
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = image.shape[0] - 1
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine @ flip), path)
    assert np.linalg.det(nib.load(case / 'stack-1.nii.gz').affine) * np.linalg.det(image.affine) < 0
    assert run(*arguments(case, 'b.nii.gz')) == 0
    a, b = nib.load(case / 'a.nii.gz'), nib.load(case / 'b.nii.gz')
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)
    np.testing.assert_allclose(a.get_fdata(), b.get_fdata(), atol=1e-2)


def test_a_field_is_sampled_as_gsrecon_sample_does(case, fake, capsys):
    assert run(*arguments(case), '--save-field') == 0
    field, grid = case / 'new' / 'out_field.h5', case / 'stack-1.nii.gz'
    assert run('--sample', field, '--like', grid, '-o', case / 'a.nii.gz') == 0
    assert direct.main(['sample', str(field), '--like', str(grid), '-o', str(case / 'b.nii.gz')]) == 0
    a, b = nib.load(case / 'a.nii.gz'), nib.load(case / 'b.nii.gz')
    assert a.shape == nib.load(grid).shape and np.array_equal(a.get_fdata(), b.get_fdata())
    assert run('--sample', field, '--resolution', 2, '-o', case / 'c.nii.gz') == 0
    np.testing.assert_allclose(nib.load(case / 'c.nii.gz').header.get_zooms(), 2)
    capsys.readouterr()
    for wrong in ([], ['--like', grid, '--resolution', 2]):
        assert run('--sample', field, *wrong, '-o', case / 'd.nii.gz') == 2
        assert 'out_field.h5' in error_line(capsys)
    assert run(grid, '--sample', field, '--like', grid, '-o', case / 'd.nii.gz') == 2
    assert 'takes no stacks' in error_line(capsys)
    assert not (case / 'd.nii.gz').exists()


def spoil(case, kind):
    """Damage the case; the file that the message has to name."""
    path = case / 'stack-2.nii.gz'
    if kind == '4D':
        edit(path, lambda data: np.stack([data, data], -1))
    elif kind == 'all NaN':
        edit(path, lambda data: np.full_like(data, np.nan))
    elif kind == 'complex':
        edit(path, dtype=np.complex64)
    elif kind == 'RGB':
        colours = np.zeros(nib.load(path).shape, [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
        nib.save(nib.Nifti1Image(colours, nib.load(path).affine), path)
    elif kind == 'single slice':
        edit(path, lambda data: data[:, :, :1])
    elif kind == 'truncated':
        path.write_bytes(path.read_bytes()[:900])
    elif kind == 'not an image':
        path.write_text('hello')
    elif kind == 'missing':
        path.unlink()
    elif kind == 'zero voxel size':
        image = nib.load(path)
        image.header['pixdim'][3] = 0
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        image.header['pixdim'][3] = 0
        image.to_filename(path)
    elif kind == 'elsewhere':
        affine = nib.load(path).affine.copy()
        affine[:3, 3] += 300
        for name in ('stack', 'mask'):
            edit(case / f'{name}-2.nii.gz', affine=affine)
    elif kind == 'empty mask':
        path = case / 'mask-2.nii.gz'
        edit(path, np.zeros_like)
    return path


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('4D', '4 dimensions'),
        ('all NaN', 'NaN'),
        ('complex', 'RGB or complex'),
        ('RGB', 'RGB or complex'),
        ('single slice', 'single slice'),
        ('truncated', 'cannot be read'),
        ('not an image', 'cannot be read'),
        ('missing', 'does not exist'),
        ('zero voxel size', 'voxel size'),
        ('elsewhere', 'do not overlap'),
        ('empty mask', 'empty mask'),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(case, fake, capsys, kind, words):
    path = spoil(case, kind)
    assert run(*arguments(case), '--poses', case / 'poses') == 2
    message = error_line(capsys)
    assert str(path) in message and words in message
    assert not (case / 'new').exists() and not (case / 'poses').exists()
    assert not fake


def test_bad_arguments(case, fake, capsys, monkeypatch):
    stacks = [case / f'stack-{n}.nii.gz' for n in (1, 2, 3)]
    assert run(stacks[0], '-o', case / 'new' / 'out.nii.gz') == 2
    message = error_line(capsys)
    assert 'stack-1.nii.gz' in message and 'gsrecon superres' in message
    assert run('-o', case / 'new' / 'out.nii.gz') == 2
    assert 'stacks' in error_line(capsys)
    assert run(*arguments(case, numbers=(1, 2, 1))) == 2
    assert 'stack-1.nii.gz is given twice' in error_line(capsys)
    assert run(*stacks, '--masks', case / 'mask-1.nii.gz', '-o', case / 'new' / 'out.nii.gz') == 2
    message = error_line(capsys)
    assert '1 mask' in message and 'none' in message
    assert run(*arguments(case), '--thickness', 1, 2) == 2
    assert '--thickness has 2 values for 3 stacks' in error_line(capsys)
    assert run(*arguments(case), '--thickness', 30) == 2
    assert 'stack-1.nii.gz has slices every 3 mm' in error_line(capsys)
    assert run(*arguments(case), '--reference', 7) == 2
    assert '--reference' in error_line(capsys)
    assert run(*arguments(case), '--like', stacks[0]) == 2
    assert '--like' in error_line(capsys)
    assert run(*arguments(case, 'stack-1.nii.gz')) == 2
    assert 'overwritten' in error_line(capsys)
    assert run(*arguments(case, 'out.txt')) == 2
    assert '.nii' in error_line(capsys)
    monkeypatch.setattr(svr_files, 'available_memory_gb', lambda: 0.6)
    assert run(*arguments(case), '--resolution', 0.1) == 2
    assert 'limit here is 0.6 GB' in error_line(capsys)
    assert not (case / 'new').exists() and not fake


def test_void_stacks_are_left_out_while_two_remain(case, fake, capsys):
    edit(case / 'stack-1.nii.gz', np.zeros_like)
    assert run(*arguments(case), '--reference', 3) == 0
    (note,) = notes(capsys)
    assert 'stack-1.nii.gz shows nothing' in note and 'left out' in note
    assert len(fake[0]['stacks']) == 2 and fake[0]['options'].reference == 1
    sidecar = json.loads((case / 'new' / 'out.json').read_text())
    assert [item['Number'] for item in sidecar['Stacks']] == [2, 3]
    assert sidecar['StacksLeftOut'] == [str(case / 'stack-1.nii.gz')] and len(sidecar['Warnings']) == 1
    assert {row['stack'] for row in table(case / 'new' / 'out_slices.tsv')} == {'2', '3'}
    edit(case / 'stack-2.nii.gz', lambda data: np.full_like(data, 7))
    assert run(*arguments(case, 'again.nii.gz')) == 2
    message = error_line(capsys)
    assert 'stack-1.nii.gz' in message and 'stack-2.nii.gz' in message
    assert not (case / 'again.nii.gz').exists()


def test_parallel_stacks_are_told(tmp_path, fake, capsys):
    write_stacks(tmp_path, orientations=['axial'], n_stacks=1)
    for kind in ('stack', 'mask'):
        (tmp_path / f'{kind}-2.nii.gz').write_bytes((tmp_path / f'{kind}-1.nii.gz').read_bytes())
    assert run(*arguments(tmp_path, numbers=(1, 2))) == 0
    (note,) = notes(capsys)
    assert 'stack-1.nii.gz' in note and 'stack-2.nii.gz' in note and 'same direction' in note


@pytest.mark.parametrize('names', [('1', 'none', '3'), ('-', '2', '-')])
def test_masks_are_carried_over_to_stacks_that_lack_one(case, fake, capsys, names):
    given = [n if n in ('none', '-') else case / f'mask-{n}.nii.gz' for n in names]
    stacks = [case / f'stack-{n}.nii.gz' for n in (1, 2, 3)]
    assert run(*stacks, '--masks', *given, '-o', case / 'new' / 'out.nii.gz') == 0
    lines = notes(capsys)
    lacking = [n for n, name in enumerate(names) if name in ('none', '-')]
    assert len(lines) == len(lacking) and all(
        f'stack-{n + 1}.nii.gz' in line for n, line in zip(lacking, lines)
    )
    sidecar = json.loads((case / 'new' / 'out.json').read_text())
    for n, item in enumerate(sidecar['Stacks']):
        truth = np.asarray(nib.load(case / f'mask-{n + 1}.nii.gz').dataobj) > 0
        mask = fake[0]['stacks'][n].mask
        if n in lacking:
            assert 'carried over' in item['Mask']
            assert (mask & truth).sum() > 0.95 * truth.sum() and mask.sum() < 2 * truth.sum()
        else:
            assert item['Mask'] == str(given[n]) and np.array_equal(mask, truth)


def test_without_masks_what_all_show_is_taken(case, fake, capsys):
    assert run(*arguments(case, masks=False)) == 0
    (note,) = notes(capsys)
    assert 'stack-1.nii.gz, stack-2.nii.gz, stack-3.nii.gz have no masks' in note
    for n, stack in enumerate(fake[0]['stacks'], 1):
        truth = np.asarray(nib.load(case / f'mask-{n}.nii.gz').dataobj) > 0
        assert (stack.mask & truth).sum() > 0.9 * truth.sum()


def test_masks_of_another_grid(case, fake, capsys):
    """A header that is off by little, and a mask drawn on another grid: used, and said."""
    image = nib.load(case / 'mask-1.nii.gz')
    truth = np.asarray(image.dataobj) > 0
    affine = image.affine.copy()
    affine[0, 3] += 0.3
    edit(case / 'mask-1.nii.gz', affine=affine, dtype=np.uint8)
    edit(case / 'mask-2.nii.gz', lambda data: np.pad(data, 2)[1:, 2:], dtype=np.uint8)
    assert run(*arguments(case)) == 0
    first, second = notes(capsys)
    assert 'mask-1.nii.gz' in first and 'stack-1.nii.gz' in first and 'voxel by voxel' in first
    assert 'mask-2.nii.gz' in second and 'resampled' in second
    assert np.array_equal(fake[0]['stacks'][0].mask, truth)
    affine[0, 3] += 400
    edit(case / 'mask-1.nii.gz', affine=affine, dtype=np.uint8)
    assert run(*arguments(case, 'again.nii.gz')) == 2
    message = error_line(capsys)
    assert (
        'mask-1.nii.gz' in message and 'copy the header' in message and not (case / 'again.nii.gz').exists()
    )


def named_as_bids(case, suffixes):
    """The stacks under BIDS names; the arguments."""
    stacks = [case / f'sub-01_run-{n}_{suffix}.nii.gz' for n, suffix in enumerate(suffixes, 1)]
    for n, path in enumerate(stacks, 1):
        (case / f'stack-{n}.nii.gz').rename(path)
    masks = [case / f'mask-{n}.nii.gz' for n in (1, 2, 3)]
    return [*stacks, '--masks', *masks, '-o', case / 'new' / 'out.nii.gz']


def inverted(case):
    """Stack 2 turned into its negative inside the mask."""
    mask = np.asarray(nib.load(case / 'mask-2.nii.gz').dataobj) > 0
    edit(case / 'stack-2.nii.gz', lambda data: np.where(mask, data.max() - data, 0))


def test_a_stack_of_another_contrast_is_named(case, fake, capsys):
    inverted(case)
    assert run(*named_as_bids(case, ['T2w', 'T2w', 'T2w'])) == 0
    (note,) = notes(capsys)
    assert 'sub-01_run-2_T2w.nii.gz looks unlike the other stacks' in note


def test_a_stack_of_another_contrast_and_name_is_refused(case, fake, capsys):
    inverted(case)
    assert run(*named_as_bids(case, ['T2w', 'T1w', 'T2w'])) == 2
    message = error_line(capsys)
    assert 'sub-01_run-2_T1w.nii.gz shows another contrast' in message and 'T2w' in message
    assert not (case / 'new').exists() and not fake


def test_a_stack_of_another_name_that_looks_alike_is_told(case, fake, capsys):
    assert run(*named_as_bids(case, ['T2w', 'T1w', 'T2w'])) == 0
    (note,) = notes(capsys)
    assert 'sub-01_run-2_T1w.nii.gz has another suffix (T1w)' in note


def test_a_mask_over_nothing_is_refused(case, fake, capsys):
    mask = np.asarray(nib.load(case / 'mask-2.nii.gz').dataobj) > 0
    edit(case / 'stack-2.nii.gz', lambda data: np.where(mask, 0, 5))
    assert run(*arguments(case)) == 2
    message = error_line(capsys)
    assert 'stack-2.nii.gz shows nothing inside its mask' in message


def test_values_that_cannot_be_are_taken_for_nothing(case, fake, capsys):
    def holes(data):
        data[:4] = np.nan
        data[4:6] = -5
        return data

    edit(case / 'stack-1.nii.gz', holes)
    assert run(*arguments(case)) == 0
    first, second = notes(capsys)
    assert 'stack-1.nii.gz' in first and 'not finite' in first and 'negative' in second
    stack = fake[0]['stacks'][0]
    assert np.isfinite(stack.data).all() and stack.data.min() == 0
    assert not stack.mask[:4].any(), 'what is not known is not the anatomy'


@pytest.mark.parametrize(
    ('sidecar', 'thickness', 'said'),
    [
        ({'SliceThickness': 2.4}, 2.4, 'with gaps'),
        ({'SliceThickness': 4}, 4, 'overlap'),
        ({'SliceThickness': 0.1}, 3, 'does not fit'),
        ({'SpacingBetweenSlices': 5}, 3, 'SpacingBetweenSlices is 5 mm'),
        ({'SliceTiming': [1, 2]}, 3, 'SliceTiming'),
        ({}, 3, None),
    ],
)
def test_what_the_sidecar_says_of_the_slices(case, fake, capsys, sidecar, thickness, said):
    (case / 'stack-1.json').write_text(json.dumps(sidecar))
    assert run(*arguments(case)) == 0
    assert fake[0]['stacks'][0].thickness_mm == pytest.approx(thickness)
    lines = notes(capsys)
    assert len(lines) == (said is not None)
    if said:
        assert said in lines[0] and 'stack-1.nii.gz' in lines[0]


def test_an_earlier_reconstruction_is_not_mixed_with_ours(case, fake, capsys):
    folder = case / 'poses'
    assert run(*arguments(case), '--poses', folder, '--save-field') == 0
    (folder / 'stack-9_slice-000.tfm').write_text('')
    (folder / 'notes.txt').write_text('')
    assert run(*arguments(case, numbers=(1, 2)), '--poses', folder) == 0
    assert not (case / 'new' / 'out_field.h5').exists()
    assert (folder / 'notes.txt').exists() and not list(folder.glob('stack-[39]_*'))
    (case / 'stack-3.nii.gz').rename(folder / 'stack-3_simulated.nii.gz')
    stacks = [case / 'stack-1.nii.gz', folder / 'stack-3_simulated.nii.gz']
    capsys.readouterr()
    assert run(*stacks, '-o', case / 'b.nii.gz', '--poses', folder) == 2
    assert 'stack-3_simulated.nii.gz is an input' in notes(capsys)[-1]
    assert (folder / 'stack-3_simulated.nii.gz').exists() and not (case / 'b.nii.gz').exists()


def test_a_full_disk_leaves_nothing(case, fake, capsys, monkeypatch):
    saved = []

    def full_disk(path, *args, **kwargs):
        if len(saved) == 2:
            raise OSError(28, 'No space left on device')
        saved.append(save_volume(path, *args, **kwargs))

    monkeypatch.setattr(svr_files, 'save_volume', full_disk)
    assert run(*arguments(case), '--poses', case / 'poses') == 2
    assert 'No space left' in error_line(capsys)
    assert not any((case / 'new').iterdir()) and not any((case / 'poses').iterdir())


def with_template(case):
    """A folder of templates; that of 32 weeks is the head turned by 90 degrees about two axes."""
    from tests.phantoms import folded_head

    volume, _ = folded_head()
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler('zx', [90, 90], degrees=True).as_matrix()
    folder = case / 'atlas'
    save_volume(folder / 'STA32.nii.gz', volume.data, motion @ volume.affine)
    save_volume(folder / 'STA30.nii.gz', volume.data[::-1], volume.affine)
    return folder, motion


def test_the_volume_is_turned_to_the_template_of_its_age(case, fake):
    folder, motion = with_template(case)
    more = ['--template', folder, '--gestational-age', 31.8]
    assert run(*arguments(case), *more, '--poses', case / 'poses') == 0
    sidecar = json.loads((case / 'new' / 'out.json').read_text())
    assert sidecar['Template'].endswith('STA32.nii.gz') and sidecar['GestationalAge'] == 31.8
    found = np.array(sidecar['ReconstructionToTemplate'])
    np.testing.assert_allclose(found[:3, :3], motion[:3, :3], atol=0.06)
    poses = np.load(case / 'poses' / 'poses.npy')
    np.testing.assert_allclose(poses[0], found @ small_motion(0, int(table(case / 'poses' / 'poses.tsv')[0]['slice'])), atol=1e-6)  # fmt: skip
    image, template = nib.load(case / 'new' / 'out.nii.gz'), nib.load(folder / 'STA32.nii.gz')
    both = resample_from_to(template, image, order=1).get_fdata()
    mask = nib.load(case / 'new' / 'out_mask.nii.gz').get_fdata() > 0
    assert np.corrcoef(both[mask], image.get_fdata()[mask])[0, 1] > 0.8


def test_templates_that_cannot_be(case, fake, capsys):
    folder, _ = with_template(case)
    assert run(*arguments(case), '--template', folder) == 2
    assert 'atlas is a folder of templates' in error_line(capsys)
    assert run(*arguments(case), '--template', folder, '--gestational-age', 20) == 2
    assert 'STA30.nii.gz, is of 30 weeks' in error_line(capsys)
    assert run(*arguments(case), '--gestational-age', 20) == 2
    assert '--template' in error_line(capsys)
    assert run(*arguments(case), '--template', case / 'none.nii.gz') == 2
    assert 'none.nii.gz does not exist' in error_line(capsys)
    assert not fake and not (case / 'new').exists()
