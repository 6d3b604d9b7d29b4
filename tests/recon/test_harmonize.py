"""The method on small phantoms with a known answer."""

from dataclasses import replace

import numba
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.render import render
from bids_gsrecon.recon.harmonize import (
    HarmonizeOptions,
    Target,
    check_reference,
    estimate_memory_gb,
    harmonize,
    learn_scaffold,
)
from bids_gsrecon.recon.harmonize.frame import make_frame
from bids_gsrecon.recon.harmonize.slabs import SlabMean
from bids_gsrecon.solvers.laplacian import GuidedLaplacian

FACTOR = 4
FAST = HarmonizeOptions(scaffold_iterations=12)


def head(shape=(40, 44, 40), seed=0, lesion=True):
    """T1-like and T2-like images of one structure, mask, lesion (bright on the second only)."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij')
    radius = np.sqrt(sum(g**2 for g in grids))
    folds = ndimage.gaussian_filter(rng.normal(size=shape), 1.6)
    tissue = radius * 3.2 + folds / folds.std() * 0.35
    labels = np.clip(np.digitize(tissue, [0.7, 1.5, 2.4]), 0, 3)
    mask = labels < 3
    t1 = np.array([0.25, 0.95, 0.6, 0.0])[labels] * 900
    t2 = np.array([0.95, 0.35, 0.6, 0.0])[labels] * 500
    where = (grids[0] + 0.35) ** 2 + (grids[1] - 0.1) ** 2 + grids[2] ** 2 < 0.15**2
    if lesion:
        t2[where & mask] = 480.0
    soften = [ndimage.gaussian_filter(i, 0.6).astype(np.float32) * mask for i in (t1, t2)]
    return soften[0], soften[1].astype(np.float32), mask, where & mask


def thick(data, affine, axis=2, factor=FACTOR):
    n = data.shape[axis] // factor
    moved = np.moveaxis(data, axis, -1)[..., : n * factor]
    slabs = np.moveaxis(moved.reshape(*moved.shape[:-1], n, factor).mean(-1), -1, axis)
    affine = affine.copy()
    affine[:3, 3] += affine[:3, axis] * (factor - 1) / 2
    affine[:3, axis] *= factor
    return Volume.from_affine(slabs, affine)


def as_target(volume, axis=2, name='T2w'):
    return Target(name, volume, SliceProfile('box', float(volume.lattice.voxel_sizes_mm[axis]), axis))


def psnr(x, truth, mask):
    return 10 * np.log10(np.percentile(truth[mask], 99.5) ** 2 / np.mean((x[mask] - truth[mask]) ** 2))


def linear(volume: Volume, lattice: Lattice):
    matrix = volume.lattice.world_to_voxel @ lattice.affine
    return ndimage.affine_transform(
        volume.data, matrix[:3, :3], matrix[:3, 3], lattice.shape, order=3, mode='nearest'
    )


@pytest.fixture(scope='module')
def case():
    t1, t2, mask, lesion = head()
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -20, -22, 11
    return Volume.from_affine(t1, affine), Volume.from_affine(t2, affine), mask, lesion


@pytest.fixture(scope='module')
def result(case):
    reference, truth, mask, _ = case
    stages = []
    out = harmonize(
        reference,
        [as_target(thick(truth.data, truth.affine))],
        mask=mask,
        options=FAST,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    return out, stages


def test_beats_cubic_and_keeps_the_lesion(case, result):
    reference, truth, mask, lesion = case
    image = result[0].contrasts[0].image
    cubic = linear(thick(truth.data, truth.affine), reference.lattice)
    assert psnr(image, truth.data, mask) > psnr(cubic, truth.data, mask) + 1.5
    ring = ndimage.binary_dilation(lesion, iterations=3) & ~ndimage.binary_dilation(lesion) & mask
    core = ndimage.binary_erosion(lesion)

    def contrast(x):
        return x[core].mean() - x[ring].mean()

    # Two thirds of its height fall within one slab: what the slices hold must not be smoothed away.
    assert contrast(image) > max(0.6 * contrast(truth.data), 0.9 * contrast(cubic))


def test_outputs_are_complete(case, result):
    reference, _, mask, _ = case
    out, stages = result
    contrast = out.contrasts[0]
    assert contrast.image.dtype == np.float32 and contrast.image.shape == reference.data.shape
    assert np.isfinite(contrast.image).all()
    assert (contrast.uncertainty[mask] > 0).all() and (contrast.uncertainty[~out.mask] == 0).all()
    assert contrast.residual.shape == (40, 44, 10)
    assert 0 < contrast.figures['residual_rms_percent'] < 3
    assert {'scaffold', 'T2w'} <= set(out.seconds)
    assert len(stages) > 5 and all(0 <= done <= total for _, done, total in stages)


def test_uncertainty_has_the_size_of_the_error(case, result):
    _, truth, mask, _ = case
    contrast = result[0].contrasts[0]
    error = np.sqrt(np.mean((contrast.image - truth.data)[mask] ** 2))
    expected = np.sqrt(np.mean(contrast.uncertainty[mask] ** 2))
    assert 0.3 < error / expected < 3


def test_layers_render_to_the_image_and_to_the_slices(case, result):
    reference, truth, mask, _ = case
    contrast = result[0].contrasts[0]
    again = render(contrast.layers, reference.lattice)
    np.testing.assert_allclose(again[mask], contrast.image[mask], atol=2e-4 * contrast.image.max())
    target = as_target(thick(truth.data, truth.affine))
    seen = render(contrast.layers, target.volume.lattice, profile=target.profile)
    inside = thick(mask.astype(np.float32), truth.affine).data > 0.99
    predicted = target.volume.data - contrast.residual
    np.testing.assert_allclose(seen[inside], predicted[inside], atol=5e-3 * contrast.image.max())


def test_same_seed_same_bits_and_threads_do_not_matter(case, result):
    reference, truth, mask, _ = case
    image = result[0].contrasts[0].image
    before = numba.get_num_threads()
    try:
        for threads in sorted({1, before}):
            out = harmonize(
                reference,
                [as_target(thick(truth.data, truth.affine))],
                mask=mask,
                options=replace(FAST, n_threads=threads),
            )
            if threads == before:
                np.testing.assert_array_equal(out.contrasts[0].image, image)
            assert np.abs(out.contrasts[0].image - image).max() <= 1e-5 * np.ptp(image)
    finally:
        numba.set_num_threads(before)


def test_scaffold_is_reused(case, result):
    reference, truth, mask, _ = case
    scaffold = result[0].scaffold
    out = harmonize(
        reference, [as_target(thick(truth.data, truth.affine))], mask=mask, scaffold=scaffold, options=FAST
    )
    np.testing.assert_array_equal(out.contrasts[0].image, result[0].contrasts[0].image)
    again = learn_scaffold(reference, mask, options=FAST)
    np.testing.assert_array_equal(again.means_mm, scaffold.means_mm)


@pytest.mark.parametrize('order', [(2, 1, 0), (1, 2, 0)])
def test_stored_axis_order_and_flips_do_not_matter(case, result, order):
    reference, truth, mask, _ = case
    volume = thick(truth.data, truth.affine)
    flip = np.diag([-1.0, 1.0, -1.0, 1.0])
    flip[0, 3], flip[2, 3] = volume.data.shape[0] - 1, volume.data.shape[2] - 1
    permute = np.zeros((4, 4))
    permute[3, 3] = 1
    for new, old in enumerate(order):
        permute[old, new] = 1
    stored = Volume.from_affine(volume.data[::-1, :, ::-1].transpose(order), volume.affine @ flip @ permute)
    axis = order.index(2)
    target = Target('T2w', stored, SliceProfile('box', 4.0, axis))
    image = (
        harmonize(reference, [target], mask=mask, scaffold=result[0].scaffold, options=FAST)
        .contrasts[0]
        .image
    )
    scale = np.percentile(truth.data[mask], 99.5)
    # Training samples differ with the order; the answer must not, beyond their noise.
    assert abs(psnr(image, truth.data, mask) - psnr(result[0].contrasts[0].image, truth.data, mask)) < 0.3
    assert np.sqrt(np.mean((image - result[0].contrasts[0].image)[mask] ** 2)) < 0.02 * scale


def test_oblique_target_and_pose(case):
    """Slices of a rotated copy, brought back by the pose: nothing may shift."""
    reference, truth, mask, _ = case
    rigid = np.eye(4)
    rigid[:3, :3] = Rotation.from_euler('xyz', [6, -4, 8], degrees=True).as_matrix()
    rigid[:3, 3] = 2.0, -1.0, 3.0
    volume = thick(truth.data, truth.affine)
    # The same slices, declared in another world, and the motion back.
    moved = Volume(volume.data, volume.lattice.moved(np.linalg.inv(rigid)))
    target = Target('T2w', moved, SliceProfile('box', 4.0, 2), rigid)
    image = harmonize(reference, [target], mask=mask, options=FAST).contrasts[0].image
    assert psnr(image, truth.data, mask) > psnr(linear(volume, reference.lattice), truth.data, mask) + 1.5


def test_genuinely_oblique_slices(case):
    """Slices cut obliquely through the truth, no common axis with the reference."""
    reference, truth, mask, _ = case
    rotation = Rotation.from_euler('xyz', [12, -9, 15], degrees=True).as_matrix()
    fine_affine = np.eye(4)
    fine_affine[:3, :3] = rotation
    fine_affine[:3, 3] = reference.lattice.centre_mm - rotation @ np.array([27.5, 27.5, 27.5])
    fine = Lattice((56, 56, 56), fine_affine)
    volume = thick(np.maximum(linear(truth, fine), 0) * _inside(fine, truth.lattice), fine.affine)
    image = harmonize(reference, [as_target(volume)], mask=mask, options=FAST).contrasts[0].image
    assert psnr(image, truth.data, mask) > psnr(linear(volume, reference.lattice), truth.data, mask) + 1.0


def _inside(lattice, other):
    points = other.to_index(
        lattice.to_world(np.stack(np.meshgrid(*map(np.arange, lattice.shape), indexing='ij'), -1))
    )
    return ((points > 0) & (points < np.array(other.shape) - 1)).all(-1)


def test_several_contrasts_other_grid_coarse_in_plane_and_gap(case):
    reference, truth, mask, _ = case
    volume = thick(truth.data, truth.affine, axis=1)
    coarse = volume.data.reshape(20, 2, 11, 20, 2).mean((1, 4))
    scale = np.diag([2.0, 1.0, 2.0, 1.0])
    scale[0, 3] = scale[2, 3] = 0.5
    targets = [
        replace(as_target(volume, 1, 'T2w'), profile=SliceProfile('gaussian', 3.0, 1)),
        as_target(Volume.from_affine(coarse, volume.affine @ scale), 1, 'FLAIR'),
    ]
    grid = reference.lattice.resampled(1.5)
    out = harmonize(reference, targets, mask=mask, lattice=grid, options=FAST)
    assert [c.name for c in out.contrasts] == ['T2w', 'FLAIR']
    inside = ndimage.binary_erosion(out.mask, iterations=2)
    truth_on_grid = linear(truth, grid)
    for contrast in out.contrasts:
        assert contrast.image.shape == grid.shape
        assert np.corrcoef(contrast.image[inside], truth_on_grid[inside])[0, 1] > 0.9


def test_relaxed_geometry_is_another_answer(case, result):
    reference, truth, mask, _ = case
    out = harmonize(
        reference,
        [as_target(thick(truth.data, truth.affine))],
        mask=mask,
        scaffold=result[0].scaffold,
        options=replace(FAST, relax_geometry=True),
    )
    relaxed = out.contrasts[0]
    assert not np.array_equal(relaxed.layers[0].means_mm, result[0].contrasts[0].layers[0].means_mm)
    assert psnr(relaxed.image, truth.data, mask) > psnr(result[0].contrasts[0].image, truth.data, mask) - 0.3


def test_frozen_geometry_is_frozen(result):
    out = result[0]
    np.testing.assert_array_equal(out.contrasts[0].layers[0].means_mm, out.scaffold.means_mm)
    np.testing.assert_array_equal(out.contrasts[0].layers[0].log_scales, out.scaffold.log_scales)


def test_bad_input_is_refused_in_a_sentence(case):
    reference, truth, mask, _ = case
    volume = thick(truth.data, truth.affine)
    far = Volume(
        volume.data,
        volume.lattice.moved(np.array([[1, 0, 0, 500], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
    )
    with pytest.raises(ValueError, match='do not overlap'):
        harmonize(reference, [as_target(far)], mask=mask, options=replace(FAST, scaffold_iterations=1))
    with pytest.raises(ValueError, match='mask of the reference is empty'):
        harmonize(reference, [as_target(volume)], mask=np.zeros_like(mask), options=FAST)
    single = Volume.from_affine(volume.data[:, :, 4:5], volume.affine)
    with pytest.raises(ValueError, match='single slice'):
        harmonize(reference, [as_target(single)], mask=mask, options=replace(FAST, scaffold_iterations=1))
    empty = Volume(np.zeros_like(volume.data), volume.lattice)
    with pytest.raises(ValueError, match='empty inside the mask'):
        harmonize(reference, [as_target(empty)], mask=mask, options=replace(FAST, scaffold_iterations=1))
    with pytest.raises(ValueError, match='thick slices'):
        check_reference(volume)
    check_reference(reference)


def test_mistakes_of_a_caller_are_refused(case, result):
    reference, truth, mask, _ = case
    target = as_target(thick(truth.data, truth.affine))
    with pytest.raises(ValueError, match='the mask is'):
        harmonize(reference, [target], mask=mask[1:], options=FAST)
    with pytest.raises(ValueError, match='different names'):
        harmonize(reference, [target, target], mask=mask, scaffold=result[0].scaffold, options=FAST)
    away = np.eye(4)
    away[0, 3] = 15
    with pytest.raises(ValueError, match='another image'):
        harmonize(reference, [target], mask=mask, scaffold=result[0].scaffold.moved(away), options=FAST)
    with pytest.raises(ValueError, match='gaussians_per_voxel'):
        HarmonizeOptions(gaussians_per_voxel=0)
    with pytest.raises(ValueError, match='NaN'):
        Volume(np.full((2, 2, 2), np.nan), Lattice((2, 2, 2), np.eye(4)))


def test_memory_estimate_grows_with_the_image():
    small, large = (estimate_memory_gb((n, n, n), [(n, n, n // 4)], FAST) for n in (64, 256))
    assert 0.9 < small < large < 12


# ---- the operators


def test_slab_mean_is_adjoint():
    rng = np.random.default_rng(0)
    slabs = SlabMean(SliceProfile('gaussian', 5.0, 2).cell_weights(6, 4.0, 4, 5), (2, 3))
    x = rng.normal(size=(34, 8, 9)).astype(np.float32)
    y = rng.normal(size=(6, 4, 3)).astype(np.float32)
    forward = slabs.forward(x)
    assert forward.shape == y.shape
    left, right = np.vdot(forward, y), np.vdot(x, slabs.adjoint(y))
    assert left == pytest.approx(right, rel=1e-4)
    np.testing.assert_allclose(slabs.forward(np.ones_like(x)), 1, atol=1e-5)
    weights = rng.uniform(0.5, 1, y.shape).astype(np.float32)
    unit = np.zeros_like(x)
    unit[13, 5, 4] = 1
    expected = (weights * slabs.forward(unit) ** 2).sum()
    assert slabs.diagonal(weights)[13, 5, 4] == pytest.approx(expected, rel=1e-4)


def test_laplacian_is_symmetric_semidefinite_and_blind_to_constants():
    rng = np.random.default_rng(0)
    guide = rng.uniform(size=(6, 7, 8)).astype(np.float32)
    laplacian = GuidedLaplacian(guide, 0.2, (1.0, 1.0, 1.5))
    p, q = (rng.normal(size=guide.shape).astype(np.float32) for _ in range(2))

    def apply(v):
        return laplacian.add_product(v, 1.0, np.zeros_like(v))

    assert np.vdot(apply(p), q) == pytest.approx(np.vdot(p, apply(q)), rel=1e-4)
    assert np.vdot(p, apply(p)) > 0
    np.testing.assert_allclose(apply(np.ones_like(p)), 0, atol=1e-4)
    unit = np.zeros_like(p)
    unit[2, 3, 4] = 1
    assert apply(unit)[2, 3, 4] == pytest.approx(laplacian.diagonal[2, 3, 4], rel=1e-5)
    weight = (np.exp(-((guide[2, 3, 4] - guide[3, 3, 4]) ** 2) / (2 * 0.2**2)) + 1e-3) / 1.0
    assert -apply(unit)[3, 3, 4] == pytest.approx(weight, rel=1e-4)


def test_frame_planes_are_the_slices(case):
    reference, truth, mask, _ = case
    volume = thick(truth.data, truth.affine)
    frame = make_frame(as_target(volume), mask, reference.lattice)
    fine = frame.from_volume(truth)
    inside = frame.slabs.forward(frame.mask.astype(np.float32)) > 0.99
    np.testing.assert_allclose(frame.slabs.forward(fine)[inside], frame.slices[inside], rtol=1e-4, atol=1e-2)
    back = frame.to_target(frame.slices, as_target(volume))
    assert np.array_equal(back[back != 0], volume.data[back != 0]) and (back != 0).mean() > 0.2
