"""Training: draws, optimiser, stages, resume, several processes."""

import copy
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_gsrecon.imaging.kspace_crop import band_limited, coarse_side
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.interfaces.m2asr_slices import SliceStore
from bids_gsrecon.recon.m2asr import LabelMap, Pair, train
from bids_gsrecon.recon.m2asr.config import SIZES, NetworkConfig
from bids_gsrecon.recon.m2asr.losses import total_loss
from bids_gsrecon.recon.m2asr.network import Network
from bids_gsrecon.recon.m2asr.optimizer import Optimizer, orthogonal
from bids_gsrecon.recon.m2asr.samples import Sampler, Subject, intensity_range
from bids_gsrecon.recon.m2asr.synthetic import random_contrasts, tissue_classes
from bids_gsrecon.recon.m2asr.training import Trainer, undisturbed
from bids_gsrecon.recon.m2asr.types import UnfitCheckpointError
from tests.m2asr_cases import NETWORK, SCHEDULE, Memory, make_pair, options


def trainer(pair=None, **changes):
    chosen = options(**changes)
    subject = Subject.of(pair or make_pair(), NETWORK.patch, False)
    sampler = Sampler([subject], [subject], NETWORK.patch, 2, 0.0, chosen.seed)
    return Trainer(chosen.network, chosen.schedule, chosen, sampler, torch.device('cpu'))


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_drawn_piece_is_that_of_the_zero_filled_slice():
    """Against the whole slice acquired and zero-filled, where the volume is zero outside the box of its mask."""
    pair = make_pair(shape=(40, 37, 30))
    target = np.where(pair.mask, pair.target, 0)
    pair = dataclasses.replace(pair, target=target)
    subject = Subject.of(pair, 24, False)
    low, span = intensity_range(target, pair.mask)
    assert low == 0
    rng = np.random.default_rng(4)
    for _ in range(6):
        factor = rng.uniform(1.2, 4)
        state = copy.deepcopy(rng)
        sample, ratio = subject.draw(rng, 24, factor, False)
        axis = int(state.choice(subject.axes))
        place = subject.place(state.integers(len(subject.places)))
        plane = np.take(target, [place[axis] + subject.start[axis]], axis) / span
        plane = np.squeeze(plane, axis)
        sides = [(n, coarse_side(n, factor)) for n in plane.shape]
        crops = [band_limited((np.arange(m) + 0.5) * n / m - 0.5, n, m) for n, m in sides]
        fills = [band_limited((np.arange(n) + 0.5) * m / n - 0.5, m, m) for n, m in sides]
        acquired = np.abs(crops[0] @ plane @ crops[1].T)
        filled = np.abs(fills[0] @ acquired @ fills[1].T)
        # Somewhere in the slice lies exactly this piece.
        windows = np.lib.stride_tricks.sliding_window_view(plane, (24, 24))
        at = np.argwhere(np.abs(windows - sample[2]).max((2, 3)) < 1e-5)
        assert len(at) == 1
        i, j = at[0]
        np.testing.assert_allclose(sample[0], filled[i : i + 24, j : j + 24], atol=1e-5)
        assert ratio == pytest.approx(np.prod([n / m for n, m in sides]) ** 0.5)


def test_draws_depend_on_seed_rank_and_step_alone():
    sampler = trainer().sampler
    a, b = sampler.draw(7, 0, (1, 4)), sampler.draw(7, 0, (1, 4))
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    for other in (sampler.draw(8, 0, (1, 4)), sampler.draw(7, 1, (1, 4))):
        assert not np.array_equal(other[0], a[0])
    assert a[0].shape == (3, 2, 24, 24) and a[0].dtype == np.float32
    assert (sampler.draw(3, 0, (1, 1))[0][0] == sampler.draw(3, 0, (1, 1))[0][2]).all()


def test_thick_slices_are_cut_across_their_axis_alone():
    pair = make_pair()
    assert Subject.of(pair, 24, False).axes == (0, 1, 2)
    thick = dataclasses.replace(pair, lattice=Lattice(pair.lattice.shape, np.diag([1, 1, 3.0, 1])))
    assert Subject.of(thick, 24, False).axes == (2,)


def test_random_contrasts():
    labels = np.repeat(np.arange(5, dtype=np.int16), 8)[None].repeat(30, 0)
    rng = np.random.default_rng(0)
    drawn = np.stack([random_contrasts(labels, rng) for _ in range(30)])
    assert drawn.shape == (30, 2, 30, 40) and np.abs(drawn[..., :5]).max() < 0.2
    # A tissue's brightness in one image says nothing of the other.
    middles = drawn[:, :, 15, 12::8]
    r = np.corrcoef(middles[:, 0].ravel(), middles[:, 1].ravel())[0, 1]
    assert abs(r) < 0.3


