"""``gsrecon cine`` and ``gsrecon simulate cine`` end to end, and their answers to bad input."""

import json

import nibabel as nib
import numpy as np
import pytest

from bids_gsrecon.cli.direct import main
from bids_gsrecon.cli.direct_cine import CINE_LOSSES
from bids_gsrecon.cli.method_options import CINE_MODELS
from bids_gsrecon.fields.dynamic import load_cine
from bids_gsrecon.recon.cine.types import LOSSES, MODELS

SIMULATE = ['--matrix', '48', '37', '--frames', '6', '--coils', '5', '--phantom', 'soft']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cine')
    assert (
        main(['simulate', 'cine', str(folder / 'two.h5'), '--slices', '2', '--acceleration', '4', *SIMULATE])
        == 0
    )
    assert main(['simulate', 'cine', str(folder / 'full.h5'), '--acceleration', '1', *SIMULATE]) == 0
    return folder


def test_choices_are_those_of_the_method():
    assert set(CINE_MODELS) == set(MODELS) and set(CINE_LOSSES) == set(LOSSES)


def test_two_slices_with_everything(folder, capsys):
    truth = nib.load(folder / 'two_truth.nii.gz')
    roi = np.zeros(truth.shape[:3], np.uint8)
    roi[20:30, 15:20, 0], roi[20:30, 15:20, 1] = 1, 2
    nib.save(nib.Nifti1Image(roi, truth.affine), folder / 'roi.nii.gz')
    out = folder / 'out.nii.gz'
    code = main(
        ['cine', str(folder / 'two.h5'), '-o', str(out), '--save-motion', '--roi', str(folder / 'roi.nii.gz')]
    )
    assert code == 0
    assert 'gsrecon cine: ' in capsys.readouterr().out
    image, phase = nib.load(out), nib.load(folder / 'out_part-phase.nii.gz')
    assert image.shape == phase.shape == (48, 37, 2, 6) == truth.shape
    np.testing.assert_allclose(image.affine, truth.affine, atol=1e-4)
    assert image.header.get_zooms()[3] == pytest.approx(0.04) and image.header.get_xyzt_units() == (
        'mm',
        'sec',
    )
    x, t = image.get_fdata(), truth.get_fdata()
    assert 10 * np.log10(t.max() ** 2 / np.mean((x - t) ** 2)) > 26
    assert np.abs(phase.get_fdata()).max() <= np.pi + 1e-6
    sidecar = json.loads((folder / 'out.json').read_text())
    assert sidecar['Verdict'] in ('trust', 'check') and len(sidecar['Slices']) == 2
    assert nib.load(folder / 'out_motion.nii.gz').shape == (48, 37, 2, 12)
    assert nib.load(folder / 'out_determinant.nii.gz').shape == (48, 37, 2, 6)
    rows = (folder / 'out_roi.tsv').read_text().split('\n')
    assert rows[0].split('\t') == ['label', 'frame', 'time_ms', 'mean'] and len(rows) == 14
    assert (folder / 'out.gif').read_bytes()[:3] == b'GIF'
    fields, metadata = load_cine(folder / 'out_model.h5')
    np.testing.assert_allclose(np.abs(fields[1].render((48, 37)))[4], x[:, :, 1, 4], atol=1e-3 * x.max())
    assert metadata['frame_ms'] == 40.0
    # Without the options, their files of the earlier run are gone.
    assert main(['cine', str(folder / 'two.h5'), '-o', str(out), '--slice', '1', '--iterations', '5']) == 0
    assert not (folder / 'out_motion.nii.gz').exists() and not (folder / 'out_roi.tsv').exists()
    assert nib.load(out).shape == (48, 37, 1, 6)


def test_the_model_is_sampled_at_any_time_and_pixel_size(folder):
    out = folder / 'again.nii.gz'
    assert main(['cine', str(folder / 'two.h5'), '-o', str(out), '--iterations', '20']) == 0
    model, finer = str(folder / 'again_model.h5'), folder / 'finer.nii.gz'
    same = folder / 'same.nii.gz'
    assert main(['sample', model, '-o', str(same)]) == 0
    first, second = nib.load(out), nib.load(same)
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-5)
    np.testing.assert_allclose(second.get_fdata(), first.get_fdata(), atol=1e-3 * first.get_fdata().max())
    assert main(['sample', model, '-o', str(finer), '--frames', '12', '--resolution', '3.75']) == 0
    third = nib.load(finer)
    assert third.shape == (96, 74, 2, 12) and third.header.get_zooms()[3] == pytest.approx(0.02)
    # Cells of half the size over the same field of view: their mean is the coarse pixel, but for the curvature.
    halves = third.get_fdata()[:, :, :, ::2].reshape(48, 2, 37, 2, 2, 6).mean((1, 3))
    assert np.corrcoef(halves.ravel(), first.get_fdata().ravel())[0, 1] > 0.99
    assert main(['sample', model, '-o', str(finer), '--like', str(out)]) == 2


def test_retrospective_undersampling(folder):
    out = folder / 'retro.nii.gz'
    assert main(['cine', str(folder / 'full.h5'), '-o', str(out), '--retro-R', '3', '6']) == 0
    lines = [line.split('\t') for line in (folder / 'retro_retro.tsv').read_text().strip().split('\n')]
    assert lines[0][:4] == ['slice', 'R', 'ssim', 'psnr'] and [row[1] for row in lines[1:]] == ['3', '6']
    assert float(lines[1][3]) > float(lines[2][3]) > 22


def test_a_series_of_images_is_acquired(folder):
    series = np.abs(np.random.default_rng(0).normal(size=(32, 32, 1, 3))) + 1
    nib.save(nib.Nifti1Image(series, np.eye(4)), folder / 'series.nii.gz')
    out = folder / 'acquired.h5'
    assert (
        main(['simulate', 'cine', str(out), '--series', str(folder / 'series.nii.gz'), '--acceleration', '2'])
        == 0
    )
    truth = nib.load(folder / 'acquired_truth.nii.gz').get_fdata()
    np.testing.assert_allclose(truth, series / series[0, 0, 0, 0] * truth[0, 0, 0, 0], rtol=0.35)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['cine', '{f}/none.h5', '-o', '{f}/o.nii.gz'], 'does not exist'),
        (['cine', '{f}/two_truth.nii.gz', '-o', '{f}/o.nii.gz'], 'cannot be read as ISMRMRD'),
        (['cine', '{f}/two.h5', '-o', '{f}/o.png'], 'does not end in .nii'),
        (['cine', '{f}/two.h5', '-o', '{f}/o.nii.gz', '--slice', '5'], 'has no slice 5'),
        (['cine', '{f}/two.h5', '-o', '{f}/o.nii.gz', '--set', '1'], 'has no set 1'),
        (['cine', '{f}/two.h5', '-o', '{f}/o.nii.gz', '--retro-R', '8'], 'needs full data'),
        (['cine', '{f}/full.h5', '-o', '{f}/o.nii.gz', '--roi', '{f}/roi.nii.gz'], 'not on the grid'),
        (['simulate', 'cine', '{f}/x.dat'], 'does not end in .h5'),
        (['simulate', 'cine', '{f}/x.h5', '--coils', '1'], 'two coils'),
        (['simulate', 'cine', '{f}/x.h5', '--series', '{f}/none.nii.gz'], 'cannot be read'),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(folder, capsys, arguments, message):
    before = sorted(p.name for p in folder.iterdir())
    assert main([a.format(f=folder) for a in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and '\n' not in error and str(folder) in error
    assert sorted(p.name for p in folder.iterdir()) == before
