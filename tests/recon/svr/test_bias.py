"""Smooth fields of brightness of slices: found, taken out, and none where there is none."""

import numpy as np
import pytest
from scipy import ndimage

from bids_gsrecon.imaging.metrics import ncc
from bids_gsrecon.imaging.resample import resample
from bids_gsrecon.imaging.simulate_stacks import moving_stacks
from bids_gsrecon.recon.svr.bias import N_TERMS, SliceBias
from bids_gsrecon.recon.svr.method import svr
from bids_gsrecon.recon.svr.pixels import collect_pixels
from bids_gsrecon.recon.svr.types import SvrOptions
from tests.phantoms import folded_head


def stacks_of(**options):
    volume, mask = folded_head()
    simulated = moving_stacks(
        volume,
        mask,
        in_plane_mm=1.5,
        thickness_mm=3.0,
        rotation_deg=0.0,
        translation_mm=0.0,
        noise=0.0,
        **options,
    )
    return volume, mask, [s.stack for s in simulated]


@pytest.fixture(scope='module')
def pixels():
    pixels = collect_pixels(stacks_of()[2])
    return pixels.selected(pixels.in_mask)


def test_a_quadratic_is_found_and_taken_out(pixels):
    rng = np.random.default_rng(4)
    predicted = rng.uniform(0.4, 1.0, len(pixels.values)).astype(np.float32)
    gains = rng.uniform(0.8, 1.2, pixels.n_slices)
    none = SliceBias.none(pixels)
    true = SliceBias(rng.normal(0, 0.08, (pixels.n_slices, N_TERMS)), none.centre_mm, none.extent_mm)
    field = true.at(pixels)
    assert np.ptp(field) > 0.2
    values = gains[pixels.slice_of] * predicted * field + rng.normal(0, 0.01, len(field))
    acquired = type(pixels)(**{**vars(pixels), 'values': values.astype(np.float32)})
    found = none.fitted(acquired, predicted, gains, np.ones(len(field)))
    full = pixels.n_masked[pixels.slice_of] > 150  # slices of a few pixels cannot tell
    assert np.abs(found.at(pixels) - field)[full].max() < 0.05
    left = found.removed(acquired).residual(predicted, gains)
    assert np.std(left[full]) < 0.02 < 0.1 < np.std(acquired.residual(predicted, gains)[full]) * 3


def test_none_where_there_is_none(pixels):
    predicted = pixels.values + np.random.default_rng(1).normal(0, 0.02, len(pixels.values)).astype(
        np.float32
    )
    found = SliceBias.none(pixels).fitted(
        pixels, predicted, np.ones(pixels.n_slices), np.ones(len(predicted))
    )
    full = pixels.n_masked[pixels.slice_of] > 150
    assert np.abs(found.at(pixels) - 1)[full].max() < 0.05


def test_slices_with_bias_are_explained_and_make_a_better_volume():
    volume, mask, stacks = stacks_of(bias=0.6, seed=2)
    inside = ndimage.binary_erosion(mask, iterations=2)
    scores, misfits = [], []
    for slice_bias in (True, False):
        result = svr(stacks, options=SvrOptions(resolution_mm=1.5, slice_motion=False, slice_bias=slice_bias))
        matrix = result.lattice.world_to_voxel @ volume.lattice.affine
        scores.append(ncc(resample(result.image, matrix, volume.lattice.shape, 1), volume.data, inside))
        misfits.append(np.mean([np.abs(p - s.data)[s.mask].mean() for p, s in zip(result.predicted, stacks)]))
    assert scores[0] > scores[1]
    assert misfits[0] < 0.8 * misfits[1]