def test_tissue_classes_separate_what_differs():
    images = np.zeros((2, 6, 6, 6), np.float32)
    images[0, :3], images[1, :, :3] = 1, 1
    mask = np.ones((6, 6, 6), bool)
    labels = tissue_classes(images, mask, 4)
    assert set(np.unique(labels)) == {1, 2, 3, 4}
    assert len(np.unique(labels[:3, :3])) == 1


def test_orthogonal_steps_keep_the_singular_vectors():
    matrices = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 6, 20))).float()
    for some in (matrices, matrices.mT):
        s = torch.linalg.svdvals(orthogonal(some))
        assert s.min() > 0.6 and s.max() < 1.3
        u0, _, v0 = torch.linalg.svd(some, full_matrices=False)
        inner = u0.mT @ orthogonal(some) @ v0.mT
        off = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
        assert off.abs().max() < 1e-3


def test_only_inner_matrices_take_orthogonal_steps():
    network = Network(NETWORK)
    inside = {id(p) for ps in Optimizer(network, SCHEDULE).groups.values() for p in ps}
    names = [n for n, p in network.named_parameters() if id(p) in inside]
    assert 'trunk.0.layers.0.weight' in names
    assert not any(part in n for n in names for part in ('first', 'heads.heads', 'bias', 'norm', 'prompts'))
    adam = dataclasses.replace(SCHEDULE, optimizer='adam')
    assert not Optimizer(network, adam).groups


def test_training_lowers_the_loss():
    one = trainer(max_steps=60)
    one.run(None, lambda done, total: None)
    first = trainer(max_steps=60)
    losses = []
    for t in (first, one):
        values = []
        for step in range(1000, 1010):
            images, scale, _ = t.sampler.draw(step, 0, (2, 4))
            coarse, reference, target = torch.from_numpy(images)
            with torch.no_grad():
                out = (t.averaged() if t is one else t.network)(
                    coarse, reference, torch.from_numpy(scale)
                ).render()
            values.append(float((out - target).square().mean()))
        losses.append(np.mean(values))
    assert losses[1] < 0.9 * losses[0]


def test_resumed_training_equals_the_undisturbed_one():
    whole = Memory()
    expected = train([make_pair()], options(checkpoint_minutes=0), checkpoint=whole)
    assert [s['step'] for s in whole.states] == [1, 2, 3, 4, 5, 6, 6]
    resumed = train([make_pair()], options(), checkpoint=Memory(whole.states[2]))
    assert same(expected.state, resumed.state)
    assert expected.card['losses'] == resumed.card['losses']
    finished = train([make_pair()], options(), checkpoint=Memory(whole.states[-1]))
    assert same(expected.state, finished.state)


@pytest.mark.parametrize('moment', ['drawing', 'moving', 'between'])
def test_an_interruption_leaves_a_checkpoint_of_the_last_whole_step(moment, monkeypatch):
    """Whenever in a step the signal comes: the training that goes on equals the undisturbed one, and no step is lost."""
    expected = train([make_pair()], options())
    where = {'drawing': (Sampler, 'draw'), 'moving': (Optimizer, 'step'), 'between': (Trainer, '_done')}[
        moment
    ]
    real, calls = getattr(*where), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    memory = Memory()
    with monkeypatch.context() as patched:
        patched.setattr(*where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train([make_pair()], options(), checkpoint=memory)
    assert [state['step'] for state in memory.states] == [3 if moment == 'drawing' else 4]
    again = Memory(memory.states[-1])
    assert same(expected.state, train([make_pair()], options(), checkpoint=again).state)


def test_signals_wait_for_the_end_of_what_must_not_be_disturbed():
    done = []
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), undisturbed():
        signal.raise_signal(signal.SIGINT)
        done.append('all of it')
    assert done == ['all of it'] and signal.getsignal(signal.SIGINT) is handler


