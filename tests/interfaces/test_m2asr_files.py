"""Files of weights and checkpoints: whole, checked, and never executed."""

import os
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import torch

from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces import m2asr_files
from bids_gsrecon.interfaces.m2asr_files import CheckpointFile, load_weights, read_card, save_weights
from tests.m2asr_fakes import fake_model

STATE = {
    'step': 7,
    'minutes': 0.5,
    'model': {'a': torch.arange(6.0).reshape(2, 3)},
    'history': [1.0, 2.0],
    'rng': 2**100,
}


@pytest.fixture
def weights(tmp_path):
    return save_weights(tmp_path / 'net.h5', fake_model())


def message(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    text = str(caught.value)
    assert '\n' not in text and text.endswith('.')
    return text


def test_weights_come_back_as_they_were(weights):
    model, again = fake_model(), load_weights(weights)
    assert again.config == model.config and again.card == model.card == read_card(weights)
    torch.manual_seed(0)
    assert {n: t.shape for n, t in again.state.items()} == {n: t.shape for n, t in model.state.items()}
    second = load_weights(save_weights(weights, again))
    assert all(torch.equal(second.state[name], again.state[name]) for name in again.state)


@pytest.mark.parametrize('share', [0.0, 0.01, 0.3, 0.7, 0.999])
def test_truncated_weights_are_one_sentence(weights, share):
    content = weights.read_bytes()
    weights.write_bytes(content[: int(share * len(content))])
    assert str(weights) in message(load_weights, weights)


def test_a_flipped_byte_is_noticed(weights):
    with h5py.File(weights) as file:
        name = max(file['state'], key=lambda item: file['state'][item].size)
        offset = file['state'][name].id.get_chunk_info(0).byte_offset
    content = bytearray(weights.read_bytes())
    content[offset + 5] ^= 0xFF
    weights.write_bytes(content)
    assert 'cannot be read' in message(load_weights, weights)


def test_other_files_are_no_weights(tmp_path, weights):
    text = message(load_weights, tmp_path / 'none.h5')
    assert 'does not exist' in text and 'gsrecon m2asr train' in text and '--train' in text
    (tmp_path / 'text.h5').write_text('hello')
    assert 'text.h5' in message(load_weights, tmp_path / 'text.h5')
    with h5py.File(tmp_path / 'field.h5', 'w') as file:
        file.attrs.update(format='bids_gsrecon.field', version=1, metadata='{}')
    assert 'is not a file of m2asr weights' in message(load_weights, tmp_path / 'field.h5')
    with h5py.File(weights, 'a') as file:
        file.attrs['version'] = 99
    assert 'newer version' in message(load_weights, weights)


def test_another_version_of_network_or_card_is_refused(tmp_path):
    text = message(load_weights, save_weights(tmp_path / 'a.h5', fake_model(format=99)))
    assert 'another version' in text and 'train again' in text
    model = fake_model()
    path = save_weights(tmp_path / 'b.h5', model)
    with h5py.File(path, 'a') as file:
        file.attrs['metadata'] = file.attrs['metadata'].replace('"window"', '"windows"')
    assert 'another version' in message(load_weights, path)


def test_weights_of_another_size_or_without_numbers_are_refused(tmp_path):
    model = fake_model()
    model.config = fake_model('small').config
    assert 'another size' in message(load_weights, save_weights(tmp_path / 'a.h5', model))
    model = fake_model()
    name = next(iter(model.state))
    model.state[name] = model.state[name] * float('nan')
    assert 'NaN' in message(load_weights, save_weights(tmp_path / 'b.h5', model))
    del model.state[name]
    assert 'another size' in message(load_weights, save_weights(tmp_path / 'c.h5', model))


@pytest.fixture
def checkpoint(tmp_path):
    return CheckpointFile(
        tmp_path / 'net_checkpoint.pt', {'size': 'tiny', 'random seed': 3, 'factors': (1.0, 4.0)}
    )


def test_a_checkpoint_comes_back_as_it_was(checkpoint):
    assert checkpoint.load() is None
    checkpoint.save(STATE)
    checkpoint.save({**STATE, 'step': 8})
    again = checkpoint.load()
    assert torch.equal(again.pop('model')['a'], STATE['model']['a'])
    assert again == {**{k: v for k, v in STATE.items() if k != 'model'}, 'step': 8}
    assert [path.name for path in checkpoint.path.parent.iterdir()] == [checkpoint.path.name]
    checkpoint.remove()
    assert checkpoint.load() is None


@pytest.mark.parametrize('share', [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_sentence(checkpoint, share):
    checkpoint.save(STATE)
    content = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(content[: int(share * len(content))])
    text = message(checkpoint.load)
    assert str(checkpoint.path) in text and 'delete it to start over' in text


def test_a_damaged_checkpoint_is_noticed(checkpoint):
    checkpoint.save({'model': {'a': torch.full((5000,), 1.5)}})
    content = bytearray(checkpoint.path.read_bytes())
    where = content.find(np.full(4, 1.5, np.float32).tobytes())
    content[where + 100] ^= 0xFF
    checkpoint.path.write_bytes(content)
    assert 'damaged' in message(checkpoint.load)


def test_a_checkpoint_of_another_training_is_refused_and_says_why(checkpoint):
    checkpoint.save(STATE)
    other = CheckpointFile(checkpoint.path, {**checkpoint.run, 'size': 'small'})
    text = message(other.load)
    assert 'size "tiny" there, "small" now' in text and 'factors' not in text


def test_nothing_in_a_checkpoint_is_executed(checkpoint, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'owned'),)

    torch.save({'format': m2asr_files.CHECKPOINT, 'state': Evil()}, checkpoint.path)
    assert 'no checkpoint' in message(checkpoint.load)
    checkpoint.path.write_bytes(pickle.dumps(Evil()))
    assert 'delete it' in message(checkpoint.load)
    with zipfile.ZipFile(checkpoint.path, 'w') as archive:
        archive.writestr('a', 'b')
    assert 'delete it' in message(checkpoint.load)
    assert not (tmp_path / 'owned').exists()


def test_a_save_that_fails_leaves_the_last_one(checkpoint, monkeypatch):
    checkpoint.save(STATE)

    def full(content, path):
        with open(path, 'wb') as file:
            file.write(b'half')
        raise RuntimeError('PytorchStreamWriter failed writing file')

    monkeypatch.setattr(torch, 'save', full)
    assert 'cannot be written' in message(checkpoint.save, {'step': 9})
    assert checkpoint.load()['step'] == 7
    assert [path.name for path in checkpoint.path.parent.iterdir()] == [checkpoint.path.name]
