"""Which grid, and how voxels average."""

import numpy as np
import pytest

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.superres.grids import (
    cell_factors,
    check_finer,
    is_through_plane,
    output_lattice,
    upsampling_factors,
    voxel_profiles,
)

THICK = Lattice((20, 6, 22), np.diag([1.0, 4.0, 1.1, 1.0]))
OBLIQUE = Lattice((10, 12, 8), np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, 4], [0, 0, -2.0, 5], [0, 0, 0, 1]]))


def test_slices_lie_across_the_coarsest_axis():
    assert THICK.coarsest_axis == 1 and is_through_plane(THICK, 1)
    assert Lattice((30, 30, 12), np.eye(4)).coarsest_axis == 2, 'of equals, that with the fewest'
    assert not is_through_plane(Lattice((9, 9, 9), np.diag([1.0, 1.0, 1.2, 1.0])), 2)
    assert not is_through_plane(THICK, 0)


def test_profiles_of_every_kind():
    for kind in ('auto', 'cell'):
        found = voxel_profiles(THICK, kind)
        assert [(p.kind, p.axis) for p in found] == [('box', 0), ('box', 1), ('box', 2)]
        assert [p.thickness_mm for p in found] == pytest.approx([1.0, 4.0, 1.1])
    assert [p.kind for p in voxel_profiles(THICK, 'gaussian')] == ['box', 'gaussian', 'box']
    assert [p.kind for p in voxel_profiles(THICK, 'gaussian', slice_axis=2)] == ['box', 'box', 'gaussian']
    assert [p.kind for p in voxel_profiles(THICK, 'point')] == ['point'] * 3
    gap = voxel_profiles(THICK, 'box', thickness_mm=3.0)
    assert [p.thickness_mm for p in gap] == pytest.approx([1.0, 3.0, 1.1])
    with pytest.raises(ValueError, match='one of auto, cell'):
        voxel_profiles(THICK, 'sinc')


@pytest.mark.parametrize('shape', [(20, 24, 16), (15, 12, 9), (10, 12, 8)])
def test_an_output_of_a_shape_fills_the_same_box(shape):
    found = output_lattice(OBLIQUE, shape=shape)
    assert found.shape == shape
    for corner in np.ndindex(2, 2, 2):
        corner = np.array(corner)
        np.testing.assert_allclose(
            found.to_world(corner * shape - 0.5), OBLIQUE.to_world(corner * OBLIQUE.shape - 0.5)
        )


def test_an_output_of_voxel_sizes():
    found = output_lattice(OBLIQUE, zooms_mm=(0.5, 1.0, 1.0))
    np.testing.assert_allclose(found.voxel_sizes_mm, (0.5, 1.0, 1.0))
    assert found.shape == (20, 12, 16)
    np.testing.assert_allclose(found.centre_mm, OBLIQUE.centre_mm)


@pytest.mark.parametrize(
    'given', [{}, {'zooms_mm': 1.0, 'shape': (2, 2, 2)}, {'shape': (2, 2)}, {'shape': (2, 0, 2)}]
)
def test_other_outputs_are_refused(given):
    with pytest.raises(ValueError, match='either|three positive'):
        output_lattice(OBLIQUE, **given)


@pytest.mark.parametrize(
    ('sizes', 'expected'),
    [((0.5, 0.5, 1.0), (2, 2, 2)), ((1.0, 1.0, 0.5), (1, 1, 4)), ((0.9, 1.0, 0.9), (1, 1, 2)),
     ((0.45, 1, 2), (2, 1, 1)), ((0.4, 1, 2), (3, 1, 1))],
)  # fmt: skip
def test_cells_are_about_as_fine_as_the_output(sizes, expected):
    output = OBLIQUE.resampled(sizes)
    assert cell_factors(OBLIQUE, output) == expected
    # The order in which the output stores its axes says nothing about how fine it is.
    permuted = Lattice([output.shape[a] for a in (2, 0, 1)], output.affine[:, [2, 0, 1, 3]])
    assert cell_factors(OBLIQUE, permuted) == expected
    np.testing.assert_allclose(upsampling_factors(OBLIQUE, output), np.array([1, 1, 2.0]) / sizes)


def test_an_output_no_finer_is_refused_with_the_sizes():
    with pytest.raises(ValueError, match=r'1 x 1 x 2 mm\) are as fine as the output \(0.9 x 1 x 2 mm'):
        check_finer(OBLIQUE, OBLIQUE.resampled((0.9, 1.0, 2.0)))
    check_finer(OBLIQUE, OBLIQUE.resampled((1.0, 1.0, 1.5)))