def test_slices_on_the_disk_are_drawn_and_trained_on_like_those_in_memory(tmp_path):
    store = SliceStore(tmp_path / 'slices', 'key')
    pairs = [make_pair(), make_pair('02', seed=1), make_pair('03', seed=2, shape=(33, 30, 40))]
    chosen = options(validation_subjects=('02',), synthetic_fraction=0.3)
    expected, found = train(pairs, chosen), train(pairs, chosen, store=store)
    assert same(expected.state, found.state) and expected.card['scores'] == found.card['scores']
    files = sorted(path.name for path in store.folder.iterdir())
    assert files == ['00000-24-labels_key.h5', '00002-24-labels_key.h5'], 'those that are trained on'

    class Never(list):
        subjects = ['01', '02', '03']  # noqa: RUF012

        def __getitem__(self, index):
            assert index == 1, 'the others are prepared already'
            return super().__getitem__(index)

    again = train(Never(pairs), chosen, store=store)
    assert same(expected.state, again.state)
    assert {**again.card, 'minutes': 0} == {**expected.card, 'minutes': 0}


def test_draws_are_those_of_the_first_version():
    """Voxels of sharp images at places that depend on the seed alone: other draws would make old results unrepeatable."""
    images, ratios, _ = trainer().sampler.draw(5, 0, (1, 4))
    np.testing.assert_allclose(images[1:, :, ::11, 7].ravel()[:8], DRAWN, rtol=1e-5)
    np.testing.assert_allclose(ratios, RATIOS, rtol=1e-6)


def test_checkpoints_of_other_trainings_are_refused():
    memory = Memory()
    train([make_pair()], options(max_steps=1), checkpoint=memory)
    with pytest.raises(UnfitCheckpointError, match='seed'):
        train([make_pair()], options(seed=1), checkpoint=Memory(memory.states[-1]))
    with pytest.raises(UnfitCheckpointError, match='version'):
        train([make_pair()], options(), checkpoint=Memory({'format': 0}))


def test_same_seed_same_model_and_threads_hardly_matter():
    a, b = (train([make_pair()], options()).state for _ in range(2))
    assert same(a, b)
    assert not same(a, train([make_pair()], options(seed=1)).state)
    two = train([make_pair()], options(n_threads=2)).state
    assert max(float((a[n] - two[n]).abs().max()) for n in a) < 1e-5


def test_time_ends_a_training_with_its_rate_fallen():
    schedule = dataclasses.replace(SCHEDULE, steps=10**6)
    one = trainer(max_steps=None, max_minutes=0.02, clock='processor', schedule=schedule)
    one.train_step()  # compiles
    told = []
    one.run(None, lambda done, total: told.append((done, total)))
    assert one.minutes >= 0.02 and one.rate() == 0
    assert told[-1] == (1, 1) and 1 < one.step < 10**5


def test_published_stages():
    """Stage 1 at scale one with everything trained; then random scales with the heads frozen, rate halved late."""
    schedule = dataclasses.replace(
        SCHEDULE, first_stage_steps=2, steps=8, milestones=(4, 6), warm_up_steps=0, optimizer='adam'
    )
    network = dataclasses.replace(NETWORK, start='published')
    one = trainer(schedule=schedule, network=network, max_steps=None)
    seen = []
    draw = one.sampler.draw
    one.sampler.draw = lambda step, rank, scales: seen.append(scales) or draw(step, rank, scales)
    rates, frozen, moved = [], [], []
    for _ in range(10):
        before = [p.detach().clone() for p in one.parameters]
        rates.append(one.rate())
        one.train_step()
        changed = {id(p) for p, old in zip(one.parameters, before) if not torch.equal(p, old)}
        frozen.append(not any(id(p) in changed for p in one.network.heads.parameters()))
        moved.append(any(id(p) in changed for p in one.network.encoder.parameters()))
    assert seen == [(1.0, 1.0)] * 2 + [(1.0, 4.0)] * 8
    assert frozen == [False] * 2 + [True] * 8 and all(moved)
    assert rates == [1] * 6 + [0.5] * 2 + [0.25] * 2


def test_made_up_draws_count_less():
    """The loss is that of the samples one by one, each by its weight."""
    one = trainer()
    subject = Subject.of(make_pair(), NETWORK.patch, True)
    one.sampler = Sampler([subject], [subject], NETWORK.patch, 4, 0.5, 0, 0.25)
    images, scales, weights = one.sampler.draw(3, 0, (1, 4))
    assert set(weights.tolist()) == {0.25, 1.0}
    alike = Sampler([subject], [subject], NETWORK.patch, 4, 0.5, 0, 1.0).draw(3, 0, (1, 4))
    assert alike[2] is None and np.array_equal(alike[0], images)
    schedule = dataclasses.replace(SCHEDULE, frequency_loss=0.01)

    def loss(chosen, weight):
        coarse, reference, target = torch.from_numpy(images[:, chosen])
        with torch.no_grad():
            prediction = one.network(coarse, reference, torch.from_numpy(scales[chosen]), decode=True)
            return float(total_loss(prediction, target, reference, schedule, weight))

    each = [loss([n], None) for n in range(4)]
    assert loss([0, 1, 2, 3], torch.from_numpy(weights)) == pytest.approx(np.mean(weights * each), rel=1e-5)
    assert loss([0, 1, 2, 3], None) == pytest.approx(np.mean(each), rel=1e-5)


