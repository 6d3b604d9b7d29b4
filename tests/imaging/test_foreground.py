"""Brains, heads and backgrounds told apart."""

import numpy as np
import pytest

from bids_gsrecon.imaging.foreground import (
    background_value,
    bounding_box,
    dilated,
    eroded,
    largest_component,
    skull_stripped_support,
)
from bids_gsrecon.imaging.lattice import Lattice, Volume

VOXEL_MM = 3.0


def ellipsoids():
    """A head 160 x 210 x 190 mm with scalp, dark skull and brain, 3 mm voxels: (head, brain mask)."""
    shape = (70, 84, 78)
    grid = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * VOXEL_MM for n in shape], indexing='ij'), -1)

    def inside(rx, ry, rz):
        return ((grid / [rx, ry, rz]) ** 2).sum(-1) < 1

    scalp, skull, brain = inside(80, 105, 95), inside(76, 101, 91), inside(66, 86, 70)
    data = np.zeros(shape)
    data[scalp], data[skull], data[brain] = 300, 20, 100
    data += np.where(brain, 10 * np.sin(grid[..., 0] / 4), 0)
    return data, brain


@pytest.fixture(scope='module')
def toy():
    return ellipsoids()


def volume_of(data):
    return Volume.from_affine(data, np.diag([-VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0]))


def test_a_stripped_brain_is_its_own_mask(toy):
    data, brain = toy
    stripped = np.where(brain, data, 0)
    stripped[35:37, 40:43, 38:40] = 0  # a hole
    assert np.array_equal(skull_stripped_support(volume_of(stripped)), brain)
    # another background value, and ringing around it
    shifted = np.where(brain, data, 7.0)
    shifted[35, 42, 39] = -20.0
    assert np.array_equal(skull_stripped_support(volume_of(shifted)), brain)


def test_a_head_with_emptied_air_is_not_a_brain(toy):
    data, _ = toy
    assert skull_stripped_support(volume_of(data)) is None
    # the same head at the size of a child's: only the skull tells
    small = Volume.from_affine(data, np.diag([2.3, 2.3, 2.3, 1.0]))
    assert skull_stripped_support(small) is None


def test_noise_around_a_brain_is_not_an_emptied_background(toy):
    data, brain = toy
    noisy = np.where(brain, data, np.random.default_rng(0).random(data.shape))
    assert skull_stripped_support(volume_of(noisy)) is None


def test_something_small_is_not_a_brain(toy):
    data, brain = toy
    small = Volume.from_affine(np.where(brain, data, 0), np.diag([0.5, 0.5, 0.5, 1.0]))
    assert skull_stripped_support(small) is None


def test_background_value():
    data = np.full((8, 8, 8), 5.0)
    data[2:6, 2:6, 2:6] = 100
    data[3, 3, 3] = -4
    assert background_value(data) == 5.0
    assert background_value(np.arange(512.0).reshape(8, 8, 8)) == 0.0


def test_millimetre_morphology_on_thick_voxels():
    lattice = Lattice((21, 21, 9), np.diag([1.0, 1.0, 4.0, 1.0]))
    mask = np.zeros(lattice.shape, bool)
    mask[10, 10, 4] = True
    grown = dilated(mask, lattice, 3.0)
    assert grown.sum(2).max() == 1 and grown[13, 10, 4] and not grown[14, 10, 4]
    assert np.array_equal(eroded(dilated(mask, lattice, 5.0), lattice, 4.9).any((0, 1)), mask.any((0, 1)))
    assert not dilated(np.zeros(lattice.shape, bool), lattice, 3.0).any()
    start, stop = bounding_box(grown)
    assert list(start) == [7, 7, 4] and list(stop) == [14, 14, 5]


def test_largest_component():
    mask = np.zeros((9, 9, 9), bool)
    mask[1, 1, 1] = mask[4:7, 4:7, 4:7] = True
    assert largest_component(mask).sum() == 27
