"""The nodes of ``--recon svr`` and their pictures."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.interfaces import svr_reportlets
from bids_gsrecon.interfaces.bids import FolderSink
from bids_gsrecon.interfaces.denoise import denoised_slices
from bids_gsrecon.interfaces.io import load_volume, save_volume
from bids_gsrecon.interfaces.svr import CorrectStacks, PrepareStacks, ReconstructStacks
from bids_gsrecon.interfaces.svr_outputs import SLICES_DICTIONARY, STACKS_DICTIONARY, read_table
from bids_gsrecon.interfaces.svr_reportlets import SvrReportlets
from tests.svr_cases import fake_svr, replace_svr, small_motion, write_stacks


@pytest.fixture
def case(tmp_path, monkeypatch):
    """Three stacks and masks; nodes run in a folder of their own."""
    write_stacks(tmp_path)
    work = tmp_path / 'work'
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Replaces the method: these tests are about the nodes."""
    return replace_svr(monkeypatch)


def prepare(case, numbers=(1, 2, 3), masks=(1, 2, 3), **inputs):
    metadata = [json.loads((case / f'stack-{n}.json').read_text()) for n in numbers]
    node = PrepareStacks(
        in_files=[str(case / f'stack-{n}.nii.gz') for n in numbers], metadata=metadata, **inputs
    )
    if masks:
        node.inputs.mask_files = [str(case / f'mask-{n}.nii.gz') for n in masks]
        node.inputs.mask_stacks = [numbers.index(n) for n in masks]
    return node.run().outputs


def reconstruct(prepared, **inputs):
    options = {'resolution_mm': 1.5, 'device': 'cpu', **inputs.pop('options', {})}
    return (
        ReconstructStacks(
            in_files=prepared.out_files,
            mask_files=prepared.out_masks,
            stacks_file=prepared.stacks_file,
            options=options,
            **inputs,
        )
        .run()
        .outputs
    )


def test_stacks_are_handed_to_the_method_as_their_files_say(case, fake):
    prepared = prepare(case)
    known = json.loads(Path(prepared.stacks_file).read_text())
    assert [record['Input'] for record in known['Stacks']] == prepared.sources
    assert known['MasksGiven'] and known['Warnings'] == []
    reconstruct(prepared, n_threads=1)
    options, stacks = fake[0]['options'], fake[0]['stacks']
    assert (options.resolution_mm, options.n_threads) == (1.5, 1)
    for number, stack in enumerate(stacks, 1):
        image = load_volume(case / f'stack-{number}.nii.gz')
        np.testing.assert_allclose(stack.data, np.maximum(image.data, 0), rtol=1e-6)
        np.testing.assert_allclose(stack.lattice.affine, image.affine, atol=1e-4)
        mask = np.asarray(nib.load(case / f'mask-{number}.nii.gz').dataobj) > 0
        np.testing.assert_array_equal(stack.mask, mask)
        times = json.loads((case / f'stack-{number}.json').read_text())['SliceTiming']
        assert stack.acquisition_rank().tolist() == times and stack.thickness_mm == 3.0


def test_a_void_stack_is_left_out_and_the_others_keep_their_numbers(case, fake):
    image = nib.load(case / 'stack-1.nii.gz')
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), case / 'stack-1.nii.gz')
    prepared = prepare(case, masks=(2, 3))
    assert [Path(path).name for path in prepared.sources] == ['stack-2.nii.gz', 'stack-3.nii.gz']
    done = reconstruct(prepared)
    metadata = json.loads(Path(done.metadata_file).read_text())
    assert metadata['StacksLeftOut'] == [str(case / 'stack-1.nii.gz')]
    assert 'shows nothing' in metadata['Warnings'][0]
    assert {row['stack'] for row in read_table(done.slices_table)} == {'2', '3'}
    assert {Path(path).name for path in done.simulated_files} == {
        'stack-2_simulated.nii.gz', 'stack-3_simulated.nii.gz',
    }  # fmt: skip


def test_values_that_are_not_finite_never_reach_the_method(case, fake):
    image = nib.load(case / 'stack-2.nii.gz')
    data = image.get_fdata(dtype=np.float32)
    mask = np.asarray(nib.load(case / 'mask-2.nii.gz').dataobj) > 0
    spot = tuple(np.argwhere(mask)[len(np.argwhere(mask)) // 2])
    data[spot] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), case / 'stack-2.nii.gz')
    reconstruct(prepare(case))
    stack = fake[0]['stacks'][1]
    assert np.isfinite(stack.data).all() and not stack.mask[spot]