def test_made_up_contrasts_from_labels_or_from_the_pairs():
    labels = LabelMap(np.random.default_rng(0).integers(0, 5, (30, 30, 30)), Lattice((30, 30, 30), np.eye(4)))
    plain = train([make_pair()], options()).state
    own = train([make_pair()], options(synthetic_fraction=0.5)).state
    given = train([make_pair()], options(synthetic_fraction=0.5), labels=[labels]).state
    assert not same(plain, own) and not same(own, given)


def test_refused_input():
    with pytest.raises(ValueError, match='no pair is left'):
        train([make_pair('01')], options(validation_subjects=('01',)))
    with pytest.raises(ValueError, match='smaller than'):
        train([make_pair(shape=(20, 20, 30))], options())
    with pytest.raises(ValueError, match='there is no size'):
        options(size='huge')
    with pytest.raises(ValueError, match='scales must rise'):
        options(scales=(3, 2))
    pair = make_pair()
    with pytest.raises(ValueError, match='NaN'):
        dataclasses.replace(pair, target=np.full(pair.lattice.shape, np.nan))
    with pytest.raises(ValueError, match='one value'):
        dataclasses.replace(pair, reference=np.ones(pair.lattice.shape))
    with pytest.raises(ValueError, match='register'):
        Pair('01', 'T2w', pair.reference[1:], pair.target, pair.lattice, 2)


def test_configurations_survive_json():
    for size in SIZES.values():
        import json

        again = NetworkConfig.from_dict(json.loads(json.dumps(size.network.to_dict())))
        assert again == size.network
    with pytest.raises(ValueError, match='another version'):
        NetworkConfig.from_dict({'features': 3})


# Of the first version, in which all slices were in memory.
DRAWN = [0.6817342638969421, 0.8153050541877747, 0.5776581764221191, 0.36672231554985046, 0.5140559077262878,
         0.5920196175575256, 0.6116602420806885, 0.6695791482925415]  # fmt: skip
RATIOS = [1.604341983795166, 2.4832773208618164]
ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys, torch
from bids_gsrecon.recon.m2asr import train
from tests.m2asr_cases import make_pair, options
state = train([make_pair()], options(max_steps=3)).state
import os
torch.save(state, sys.argv[1] + '-' + os.environ['RANK'])
"""


def test_two_processes_agree_and_average_their_gradients(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    out = str(tmp_path / 'state')
    running = [
        subprocess.Popen(
            [sys.executable, '-c', PROGRAM, out],
            env={
                **os.environ, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2',
                'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'OMP_NUM_THREADS': '1',
                'PYTHONPATH': os.pathsep.join([*sys.path, str(ROOT)]),
            },
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [p.wait(timeout=240) for p in running] == [0, 0]
    a, b = (torch.load(f'{out}-{rank}') for rank in range(2))
    assert same(a, b)
    # One process that draws both batches and averages by hand ends at the same weights.
    alone = trainer(max_steps=3)
    draw = alone.sampler.draw
    for _ in range(3):
        step = alone.step
        gradients = []
        for rank in range(2):
            probe = trainer(max_steps=3)
            probe.restore(alone.state())
            probe.sampler.draw = lambda s, r, scales, rank=rank: draw(s, rank, scales)
            probe.optimizer.step = lambda rate: None
            probe.train_step()
            gradients.append([None if p.grad is None else p.grad.clone() for p in probe.parameters])
        ready = iter([None if g is None else (g + h) / 2 for g, h in zip(*gradients)])

        def averaged():
            for p, g in zip(alone.parameters, ready):  # noqa: B023
                p.grad = g

        alone._average_gradients = averaged
        alone.train_step()
        assert alone.step == step + 1
    mine = alone.averaged().state_dict()
    assert max(float((mine[n] - a[n]).abs().max()) for n in mine) < 1e-5


def test_isotropic_volumes_are_cut_where_their_planes_hold_a_patch():
    assert Subject.of(make_pair(shape=(40, 37, 12)), 24, False).axes == (2,)
    assert Subject.of(make_pair(shape=(12, 37, 40)), 24, False).axes == (0,)
