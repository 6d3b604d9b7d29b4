"""Whether a reference relates to its image as in the training."""

import numpy as np
import pytest

from bids_gsrecon.imaging.kspace_crop import crop_kspace
from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.interfaces.m2asr_pairs import make_pair
from bids_gsrecon.interfaces.m2asr_relation import (
    as_coarse,
    edge_correlation,
    relation_of,
    unlike_relation,
)
from tests.phantoms import head


def test_edges_that_point_the_same_way_and_opposite_ways():
    t1w, t2w, mask, _ = head()
    assert edge_correlation(t1w.data, 3 * t1w.data + 7, mask, 2) == pytest.approx(1)
    assert edge_correlation(t1w.data, 100 - t1w.data, mask, 0) == pytest.approx(-1)
    assert edge_correlation(t1w.data, t2w.data, mask, 2) < -0.3
    noise = np.random.default_rng(1).standard_normal(t1w.data.shape)
    assert abs(edge_correlation(t1w.data, noise, mask, 2)) < 0.05
    assert np.isnan(edge_correlation(t1w.data, np.ones_like(t1w.data), mask, 2))


def test_an_image_as_acquired_compares_with_the_pairs_of_the_training():
    t1w, t2w, mask, _ = head()
    trained = relation_of(make_pair(t1w, t2w, subject='a', slice_axis=2, mask=mask))
    coarse, lattice = crop_kspace(t2w.data, t2w.lattice, 2, 2.5)
    target, card = Volume(coarse, lattice), {'edge_correlation': [trained, trained]}
    reference, inside = as_coarse(t1w, target, mask, 2)
    assert unlike_relation(card, edge_correlation(reference, coarse, inside, 2)) == []
    upside_down = Volume(np.where(mask, t1w.data.max() - t1w.data, 0), t1w.lattice)
    reference, inside = as_coarse(upside_down, target, mask, 2)
    (sentence,) = unlike_relation(card, edge_correlation(reference, coarse, inside, 2))
    assert 'more harm than good' in sentence
    assert unlike_relation({}, 0.9) == [] == unlike_relation(card, float('nan'))