def test_what_the_node_writes(case, fake):
    done = reconstruct(prepare(case))
    image, mask = nib.load(done.out_file), nib.load(done.out_mask)
    assert mask.get_data_dtype() == np.uint8 and image.shape == mask.shape
    for path in (done.out_uncertainty, done.out_coverage):
        np.testing.assert_allclose(nib.load(path).affine, image.affine)
    metadata = json.loads(Path(done.metadata_file).read_text())
    assert metadata['SkullStripped'] is True and metadata['ReferenceStack'] == 1
    assert metadata['SvrOptions']['resolution_mm'] == 1.5 and 'n_threads' not in metadata['SvrOptions']
    assert 'Seconds' not in json.dumps(metadata), 'two runs are the same'
    figures = metadata['FiguresOfMerit']
    assert figures['ncc_mean'] == 0.9 and figures['motion_max_mm'] == 0.5
    assert figures['uncertainty_percent'] == pytest.approx(10, abs=0.01)
    assert json.loads(Path(done.mask_metadata_file).read_text())['Type'] == 'Brain'
    rows = read_table(done.slices_table)
    assert list(rows[0]) == list(SLICES_DICTIONARY) and figures['slices'] == len(rows)
    assert list(read_table(done.stacks_table)[0]) == list(STACKS_DICTIONARY)
    names = [Path(path).name for path in done.pose_files]
    assert len(names) == len(rows) + 2 and {'poses.npy', 'poses.tsv'} < set(names)
    simulated = nib.load(done.simulated_files[1])
    np.testing.assert_allclose(simulated.affine, nib.load(case / 'stack-2.nii.gz').affine, atol=1e-5)


def test_masks_that_were_found_are_not_called_a_brain(case, fake):
    done = reconstruct(prepare(case, masks=()))
    assert json.loads(Path(done.mask_metadata_file).read_text())['Type'] == 'ROI'
    assert 'have no masks' in json.loads(Path(done.metadata_file).read_text())['Warnings'][0]


def test_too_little_memory_is_refused(case, fake):
    prepared = prepare(case)
    with pytest.raises(InputError, match='limit here is 0.6 GB'):
        reconstruct(prepared, options={'resolution_mm': 0.1}, memory_limit_gb=0.6)


def test_a_bias_field_is_reduced_and_the_names_stay(case, monkeypatch):
    """A stack under a strong bias field becomes more like the one without."""
    image = load_volume(case / 'stack-1.nii.gz')
    mask = np.asarray(nib.load(case / 'mask-1.nii.gz').dataobj) > 0
    ramp = np.linspace(0.5, 1.5, image.data.shape[0])[:, None, None]
    save_volume(case / 'stack-1.nii.gz', image.data * ramp, image.affine)
    prepared = prepare(case)
    (case / 'next').mkdir()
    monkeypatch.chdir(case / 'next')
    done = CorrectStacks(
        in_files=prepared.out_files,
        mask_files=prepared.out_masks,
        sources=prepared.sources,
        slice_axes=prepared.slice_axes,
    ).run()
    paths = done.outputs.out_files
    assert [Path(path).name for path in paths] == [Path(path).name for path in prepared.out_files]
    before, after = load_volume(prepared.out_files[0]), load_volume(paths[0])
    inside = mask & (image.data > 100)

    def spread(volume):
        ratio = volume.data[inside] / image.data[inside]
        return ratio.std() / ratio.mean()

    assert spread(after) < 0.95 * spread(before)


@pytest.mark.parametrize('axis', [0, 2])
def test_slices_are_denoised_one_by_one(axis):
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 40, 40), np.float32)
    truth[8:32, 8:32, 8:32] = 100
    cut = [slice(None)] * 3
    cut[axis] = slice(14, 18)
    noisy = truth[tuple(cut)] + 8 * rng.standard_normal(truth[tuple(cut)].shape).astype(np.float32)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[axis, axis] = 3
    done = denoised_slices(Volume.from_affine(np.maximum(noisy, 0), affine), axis).data
    inside = truth[tuple(cut)] > 0
    assert (done - 100)[inside].std() < 0.85 * (noisy - 100)[inside].std()
    assert (done >= 0).all() and np.isfinite(done).all()
    other = np.moveaxis(noisy, axis, 0).copy()
    other[1] = 0
    changed = denoised_slices(
        Volume.from_affine(np.maximum(np.moveaxis(other, 0, axis), 0), affine), axis
    ).data
    # What happens to one slice leaves the others as they are.
    np.testing.assert_allclose(np.take(changed, 3, axis), np.take(done, 3, axis), atol=1e-3)


def draw(prepared, done, **inputs):
    return SvrReportlets(
        result=done.out_file,
        mask=done.out_mask,
        uncertainty=done.out_uncertainty,
        coverage=done.out_coverage,
        stacks=prepared.out_files,
        stack_masks=prepared.out_masks,
        simulated=done.simulated_files,
        slices_table=done.slices_table,
        stacks_table=done.stacks_table,
        metadata_file=done.metadata_file,
        **inputs,
    ).run()


