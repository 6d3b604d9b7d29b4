"""Slice-to-volume reconstruction on a small phantom with known poses."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.foreground import dilated
from bids_gsrecon.imaging.render import render
from bids_gsrecon.recon.svr.method import svr
from bids_gsrecon.recon.svr.motion import Frame, mean_motion, neighbour_means
from bids_gsrecon.recon.svr.pixels import collect_pixels
from bids_gsrecon.recon.svr.poses import slice_gains
from bids_gsrecon.recon.svr.residual_field import add_residual_field
from bids_gsrecon.recon.svr.robust import robust_weights
from bids_gsrecon.recon.svr.shapes import NARROW_SIGMA
from bids_gsrecon.recon.svr.types import SvrOptions
from bids_gsrecon.recon.svr.view import View
from bids_gsrecon.recon.svr.volume import EMPTY, EdgePrior, as_image
from tests.moving_stacks import BACKEND, CENTRE, moving_stacks, pose_error_mm


@pytest.fixture(scope='module')
def case():
    return moving_stacks()


@pytest.fixture(scope='module')
def result(case):
    return svr(case[0], options=SvrOptions(resolution_mm=1.0))


def test_motion_and_its_parameters_are_inverse():
    parameters = np.random.default_rng(0).normal(size=(7, 6))
    frame = Frame(CENTRE, 12.0)
    motions = frame.motions(parameters)
    np.testing.assert_allclose(frame.parameters(motions), parameters, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(motions[:, :3, :3]), 1.0)


@pytest.mark.parametrize('origin_mm', [0.0, 300.0])
def test_the_mean_of_opposite_turns_about_a_centre_is_rest(origin_mm):
    centre = np.array([origin_mm, -2.0, 0.5 * origin_mm])
    frame = Frame(centre, 12.0)
    turns = np.array([[6.0, 0, 0, 1, 2, 3], [-6.0, 0, 0, -1, -2, -3]])
    np.testing.assert_allclose(mean_motion(frame.motions(turns), np.ones(2), centre), np.eye(4), atol=1e-9)


def test_edge_prior_is_symmetric_and_all_but_ignores_constants():
    rng = np.random.default_rng(1)
    prior = EdgePrior(rng.uniform(size=(7, 8, 9)).astype(np.float32), 0.3)
    a, b = rng.normal(size=(2, 7, 8, 9)).astype(np.float32)

    def product(p, data=0.0):
        out = np.empty(p.size, np.float32)
        prior.add_product(p, np.full(p.shape, data, np.float32), out)
        return as_image(out, p.shape)

    assert np.vdot(a, product(b)) == pytest.approx(np.vdot(product(a), b), rel=1e-4)
    np.testing.assert_allclose(product(a, 2.0), product(a) + 2.0, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(product(np.full((7, 8, 9), 3.0)), 0.3 * EMPTY * 3.0, rtol=1e-3)
    unit = np.zeros((7, 8, 9), np.float32)
    unit[3, 0, 8] = 1
    seen, inverse = rng.uniform(size=(7, 8, 9)).astype(np.float32), np.empty(504, np.float32)
    prior.preconditioner(seen, inverse)
    diagonal = 1.0 / as_image(inverse, (7, 8, 9)) - 0.5 * seen
    assert product(unit)[3, 0, 8] == pytest.approx(diagonal[3, 0, 8], rel=1e-5)


def test_poses_are_recovered(case, result):
    stacks, true_poses, *_ = case
    pixels = collect_pixels(stacks)
    before = pose_error_mm(pixels, np.tile(np.eye(4), (pixels.n_slices, 1, 1)), true_poses)
    after = pose_error_mm(pixels, result.poses, true_poses)
    assert before > 1.0 and after < 0.25 * before and after < 0.4


def test_slices_are_explained_far_better_than_without_motion(case, result):
    fixed = svr(case[0], options=SvrOptions(resolution_mm=1.0, stack_motion=False, slice_motion=False))
    assert residual_rms(case[0], result) < 0.4 * residual_rms(case[0], fixed)


def residual_rms(stacks, result):
    errors = [(predicted - stack.data)[stack.mask] for stack, predicted in zip(stacks, result.predicted)]
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def test_the_field_is_the_image(result):
    sampled = render([result.field], result.lattice, backend='cpu')
    np.testing.assert_allclose(sampled[result.mask], result.image[result.mask], atol=1e-5)
    assert not result.image[~result.mask].any() and result.mask.any()


def test_the_field_holds_what_a_wide_mask_shows(case):
    # Outside the anatomy that most masks agree on, where one slice sees something.
    wide = dilated(case[0][0].mask, case[0][0].lattice, 6.0)
    data = np.where(wide & ~case[0][0].mask, 0.5 * case[0][0].data.max(), case[0][0].data)
    stacks = [replace(case[0][0], mask=wide, data=data.astype(np.float32)), *case[0][1:]]
    options = SvrOptions(
        resolution_mm=1.0, stack_motion=False, slice_motion=False, slice_bias=False, reference=0
    )
    result = svr(stacks, options=options)
    pixels = collect_pixels(stacks)
    pixels = pixels.selected(pixels.in_mask)
    amplitudes = np.zeros(result.lattice.shape, np.float32)
    where = np.rint(result.lattice.to_index(result.field.means_mm)).astype(int)
    amplitudes[tuple(where.T)] = result.field.amplitudes[:, 0]
    view = View.make(pixels, result.lattice, result.poses, BACKEND, grid_sigma=NARROW_SIGMA)
    shown = view.forward(amplitudes) * result.slices.gain[pixels.slice_of]
    first = pixels.of_stack(0)
    where = np.rint(stacks[0].lattice.to_index(pixels.points_mm[first])).astype(int)
    predicted = result.predicted[0][tuple(where.T)]
    np.testing.assert_allclose(shown[first], predicted, atol=1e-4 * predicted.max())


def test_the_order_of_stacks_changes_no_bit(case, result):
    stacks, *_ = case
    order = [2, 0, 1]
    other = svr([stacks[n] for n in order], options=SvrOptions(resolution_mm=1.0))
    np.testing.assert_array_equal(other.image, result.image)
    for n, old in enumerate(order):
        np.testing.assert_array_equal(
            other.poses[other.slices.stack == n], result.poses[result.slices.stack == old]
        )
        np.testing.assert_array_equal(other.predicted[n], result.predicted[old])


def test_threads_change_no_bit(case, result):
    other = svr(case[0], options=SvrOptions(resolution_mm=1.0, n_threads=1))
    np.testing.assert_array_equal(other.image, result.image)


def test_a_turned_world_turns_the_volume(case, result):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler('xyz', [20, -35, 110], degrees=True).as_matrix()
    turn[:3, 3] = [30, -20, 10]
    turned = [replace(s, lattice=replace(s.lattice, affine=turn @ s.lattice.affine)) for s in case[0]]
    other = svr(turned, options=SvrOptions(resolution_mm=1.0))
    back = replace(result.lattice, affine=turn @ result.lattice.affine)
    image = render([other.field], back, backend='cpu')
    assert relative_difference(image, result) < 0.01


def test_flipped_storage_changes_nothing(case, result):
    flipped = []
    for stack in case[0]:
        rank = stack.acquisition_rank()[::-1]
        affine = stack.lattice.affine @ np.diag([-1.0, 1.0, -1.0, 1.0])
        affine[:3, 3] = stack.lattice.to_world([stack.lattice.shape[0] - 1, 0, stack.lattice.shape[2] - 1])
        flipped.append(
            replace(
                stack,
                data=stack.data[::-1, :, ::-1],
                mask=stack.mask[::-1, :, ::-1],
                lattice=replace(stack.lattice, affine=affine),
                order=tuple(int(n) for n in np.argsort(rank)),
            )
        )
    other = svr(flipped, options=SvrOptions(resolution_mm=1.0))
    image = render([other.field], result.lattice, backend='cpu')
    # Coarse levels see other pixels of the same slices, so not to rounding.
    assert relative_difference(image, result) < 0.02


def relative_difference(image, result):
    """Root mean square in the mask, of the image's own."""
    inside = result.image[result.mask]
    return np.sqrt(np.mean((image[result.mask] - inside) ** 2)) / np.sqrt(np.mean(inside**2))


