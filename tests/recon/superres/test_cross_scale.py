"""Learning across scales."""

import numpy as np
import pytest
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.metrics import resample_to
from bids_gsrecon.imaging.render import render
from bids_gsrecon.imaging.sampling import make_sampling
from bids_gsrecon.imaging.simulate import coarse_voxels
from bids_gsrecon.recon.superres.cross_scale import add_learned_detail, coarser_lattice
from bids_gsrecon.recon.superres.grids import voxel_profiles
from bids_gsrecon.recon.superres.patches import PatchShape, gather_cells, mirrored_problems
from bids_gsrecon.recon.superres.physics import fit_physics
from tests.phantoms import folded_head

AFFINE = np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, 4], [0, 0, -2.0, 5], [0, 0, 0, 1]])


@pytest.mark.parametrize('factors', [(2, 2, 2), (1, 2, 3), (4, 1, 1)])
def test_coarser_is_the_inverse_of_finer(factors):
    lattice = Lattice((4, 5, 6), AFFINE)
    assert coarser_lattice(lattice.refined(factors), factors).same_as(lattice, 1e-9)


def test_coarser_keeps_whole_blocks_only():
    found = coarser_lattice(Lattice((5, 7, 6), AFFINE), (2, 3, 1))
    assert found.shape == (2, 2, 6)
    np.testing.assert_allclose(found.to_world([0, 0, 0]), Lattice((5, 7, 6), AFFINE).to_world([0.5, 1, 0]))


@pytest.mark.parametrize('factors', [(2, 2, 2), (1, 2, 3)])
def test_mirrored_problems_are_those_of_mirrored_images(factors):
    shape = PatchShape(factors, (1, 1, 1))
    rng = np.random.default_rng(0)
    coarse = rng.random((4, 5, 3)).astype(np.float32)
    fine = rng.random(np.multiply(coarse.shape, factors)).astype(np.float32)
    centre = np.array([[1, 3, 1]])
    problems = mirrored_problems(shape, factors)
    assert len(problems) == 8
    seen = set()
    for code, (features, cells) in enumerate(problems):
        axes = [a for a in range(3) if code >> a & 1]
        there = np.where(np.isin(range(3), axes), np.array(coarse.shape) - 1 - centre, centre)
        flipped = [np.ascontiguousarray(np.flip(a, axes)) for a in (fine, coarse)]
        np.testing.assert_array_equal(
            shape.gather(fine, coarse, centre)[:, features], shape.gather(*flipped, there)
        )
        np.testing.assert_array_equal(
            gather_cells(fine, centre, factors)[:, cells], gather_cells(flipped[0], there, factors)
        )
        seen.add(tuple(features))
    assert len(seen) == 8


def start(truth, region, factors, n_iterations=15):
    """The acquired image and the published model's on the fine grid, arrays (k, j, i), about 1."""
    coarse = coarse_voxels(truth, factors)
    data, fine = coarse.data / 500, coarse.lattice.refined(factors)
    sampling = make_sampling(fine, coarse.lattice, voxel_profiles(coarse.lattice)).reversed()
    region = coarse_voxels(type(truth)(region, truth.lattice), factors).data > 0.3
    field = fit_physics(
        data, coarse.lattice, ndimage.binary_dilation(region), fine, sampling, n_iterations=n_iterations
    )
    base = np.ascontiguousarray(render([field], fine).transpose(2, 1, 0))
    image = np.ascontiguousarray(data.transpose(2, 1, 0))
    return coarse, image, np.ascontiguousarray(region.transpose(2, 1, 0)), base


def learn(base, image, coarse, region, factors, **changes):
    options = dict(similar=False, n_iterations=15, seed=0, device='auto', progress=lambda *state: None)
    return add_learned_detail(
        base, image, coarse.lattice, region, voxel_profiles(coarse.lattice), factors, **options | changes
    )


def test_learned_detail_brings_the_image_nearer_to_the_truth():
    truth, mask = folded_head((40, 40, 40), seed=3)
    coarse, image, region, base = start(truth, mask, (2, 2, 2))
    wanted, mask = truth.data.transpose(2, 1, 0) / 500, mask.transpose(2, 1, 0)
    before = np.sqrt(np.mean((base - wanted)[mask] ** 2))
    cubic = resample_to(coarse, truth.lattice, order=3).transpose(2, 1, 0) / 500
    original = base.copy()
    stages = []
    figures = learn(base, image, coarse, region, (2, 2, 2), progress=lambda *state: stages.append(state))
    after = np.sqrt(np.mean((base - wanted)[mask] ** 2))
    assert 0 < figures['detail_gain'] <= 1 and figures['n_patches'] >= 1000
    assert after < 0.98 * before and after < np.sqrt(np.mean((cubic - wanted)[mask] ** 2))
    cells = region
    for axis in range(3):
        cells = np.repeat(cells, 2, axis)
    np.testing.assert_array_equal(base[~cells], original[~cells])
    assert {stage for stage, _, _ in stages} == {'learning across scales'}


@pytest.mark.parametrize('factors', [(2, 2, 2), (1, 3, 1)])
@pytest.mark.parametrize('shape', [(1, 1, 1), (3, 3, 3), (5, 6, 4), (9, 10, 11)])
def test_tiny_images_neither_fail_nor_hold_nan(shape, factors):
    coarse_lattice = Lattice(shape, AFFINE)
    rng = np.random.default_rng(0)
    image = rng.random(shape[::-1]).astype(np.float32)
    base = rng.random(coarse_lattice.refined(factors).shape[::-1]).astype(np.float32)
    figures = add_learned_detail(
        base,
        image,
        coarse_lattice,
        np.ones(image.shape, bool),
        voxel_profiles(coarse_lattice),
        factors,
        similar=True,
        n_iterations=2,
        seed=0,
        device='auto',
        progress=lambda *state: None,
    )
    assert np.isfinite(base).all()
    assert 0 <= figures['detail_gain'] <= 1 and figures['n_patches'] >= 0


def test_an_image_without_structure_teaches_nothing():
    """A constant: no gain that is not a number, and nothing is added."""
    coarse_lattice = Lattice((20, 20, 20), np.diag([1.0, 1.0, 1.0, 1.0]))
    image = np.full((20, 20, 20), 0.8, np.float32)
    base = np.full((40, 40, 40), 0.8, np.float32)
    figures = add_learned_detail(
        base, image, coarse_lattice, np.ones(image.shape, bool), voxel_profiles(coarse_lattice), (2, 2, 2),
        similar=True, n_iterations=2, seed=0, device='auto', progress=lambda *state: None,
    )  # fmt: skip
    assert figures['detail_gain'] >= 0
    np.testing.assert_allclose(base, 0.8, atol=0.02)
