import importlib.util
import os
import sys

import nibabel as nib
import numpy as np
import pytest

from bids_gsrecon.imaging import metrics
from bids_gsrecon.imaging.lattice import Volume
from tests.phantoms import head


@pytest.fixture
def pair():
    _, truth, mask, _ = head()
    rng = np.random.default_rng(1)
    noisy = Volume(truth.data + 20 * rng.standard_normal(truth.data.shape, dtype=np.float32), truth.lattice)
    return noisy, truth, mask


def test_psnr_of_a_known_error():
    truth = np.full((4, 4, 4), 10.0, np.float32)
    mask = np.ones(truth.shape, bool)
    assert metrics.psnr(truth + 1, truth, mask, peak=10.0) == pytest.approx(20.0)
    assert metrics.psnr(truth, truth, mask, peak=10.0) == float('inf')


def test_range_is_percentile_or_maximum():
    truth = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    mask = np.ones(truth.shape, bool)
    assert metrics.data_range(truth, mask, 'p99.5') == pytest.approx(995.0)
    assert metrics.data_range(truth, mask, 'max') == 1000.0


def test_ssim_of_the_box_equals_that_of_the_whole_grid(pair):
    from skimage.metrics import structural_similarity

    noisy, truth, mask = pair
    mask = mask.copy()
    mask[:12] = False
    whole = structural_similarity(
        truth.data,
        noisy.data,
        data_range=400.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1][mask].mean()
    assert metrics.ssim(noisy.data, truth.data, mask, peak=400.0) == pytest.approx(whole, abs=1e-6)


def test_equal_images_are_perfect(pair):
    _, truth, mask = pair
    row = metrics.evaluate(truth, truth, mask)
    assert row['psnr'] == float('inf')
    assert row['ssim'] == pytest.approx(1)
    assert row['ncc'] == pytest.approx(1)
    assert row['nrmse'] == 0


def test_intensities_are_never_fitted(pair):
    _, truth, mask = pair
    scaled = metrics.evaluate(Volume(truth.data * 1.1, truth.lattice), truth, mask)
    assert scaled['psnr'] < 30
    assert scaled['ncc'] == pytest.approx(1)


def test_prediction_is_resampled_by_its_header(pair):
    noisy, truth, mask = pair
    flipped = Volume.from_affine(
        noisy.data[::-1, :, ::-1],
        noisy.affine
        @ np.array(
            [
                [-1, 0, 0, noisy.data.shape[0] - 1],
                [0, 1, 0, 0],
                [0, 0, -1, noisy.data.shape[2] - 1],
                [0, 0, 0, 1],
            ]
        ),
    )
    straight, turned = (metrics.evaluate(v, truth, mask) for v in (noisy, flipped))
    for name in ('psnr', 'ssim', 'nrmse', 'ncc'):
        assert turned[name] == pytest.approx(straight[name], abs=1e-3)


def test_conventions_differ_and_say_their_name(pair):
    noisy, truth, mask = pair
    rows = {c: metrics.evaluate(noisy, truth, mask, convention=c) for c in metrics.CONVENTIONS}
    assert [rows[c]['convention'] for c in metrics.CONVENTIONS] == list(metrics.CONVENTIONS)
    assert len({round(r['psnr'], 2) for r in rows.values()}) == 3
    # volume: range 1 after mapping the truth to [0, 1], over every voxel
    t = (truth.data - truth.data.min()) / np.ptp(truth.data)
    x = (noisy.data - truth.data.min()) / np.ptp(truth.data)
    assert rows['volume']['psnr'] == pytest.approx(-10 * np.log10(np.mean((x - t) ** 2)), abs=1e-3)
    assert rows['volume']['data_range'] == 1.0


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'convention': 'best'}, 'convention'),
        ({'range_kind': 'p50'}, 'range'),
        ({'mask': np.zeros((40, 44, 36), bool)}, 'empty'),
        ({'mask': np.ones((3, 3, 3), bool)}, 'grid'),
    ],
)
def test_bad_arguments(pair, change, words):
    noisy, truth, _ = pair
    with pytest.raises(ValueError, match=words):
        metrics.evaluate(noisy, truth, **change)


def test_agrees_with_an_independent_script(pair, tmp_path):
    script = os.environ.get('GSRECON_TEST_MEASURE')
    if not script:
        pytest.skip('set GSRECON_TEST_MEASURE to a Python file with the same metrics by another hand')
    spec = importlib.util.spec_from_file_location('independent_measure', script)
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    noisy, truth, mask = pair
    coarse = Volume(
        noisy.data[:, :, ::2],
        noisy.lattice.__class__(noisy.data[:, :, ::2].shape, noisy.affine @ np.diag([1, 1, 2, 1])),
    )
    for prediction in (noisy, coarse):
        for kind in metrics.RANGES:
            ours = metrics.evaluate(prediction, truth, mask, range_kind=kind)
            theirs = module.score(
                nib.Nifti1Image(prediction.data, prediction.affine),
                nib.Nifti1Image(truth.data, truth.affine),
                mask,
                rng=kind,
            )
            for name in ('psnr', 'ssim', 'nrmse', 'ncc'):
                assert ours[name] == pytest.approx(theirs[name], abs=1e-3), name
