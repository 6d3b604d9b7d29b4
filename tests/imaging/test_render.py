import numpy as np
import pytest

from bids_gsrecon.fields.densify import isotropic_gaussians
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.render import render

from .test_lattice import oblique


def one_gaussian(scale=3.0, where=(0.0, 0.0, 0.0), amplitude=2.0):
    return isotropic_gaussians(np.array([where]), scale, [[amplitude]], ('a',))


def test_analytic_value_on_an_oblique_grid():
    lattice = oblique((9, 8, 7), (1.0, 1.2, 2.0))
    where = lattice.to_world([4.2, 3.7, 3.1])
    image = render([one_gaussian(3.0, where)], lattice)
    points = lattice.to_world(np.stack(np.meshgrid(*map(np.arange, lattice.shape), indexing='ij'), -1))
    q = ((points - where) ** 2).sum(-1) / 9.0
    np.testing.assert_allclose(image, 2 * np.maximum(np.exp(-q / 2) - np.exp(-4.5), 0), atol=2e-6)


def test_layers_add_and_absent_channels_add_nothing():
    lattice = Lattice((6, 6, 6), np.eye(4))
    a, b = one_gaussian(2, (2, 2, 2)), one_gaussian(1, (4, 4, 3))
    other = isotropic_gaussians(np.zeros((1, 3)), 1.0, [[5]], ('b',))
    both = render([a, b, other], lattice, channel='a')
    np.testing.assert_allclose(both, render([a], lattice) + render([b], lattice), atol=1e-6)
    with pytest.raises(ValueError, match='no channel'):
        render([a, other], lattice)


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('kind', ['box', 'gaussian'])
def test_slice_profile_is_the_mean_across_the_slice(axis, kind):
    shape, sizes = [7, 7, 7], [1.0, 1.0, 1.0]
    sizes[axis], shape[axis] = 4.0, 3
    affine = np.diag([*sizes, 1.0])
    lattice = Lattice(tuple(shape), affine)
    field = one_gaussian(2.5, lattice.centre_mm + 0.3)
    profile = SliceProfile(kind, 4.0, axis)
    image = render([field], lattice, profile=profile)
    factors = np.ones(3, int)
    factors[axis] = 40
    margin = np.zeros(3, int)
    margin[axis] = 80
    fine = lattice.refined(factors)
    fine = fine.cropped(-margin, np.array(fine.shape) + margin)
    weights = profile.cell_weights(3, 4.0, 40, 80)
    expected = np.moveaxis(np.moveaxis(render([field], fine), axis, -1) @ weights.T, -1, axis)
    np.testing.assert_allclose(image, expected, atol=0.02 * expected.max())