def test_a_slice_that_shows_something_else_is_excluded(case, result):
    stacks = list(case[0])
    data = stacks[1].data.copy()
    data[:, :, 6] = data[::-1, ::-1, 6].T * np.random.default_rng(0).uniform(0.2, 1.8, data.shape[:2])
    stacks[1] = replace(stacks[1], data=data)
    table = svr(stacks, options=SvrOptions(resolution_mm=1.0)).slices
    odd = (table.stack == 1) & (table.index == 6)
    assert table.weight[odd] < 0.6 * np.median(table.weight) and table.ncc[odd] < table.ncc[~odd].min()
    assert result.slices.ncc.mean() > 0.8 and not result.slices.excluded.any()


def test_uncertainty_and_coverage(result):
    inside = result.mask
    assert (result.uncertainty[inside] > 0).all() and not result.uncertainty[~inside].any()
    # Three stacks without gaps: three slices see a voxel well inside.
    centre = np.rint(result.lattice.to_index(CENTRE)).astype(int)
    box = tuple(slice(c - 4, c + 5) for c in centre)
    assert result.coverage[box].mean() == pytest.approx(3.0, rel=0.25)


def test_gains_are_found_and_average_to_one():
    rng = np.random.default_rng(2)
    slice_of = np.repeat(np.arange(5), 200)
    prediction = rng.uniform(0.5, 1, 1000)
    true = np.array([0.9, 1.1, 1.0, 0.95, 1.05])
    pixels = SimpleNamespace(
        values=true[slice_of] * prediction,
        starts=np.arange(0, 1001, 200),
        n_slices=5,
        in_mask=np.ones(1000, bool),
    )
    gains = slice_gains(prediction, pixels, np.ones(1000))
    np.testing.assert_allclose(gains / gains.mean(), true / true.mean(), rtol=1e-3)


