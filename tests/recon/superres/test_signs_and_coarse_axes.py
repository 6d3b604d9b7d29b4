"""Images of either sign, and output grids that are finer along one axis and coarser along another."""

from dataclasses import replace

import numpy as np
import pytest

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.simulate import coarse_voxels
from bids_gsrecon.recon.superres import SuperresOptions, output_lattice, superres, voxel_profiles
from bids_gsrecon.recon.superres.grids import points_per_voxel
from tests.phantoms import folded_head

FAST = SuperresOptions(iterations=10, in_plane_learning=False, scale_learning=False)


@pytest.fixture(scope='module')
def coarse():
    truth, mask = folded_head((32, 36, 32))
    return coarse_voxels(truth, 2), truth, mask


def reconstructed(image, lattice, mask, options=FAST):
    return superres(image, lattice, profiles=voxel_profiles(image.lattice), mask=mask, options=options)


@pytest.mark.parametrize('model', ['auto', 'physics'])
def test_negative_images_are_reconstructed_like_their_mirror_image(coarse, model):
    image, truth, _ = coarse
    everything = np.ones(image.data.shape, bool)
    options = replace(FAST, model=model)
    usual = reconstructed(image, truth.lattice, everything, options).image
    negative = reconstructed(Volume(-image.data, image.lattice), truth.lattice, everything, options).image
    # Values below the least acquired one are cut off, which is the other end here.
    usual = np.minimum(usual, image.data.max())
    negative = np.minimum(negative, -image.data.min())
    assert np.abs(usual + negative).max() < 0.02 * image.data.max()


def test_an_image_below_zero_keeps_its_values(coarse):
    image, truth, mask = coarse
    out = reconstructed(Volume(image.data - 3000, image.lattice), truth.lattice, None).image
    usual = reconstructed(image, truth.lattice, np.ones(image.data.shape, bool)).image - 3000
    assert abs(out.mean() - usual.mean()) < 2
    assert np.sqrt(np.mean((out - usual)[mask] ** 2)) < 25  # of 500; trilinear is worse than 60


def test_points_per_voxel_by_axis():
    cells = Lattice((40, 40, 40), np.diag([1.0, 1.0, 2.0, 1.0]))
    assert points_per_voxel(cells, cells) == (1, 1, 1)
    assert points_per_voxel(cells, cells.resampled([4.0, 0.5, 2.0])) == (3, 1, 1)
    flipped = np.eye(4)[[1, 0, 2, 3]] * -1.0
    flipped[3, 3] = 1
    assert points_per_voxel(cells, Lattice((9, 9, 9), flipped @ np.diag([1.0, 4.0, 2.0, 1.0]))) == (1, 3, 1)


def test_axes_that_become_coarser_are_averaged(coarse):
    """The mean over pairs of voxels along one axis is the image with half as many: nothing is skipped."""
    image, truth, _ = coarse
    shape = np.array(truth.data.shape)
    everything = np.ones(image.data.shape, bool)
    fine = reconstructed(image, truth.lattice, everything).image
    few = output_lattice(image.lattice, shape=(shape[0] // 8, shape[1], shape[2]))
    out = reconstructed(image, few, everything).image
    mean = fine.reshape(shape[0] // 8, 8, shape[1], shape[2]).mean(1)
    rms = np.sqrt(np.mean((out - mean) ** 2))
    skipped = np.sqrt(np.mean((fine[3::8] - mean) ** 2))
    assert rms < 0.35 * skipped, (rms, skipped)
