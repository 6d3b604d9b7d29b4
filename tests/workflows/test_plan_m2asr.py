"""What ``--recon m2asr`` makes of a participant: images to make finer, pairs to train on."""

import os
from pathlib import Path

import numpy as np
import pytest

from bids_gsrecon.cli.parser import parse_args
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.interfaces.m2asr_files import save_weights
from bids_gsrecon.interfaces.m2asr_pairs import save_pair
from bids_gsrecon.recon.m2asr.types import Pair
from bids_gsrecon.workflows.plan import plan_participants
from bids_gsrecon.workflows.plan_m2asr import finer_in_plane
from tests.bids_datasets import affine, anat, brain, write_image, write_t1w, write_thick
from tests.m2asr_fakes import fake_model


@pytest.fixture
def weights(tmp_path):
    return save_weights(tmp_path / 'net.h5', fake_model())


@pytest.fixture
def applied(plan, weights):
    """Plans of applications, by participant."""
    return lambda *arguments: plan('--recon', 'm2asr', '--weights', weights, *arguments)


@pytest.fixture
def trained(tmp_path):
    """Plans of trainings, by participant."""

    def run(*arguments):
        folders = [tmp_path / 'bids', tmp_path / 'out', 'group', '-w', tmp_path / 'work']
        config = parse_args([*folders, '--recon', 'm2asr', '--train', *arguments])
        return {item.participant: item for item in plan_participants(config, {})}

    return run


def write_coarse(root, label, suffix='T2w', sizes=(8.0, 8.0, 8.0), **kwargs):
    """An image with pixels twice as large as those of the T1w."""
    folder, stem = anat(root, label, kwargs.pop('session', None))
    shape = tuple(round(80 / size) for size in sizes)
    return write_image(folder / f'{stem}_{suffix}.nii.gz', brain(shape, sizes, -1.0), affine(sizes), **kwargs)


def test_the_grid_is_finer_in_plane_and_fills_the_same_box():
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0, 0, 3.0], [0.7, 0, 0], [0, 0.9, 0]])
    lattice = Lattice((100, 90, 20), matrix)
    fine = finer_in_plane(lattice, 2, 0.35)
    assert fine.shape == (200, 231, 20)
    corners = np.array([[-0.5, -0.5, -0.5], [99.5, 89.5, 19.5]])
    ours = fine.to_index(lattice.to_world(corners))
    np.testing.assert_allclose(ours, [[-0.5] * 3, [199.5, 230.5, 19.5]], atol=1e-6)
    one = finer_in_plane(lattice, 2, 0.8)
    assert one.shape == (100, 101, 20), 'an axis that is as fine already stays'


def test_images_of_known_contrasts_get_the_pixels_of_the_reference(root, applied):
    write_t1w(root, '01')
    write_coarse(root, '01', metadata={'SliceEncodingDirection': 'k'})
    write_coarse(root, '01', 'FLAIR')
    item = applied()['01']
    assert item.errors == [] and item.recon == 'm2asr'
    (target,) = item.sessions[0].targets
    assert target.name.suffix == 'T2w' and target.slice_axis == 2
    assert target.output_shape == [20, 20, 10] and target.in_plane_mm == [4.0, 4.0]
    assert any(
        'contrasts of m2asr (T2w; --m2asr-contrasts)' in text and 'FLAIR' in text for text in item.messages
    )
    both = applied('--m2asr-contrasts', 'T2w', 'FLAIR')['01']
    assert len(both.sessions[0].targets) == 2
    finer = applied('--output-resolution', '2')['01'].sessions[0].targets[0]
    assert finer.output_shape == [40, 40, 10]


def test_fine_images_are_left_out_and_too_large_factors_refused(root, applied):
    write_t1w(root, '01')
    write_thick(root, '01')
    item = applied()['01']
    assert item.sessions == [] and item.nothing_to_do
    assert any('as fine as 4 mm already' in text for text in item.messages)
    error = applied('--output-resolution', '0.5')['01'].errors[0]
    assert '8.0 times finer' in error and '--output-resolution' in error


def test_without_a_reference_there_is_nothing(root, applied):
    write_coarse(root, '01')
    assert 'has no T1w image' in applied()['01'].errors[0]
    write_t1w(root, '02', sizes=(4.0, 4.0, 16.0))
    write_coarse(root, '02')
    assert 'cannot guide the other contrasts' in applied()['02'].errors[0]


def test_a_reference_of_another_session_serves(root, applied):
    write_t1w(root, '01', session='a')
    write_coarse(root, '01', session='b')
    item = applied()['01']
    assert [session.session for session in item.sessions] == ['b']
    assert 'ses-a' in item.sessions[0].reference


def test_pairs_are_planned_for_training(root, trained, tmp_path):
    write_t1w(root, '01')
    write_thick(root, '01')
    write_thick(root, '01', 'FLAIR', axis=1)
    write_thick(root, '01', 'PDw')
    item = trained()['01']
    targets = item.sessions[0].targets
    assert [(t.name.suffix, t.slice_axis) for t in targets] == [('FLAIR', 1), ('T2w', 2)]
    assert Path(targets[1].pair_file) == tmp_path / 'work' / 'm2asr_pairs' / 'sub-01_T2w.h5'
    assert not any(t.is_made for t in targets)
    assert [t.name.suffix for t in trained('--m2asr-contrasts', 'PDw')['01'].sessions[0].targets] == ['PDw']


def test_a_pair_is_made_again_only_when_something_changed(root, trained):
    t1w = write_t1w(root, '01')
    write_thick(root, '01')
    target = trained()['01'].sessions[0].targets[0]
    data = np.arange(8.0).reshape(2, 2, 2)
    pair = Pair('sub-01', 'T2w', data, data, Lattice((2, 2, 2), np.eye(4)), 2)
    path = Path(target.pair_file)
    path.parent.mkdir(parents=True)
    save_pair(path, pair, key=target.pair_key)
    assert trained()['01'].sessions[0].targets[0].is_made
    assert trained('--nprocs', '1', '--m2asr-size', 'small')['01'].sessions[0].targets[0].is_made
    assert not trained('--random-seed', '5')['01'].sessions[0].targets[0].is_made
    os.utime(t1w, ns=(1, 1))
    assert not trained()['01'].sessions[0].targets[0].is_made
    path.write_bytes(path.read_bytes()[:100])
    assert not trained()['01'].sessions[0].targets[0].is_made