def test_neighbours_are_those_of_the_acquisition(case):
    stacks, *_ = case
    pixels = collect_pixels(stacks)
    place = np.empty(pixels.n_slices)
    for stack in range(3):
        mine = np.flatnonzero(pixels.stack_of == stack)
        place[mine] = np.argsort(np.argsort(pixels.rank[mine]))
    parameters = np.repeat(place[:, None], 6, 1)
    means = neighbour_means(parameters, pixels.stack_of, pixels.rank, np.ones(pixels.n_slices))
    inner = np.abs(means[:, 0] - place) < 1e-9
    assert inner.sum() >= pixels.n_slices - 3 * 4  # a linear course is its own mean, but for both ends


def test_a_void_slice_weighs_little(case):
    stacks, true_poses, image, lattice = case
    pixels = collect_pixels(stacks)
    pixels = pixels.selected(pixels.in_mask)
    view = View.make(pixels, lattice, true_poses, BACKEND)
    pixels.values[:] = view.forward(image)
    pixels.values[pixels.slice_of == 5] *= 0.2
    weights = robust_weights(view.forward(image), pixels, np.ones(pixels.n_slices))
    assert weights[pixels.slice_of == 5].mean() < 0.3 * weights[pixels.slice_of != 5].mean()


def test_one_stack_is_refused(case):
    with pytest.raises(ValueError, match='two stacks'):
        svr(case[0][:1])


def test_a_stack_without_signal_is_named(case):
    stacks = list(case[0])
    stacks[1] = replace(stacks[1], data=np.zeros_like(stacks[1].data))
    with pytest.raises(ValueError, match='stack 2'):
        svr(stacks)


def test_self_similarity_takes_noise_away():
    """Of stacks of known poses: the volume with it is nearer to the one of the same stacks without noise."""
    stacks, *_ = moving_stacks(0.0, 0.0)
    rng = np.random.default_rng(0)
    noisy = [
        replace(s, data=(s.data + 0.08 * rng.normal(size=s.data.shape)).astype(np.float32)) for s in stacks
    ]
    still = SvrOptions(resolution_mm=1.0, stack_motion=False, slice_motion=False)
    clean = svr(stacks, options=still)
    errors = []
    for wanted in (True, False):
        image = svr(noisy, options=replace(still, self_similarity=wanted)).image
        gain = (image[clean.mask] @ clean.image[clean.mask]) / (image[clean.mask] @ image[clean.mask])
        errors.append(relative_difference(gain * image, clean))
    assert errors[0] < 0.95 * errors[1]


def test_the_residual_field_explains_more_and_repeats(case):
    stacks, true_poses, image, lattice = case
    pixels = collect_pixels(stacks)
    view = View.make(pixels, lattice, true_poses, BACKEND)
    pixels.values[:] = view.forward(image)
    ones, gains = np.ones(len(pixels.values)), np.ones(pixels.n_slices)
    blurred = ndimage.gaussian_filter(image, 1.5)
    first, again = (add_residual_field(view, ones, gains, blurred, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    before, after = (np.square(view.forward(a) - pixels.values).mean() for a in (blurred, first))
    assert after < 0.9 * before
