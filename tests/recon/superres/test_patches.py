"""Patches, and the small network that learns on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_gsrecon.recon.superres.patches import (
    PatchShape,
    TrainingOptions,
    add_cells,
    apply_detail,
    gather_cells,
    train_detail,
)

SHAPE = PatchShape((1, 2, 3), (1, 1, 2))
FEW = TrainingOptions(n_visits=150_000, hidden=(32, 24))


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.random((4, 10, 15)).astype(np.float32), rng.random((4, 5, 5)).astype(np.float32)


def test_patches_against_a_padded_image(images):
    fine, coarse = images
    centres = np.array([[0, 0, 0], [3, 4, 4], [2, 3, 1]])
    found = SHAPE.gather(fine, coarse, centres)
    padded = np.pad(fine, [(m, m) for m in SHAPE.margin], mode='edge')
    assert SHAPE.size == (3, 4, 7) and found.shape == (3, SHAPE.n_features) == (3, 85)
    for row, centre in zip(found, centres):
        start = centre * (1, 2, 3)
        patch = padded[tuple(slice(s, s + n) for s, n in zip(start, SHAPE.size))]
        np.testing.assert_allclose(row[:-1], (patch - coarse[tuple(centre)]).ravel(), atol=1e-6)
        assert row[-1] == coarse[tuple(centre)]


@pytest.mark.parametrize('axes', [[], [1], [0, 2], [0, 1, 2]])
def test_flipped_patches_are_those_of_the_flipped_image(images, axes):
    fine, coarse = images
    centre = np.array([[1, 2, 3]])
    there = np.where(np.isin(range(3), axes), np.array(coarse.shape) - 1 - centre, centre)
    flipped = SHAPE.gather(
        np.ascontiguousarray(np.flip(fine, axes)), np.ascontiguousarray(np.flip(coarse, axes)), there
    )
    np.testing.assert_array_equal(SHAPE.gather(fine, coarse, centre)[:, SHAPE.flipped(axes)], flipped)


def test_cells_are_read_and_written_at_the_same_place(images):
    fine, coarse = images
    centres = np.argwhere(coarse > 0.4)
    cells = gather_cells(fine, centres, (1, 2, 3))
    i, j, k = centres[5]
    np.testing.assert_array_equal(cells[5], fine[i, 2 * j : 2 * j + 2, 3 * k : 3 * k + 3].ravel())
    out = np.zeros_like(fine)
    add_cells(out, centres, (1, 2, 3), cells, 0.5)
    chosen = np.repeat(np.repeat(coarse > 0.4, 2, 1), 3, 2)
    np.testing.assert_allclose(out, np.where(chosen, 0.5 * fine, 0), atol=1e-6)


def learnable(n=6000, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6)).astype(np.float32)
    features[:, 5] = 3 * features[:, 5] + 40  # far from zero: standardised inside
    clean = np.stack([0.2 * features[:, 0] - 0.1 * features[:, 1], 0.1 * np.abs(features[:, 2])], 1)
    return features, (clean + noise * rng.normal(size=clean.shape)).astype(np.float32)


IDENTITY = [(np.arange(6), np.arange(2))]


def test_network_learns_what_can_be_learned():
    features, targets = learnable()
    network = train_detail(features, targets, IDENTITY, seed=0, options=FEW)
    fresh, expected = learnable(seed=1)
    error = np.mean((network(fresh) - expected) ** 2) / np.mean(expected**2)
    assert error < 0.05 and 0.95 < network.gain <= 1


def test_gain_is_shrunk_where_nothing_can_be_learned():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3000, 6)).astype(np.float32)
    network = train_detail(
        features, rng.normal(size=(3000, 2)).astype(np.float32), IDENTITY, seed=0, options=FEW
    )
    assert 0 <= network.gain < 0.3
    constant = np.ones((1500, 6), np.float32)
    network = train_detail(constant, np.zeros((1500, 2), np.float32), IDENTITY, seed=0, options=FEW)
    assert np.isfinite(network.gain) and np.abs(network(constant)).max() < 1e-6


def test_mirrorings_are_part_of_the_problem():
    """Two outputs, each one feature: swapping features helps where the outputs swap with them, else it ruins."""
    features, _ = learnable()
    targets = np.ascontiguousarray(features[:, :2])
    swapped = np.array([1, 0, 2, 3, 4, 5])
    error = {}
    for name, order in (('both', [1, 0]), ('features only', [0, 1])):
        flips = [*IDENTITY, (swapped, np.array(order))]
        network = train_detail(features, targets, flips, seed=0, options=FEW)
        error[name] = np.mean((network(features) - targets) ** 2)
    assert error['both'] < 0.05 and error['features only'] > 0.3, error


def test_same_seed_same_network_whatever_the_threads():
    features, targets = learnable(3000, 0.1)
    networks, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            networks.append(train_detail(features, targets, IDENTITY, seed=3, options=FEW))
            assert torch.get_num_threads() == threads, 'the setting is given back'
    finally:
        torch.set_num_threads(before)
    for a, b in zip(networks[0].parameters, networks[1].parameters):
        assert torch.equal(a, b)
    assert networks[0].gain == pytest.approx(networks[1].gain, rel=1e-6)
    other = train_detail(features, targets, IDENTITY, seed=4, options=FEW)
    assert not torch.equal(other.parameters[0], networks[0].parameters[0])


def test_applied_detail_is_the_mean_over_the_mirrorings(images):
    fine, coarse = images
    flips = [
        (SHAPE.flipped(axes), np.flip(np.arange(6).reshape(1, 2, 3), axes).ravel()) for axes in ([], [1])
    ]
    flips.append((SHAPE.flipped([2]), np.roll(np.arange(6), 1)))  # an order that is not its own inverse
    centres = np.argwhere(coarse > 0.2)
    features = SHAPE.gather(fine, coarse, centres)
    network = train_detail(features, gather_cells(fine, centres, (1, 2, 3)), flips, seed=0, options=FEW)
    expected = np.zeros((len(centres), 6))
    for feature_order, target_order in flips:
        mirrored = network(features[:, feature_order])
        back = np.empty_like(mirrored)
        back[:, target_order] = mirrored
        expected += back / 3
    out, by_hand = np.zeros_like(fine), np.zeros_like(fine)
    apply_detail(network, SHAPE, fine, coarse, centres, flips, (1, 2, 3), out, 0.7)
    add_cells(by_hand, centres, (1, 2, 3), expected.astype(np.float32), 0.7)
    np.testing.assert_allclose(out, by_hand, atol=1e-5)
    assert np.abs(out).max() > 0.01


def test_what_sets_values_apart_is_learned_however_alike_they_are():
    """As in images: nearly the same value everywhere, and the detail lies in the small differences."""
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(8000, 6)).astype(np.float32)
    common = rng.normal(size=(8000, 1)).astype(np.float32)
    features, targets = common + 0.1 * apart, apart[:, :2] - apart[:, 2:4]
    few = TrainingOptions(n_visits=40_000, learning_rate=6e-3, hidden=(32, 24))

    def error(decorrelated):
        options = replace(few, decorrelated=decorrelated)
        network = train_detail(features[:6000], targets[:6000], IDENTITY, seed=0, options=options)
        return np.mean((network(features[6000:]) - targets[6000:]) ** 2) / np.mean(targets[6000:] ** 2)

    assert error(True) < 0.3 < error(False)