def test_pictures_and_tables(case, fake):
    prepared = prepare(case, masks=(1, 2))
    done = reconstruct(prepared)
    drawn = draw(prepared, done, parameters={'denoising': False}, summary={'method': 'svr'}).outputs
    assert drawn.parts == [
        'before', 'mean', 'after', 'outline', 'motion', 'slices', 'uncertainty', 'coverage', 'merit', 'summary',
    ]  # fmt: skip
    assert len({Image.open(path).size for path in (drawn.before, drawn.mean, drawn.after)}) == 1
    svg = Path(drawn.motion).read_text()
    assert drawn.motion.endswith('.svg') and 'stack-2.nii.gz' in svg and 'excluded' in svg
    merit = json.loads(Path(drawn.merit).read_text())
    n_slices = len(read_table(done.slices_table))
    assert merit['input_text'] == f'3 stacks, {n_slices} slices of 3 mm'
    assert 'stack-3.nii.gz has no mask' in merit['warnings'][0]
    stacks, excluded = merit['tables']
    assert [row[-1] for row in stacks['rows']] == ['given', 'given', 'carried over from the other stacks']
    assert [row[4] for row in stacks['rows']] == ['1'] * 3
    assert len(excluded['rows']) == merit['figures']['slices_excluded'] and excluded['rows'][0][2] == '0.90'
    kept = {part: Path(path).read_bytes() for part, path in zip(drawn.parts, drawn.out_files)}
    again = draw(prepared, done, parameters={'denoising': False}, summary={'method': 'svr'}).outputs
    assert {part: Path(path).read_bytes() for part, path in zip(again.parts, again.out_files)} == kept


def test_motion_is_that_in_the_world_of_the_scanner(case, fake):
    """Also after a template turned the volume, and with it all poses."""
    prepared = prepare(case)
    done = reconstruct(prepared)
    known = json.loads(Path(done.metadata_file).read_text())
    rows = read_table(done.slices_table)
    centre = np.array([3.0, -4.0, 5.0])
    plain = svr_reportlets.stack_motions(rows, known, np.eye(4), centre)
    pose = small_motion(1, int(next(row for row in rows if row['stack'] == '2')['slice']))
    expected = pose[:3, :3] @ centre + pose[:3, 3] - centre
    np.testing.assert_allclose(plain[1].translation_mm[0], expected, atol=1e-3)
    from bids_gsrecon.interfaces.svr_outputs import slices_table
    from bids_gsrecon.recon.svr.orientation import turned

    stacks = fake[0]['stacks']
    result = fake_svr(stacks, options=fake[0]['options'])
    turn = small_motion(3, 40)
    moved = turned(result, turn, result.lattice)
    files = [type('File', (), {'number': n, 'path': Path(f'stack-{n}.nii.gz')}) for n in (1, 2, 3)]
    table = case / 'turned.tsv'
    table.write_text(slices_table(files, moved))
    there = turn[:3, :3] @ centre + turn[:3, 3]
    turned_back = svr_reportlets.stack_motions(read_table(table), known, turn, there)
    for a, b in zip(plain, turned_back):
        np.testing.assert_allclose(a.translation_mm, b.translation_mm, atol=0.02)
        np.testing.assert_allclose(a.rotation_deg, b.rotation_deg, atol=0.02)


def test_a_template_turns_the_volume(case, fake):
    """The stacks lie in their scanner, the volume in the space of the template; the pictures agree."""
    from tests.phantoms import folded_head

    head, _ = folded_head()
    turn = small_motion(2, 10)
    template = save_volume(case / 'template.nii.gz', head.data, turn @ head.affine)
    prepared = prepare(case)
    done = reconstruct(prepared, template=str(template), gestational_age_weeks=31.0)
    metadata = json.loads(Path(done.metadata_file).read_text())
    found = np.array(metadata['ReconstructionToTemplate'])
    centre = head.lattice.centre_mm
    np.testing.assert_allclose(
        found[:3, :3] @ centre + found[:3, 3], turn[:3, :3] @ centre + turn[:3, 3], atol=2
    )
    assert metadata['GestationalAge'] == 31.0 and metadata['Template'] == str(template)
    drawn = draw(prepared, done).outputs
    before, after = (np.asarray(Image.open(p), dtype=float).ravel() for p in (drawn.before, drawn.after))
    assert np.corrcoef(before, after)[0, 1] > 0.7


def test_slices_that_fit_worst_are_shown_first():
    rows = [
        {'ncc': 'n/a' if k == 3 else f'{0.5 + k / 100:.2f}', 'slice': str(k)} for k in (9, 2, 3, 4, 1, 8, 7)
    ]
    assert [row['slice'] for row in svr_reportlets.shown_slices(rows)] == ['1', '2', '4', '7', '8', '9'][
        :4
    ] + ['8', '9']
    assert svr_reportlets.shown_slices([{'ncc': 'n/a'}]) == [{'ncc': 'n/a'}]


def test_a_folder_holds_what_the_last_run_wrote(tmp_path):
    def sink(*names):
        for name in names:
            (tmp_path / name).write_text(name)
        FolderSink(
            in_files=[str(tmp_path / name) for name in names],
            output_dir=str(tmp_path / 'out'),
            out_path='sub-01/svr/x',
        ).run(cwd=str(tmp_path))
        return sorted(path.name for path in (tmp_path / 'out' / 'sub-01' / 'svr' / 'x').iterdir())

    assert sink('a.tfm', 'b.tfm') == ['a.tfm', 'b.tfm']
    assert sink('b.tfm', 'c.tfm') == ['b.tfm', 'c.tfm']
