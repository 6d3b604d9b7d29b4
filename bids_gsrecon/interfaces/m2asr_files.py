"""Weights and checkpoints of GaussM2ASR: they appear whole, and are read without executing anything in them."""

from __future__ import annotations

import errno
import json
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_gsrecon.atomic import write_atomically
from bids_gsrecon.errors import InputError
from bids_gsrecon.fields.hdf5 import opened, written
from bids_gsrecon.recon.m2asr.config import NetworkConfig
from bids_gsrecon.recon.m2asr.types import CARD_FORMAT, Model

WEIGHTS, CHECKPOINT = 'bids_gsrecon.m2asr.weights', 'bids_gsrecon.m2asr.checkpoint'
VERSION = 1
HOW_TO_GET_WEIGHTS = (
    'none are shipped, as they depend on contrasts and scanners: train them with "bids_gsrecon BIDS_DIR OUTPUT_DIR '
    'group --recon m2asr --train" or "gsrecon m2asr train --pair T1W T2W -o FILE", or take a file that somebody else '
    'trained so'
)


def save_weights(path, model: Model) -> Path:
    """Write a trained network, with its card (HDF5); appears atomically."""
    metadata = {'config': model.config.to_dict(), 'card': model.card}
    with written(path, WEIGHTS, VERSION, metadata) as file:
        for name, tensor in model.state.items():
            values = tensor.detach().cpu().numpy()
            file.create_dataset(
                f'state/{name}', data=values, **({'fletcher32': True} if values.shape else {})
            )
    return Path(path)


def load_weights(path) -> Model:
    """Read what `save_weights` wrote.

    Raises
    ------
    InputError
        Missing, truncated or damaged file, not one of ours, of another version, or whose weights are not those of the
        network that it names.
    """
    import torch

    state: dict[str, torch.Tensor] = {}
    with _weights(path) as (file, config, card):
        for name, values in file['state'].items():
            state[name] = torch.from_numpy(np.asarray(values[()]))
    _check_state(path, config, state)
    return Model(config, state, card)


def read_card(path) -> dict:
    """The card of weights alone.

    Raises
    ------
    InputError
        As `load_weights`, as far as it is read.
    """
    with _weights(path) as (_, _, card):
        return card


@contextmanager
def _weights(path) -> Iterator[tuple]:
    """The open file, the network that it names, and its card."""
    if not Path(path).is_file():
        raise InputError(f'{path} does not exist: check the path of the weights; {HOW_TO_GET_WEIGHTS}.')
    kind = {'what': 'file of m2asr weights', 'example': 'file that a training wrote'}
    with opened(path, WEIGHTS, VERSION, **kind) as (file, metadata):
        yield file, *_described(path, metadata)


def _described(path, metadata: dict) -> tuple[NetworkConfig, dict]:
    """Network and card, where this version knows them."""
    try:
        card = dict(metadata['card'])
        if card['format'] != CARD_FORMAT:
            raise ValueError(f'its card has the format {card["format"]}, this version reads {CARD_FORMAT}')
        return NetworkConfig.from_dict(metadata['config']), card
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'{path} was written by another version of bids_gsrecon ({error}): train again, or use that version.'
        ) from error


def _check_state(path, config: NetworkConfig, state: dict) -> None:
    """Names and shapes of the weights are those of the network, and all of them are numbers."""
    import torch

    from bids_gsrecon.recon.m2asr.network import Network

    with torch.device('meta'):
        wanted = Network(config).state_dict()
    if {name: tuple(t.shape) for name, t in state.items()} != {n: tuple(t.shape) for n, t in wanted.items()}:
        raise InputError(
            f'{path} holds weights of another size than the network that it names: take the file from its source '
            'again, or train again.'
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise InputError(f'{path} holds weights that are no numbers (NaN): train again.')


@dataclass(frozen=True)
class CheckpointFile:
    """Where a training that is cut short leaves off: a file that always holds one whole state.

    Attributes
    ----------
    path
        The file.
    run
        What makes a training another one, JSON-able: its size, seed, pairs, split. A checkpoint of another is refused.
    """

    path: Path
    run: dict[str, Any]

    def load(self) -> dict | None:
        """What was saved last; None if there is nothing.

        Raises
        ------
        InputError
            Truncated or damaged, of another version, or of a training with other data or settings.
        """
        if not Path(self.path).exists():
            return None
        content = _load_checkpoint(self.path)
        theirs, ours = json.loads(content['run']), json.loads(json.dumps(self.run))
        names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        if names:
            different = '; '.join(
                f'{n} {_short(theirs.get(n))} there, {_short(ours.get(n))} now' for n in names
            )
            raise InputError(
                f'{self.path} is the checkpoint of another training ({different}): delete it to start over, or train '
                'with what it was begun with.'
            )
        return content['state']

    def save(self, state: dict) -> None:
        """Keep ``state`` in place of the last."""
        import torch

        content = {'format': CHECKPOINT, 'version': VERSION, 'run': json.dumps(self.run), 'state': state}

        def write(temporary) -> None:
            try:
                torch.save(content, temporary)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(errno.ENOSPC, 'no space left') from error

        write_atomically(self.path, write)

    def remove(self) -> None:
        """The training is done."""
        Path(self.path).unlink(missing_ok=True)


def _load_checkpoint(path) -> dict:
    """The content of a checkpoint; nothing but numbers, text and tensors is ever made of what it holds."""
    import torch

    foreign = InputError(f'{path} is no checkpoint of an m2asr training: delete it to start over.')
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f'{path} is damaged: delete it to start over.')
        content = torch.load(path, map_location='cpu', weights_only=True)
    except zipfile.BadZipFile as error:
        raise InputError(f'{path} is truncated or no checkpoint at all: delete it to start over.') from error
    except pickle.UnpicklingError as error:
        raise foreign from error
    except (OSError, RuntimeError, EOFError, zlib.error) as error:
        raise InputError(
            f'{path} cannot be read ({type(error).__name__}): delete it to start over.'
        ) from error
    if not isinstance(content, dict) or content.get('format') != CHECKPOINT or 'state' not in content:
        raise foreign
    if content.get('version') != VERSION:
        raise InputError(f'{path} was written by another version of bids_gsrecon: delete it to start over.')
    return content


def _short(value) -> str:
    text = 'nothing' if value is None else json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
