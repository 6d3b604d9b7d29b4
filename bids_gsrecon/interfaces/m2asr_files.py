"""Weights and checkpoints of GaussM2ASR: written at once, read without executing anything in them."""

from __future__ import annotations

import errno
import json
import pickle
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_gsrecon.errors import InputError
from bids_gsrecon.interfaces.io import write_atomically
from bids_gsrecon.recon.m2asr.config import NetworkConfig
from bids_gsrecon.recon.m2asr.types import CARD_FORMAT, Model

WEIGHTS, CHECKPOINT = 'bids_gsrecon.m2asr.weights', 'bids_gsrecon.m2asr.checkpoint'
VERSION = 1
_WHAT = {WEIGHTS: 'weights of m2asr', CHECKPOINT: 'a checkpoint of an m2asr training'}
HOW_TO_GET_WEIGHTS = (
    'none are shipped, as they depend on the contrasts and the scanner: train them on pairs of your own with '
    '"bids_gsrecon BIDS_DIR OUTPUT_DIR group --recon m2asr --train" or "gsrecon m2asr train --pair T1W T2W -o FILE", '
    'or take a file that somebody else trained so'
)


def save_weights(path, model: Model) -> Path:
    """Write a trained network, with its card; appears atomically."""
    content = {
        'format': WEIGHTS,
        'version': VERSION,
        'config': json.dumps(model.config.to_dict()),
        'card': json.dumps(model.card),
        'state': {name: tensor.detach().cpu().contiguous() for name, tensor in model.state.items()},
    }
    return _save(path, content)


def load_weights(path) -> Model:
    """Read what `save_weights` wrote.

    Raises
    ------
    InputError
        Missing, truncated or damaged file, not one of ours, of another version, or whose weights are not those of the
        network that it names.
    """
    content = _load(path, WEIGHTS, f'{path} does not exist: check the path of the weights ({HOW_TO_GET_WEIGHTS}).')
    try:
        values, card = json.loads(content['config']), json.loads(content['card'])
        state = dict(content['state'])
        number = card['format']
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'{path} lacks a part of its weights ({error!r}): copy it again, or train again.') from error
    try:
        if number != CARD_FORMAT:
            raise ValueError(f'its card has the format {number}, this version reads {CARD_FORMAT}')
        config = NetworkConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise InputError(
            f'{path} was written by another version of bids_gsrecon ({error}): train again, or use that version.'
        ) from error
    _check_state(path, config, state)
    return Model(config, state, card)


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
        content = _load(self.path, CHECKPOINT)
        try:
            theirs, state = json.loads(content['run']), content['state']
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f'{self.path} lacks a part of the checkpoint: delete it to start over.') from error
        ours = json.loads(json.dumps(self.run))
        names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        if names:
            different = '; '.join(f'{n} {_short(theirs.get(n))} there, {_short(ours.get(n))} now' for n in names)
            raise InputError(
                f'{self.path} is the checkpoint of another training ({different}): delete it to start over, or train '
                'with what it was begun with.'
            )
        return state

    def save(self, state: dict) -> None:
        """Keep ``state`` in place of the last."""
        content = {'format': CHECKPOINT, 'version': VERSION, 'run': json.dumps(self.run), 'state': state}
        _save(self.path, content)

    def remove(self) -> None:
        """The training is done."""
        Path(self.path).unlink(missing_ok=True)


def _save(path, content: dict) -> Path:
    import torch

    def write(temporary) -> None:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(errno.ENOSPC, 'the disk is full') from error

    path = Path(path)
    write_atomically(path, write)
    return path


def _load(path, kind: str, missing: str = '') -> dict:
    """The content of a file of ours; nothing but numbers, text and tensors is ever made of what it holds."""
    import torch

    path, what = Path(path), _WHAT[kind]
    if not path.is_file():
        raise InputError(missing or f'{path} is no file: check the path.')
    remedy = 'delete it to start over' if kind == CHECKPOINT else 'copy it again, or train again'
    foreign = f'{path} does not hold {what}: give a file that "gsrecon m2asr train" or the group level wrote.'
    try:
        with path.open('rb') as file:
            start = file.read(4)
        if start and start != b'PK\x03\x04':
            raise InputError(foreign)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f'{path} is damaged: {remedy}.')
        content = torch.load(path, map_location='cpu', weights_only=True)
    except zipfile.BadZipFile as error:
        raise InputError(f'{path} is truncated: {remedy}.') from error
    except pickle.UnpicklingError as error:
        raise InputError(foreign) from error
    except (OSError, RuntimeError, EOFError, zlib.error) as error:
        raise InputError(f'{path} cannot be read ({type(error).__name__}): {remedy}.') from error
    if not isinstance(content, dict) or content.get('format') != kind:
        raise InputError(foreign)
    if content.get('version') != VERSION:
        raise InputError(
            f'{path} has version {content.get("version")} of the file format, this version of bids_gsrecon reads '
            f'{VERSION}: {"delete it to start over" if kind == CHECKPOINT else "train again, or use the version that wrote it"}.'
        )
    return content


def _check_state(path, config: NetworkConfig, state: dict) -> None:
    """Names and shapes of the weights are those of the network, and all of them are numbers."""
    import torch

    from bids_gsrecon.recon.m2asr.network import build

    with torch.device('meta'):
        wanted = build(config).state_dict()
    if {name: tuple(t.shape) for name, t in state.items()} != {n: tuple(t.shape) for n, t in wanted.items()}:
        raise InputError(
            f'{path} holds weights of another size than it says: train again, or take the file from its source again.'
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise InputError(f'{path} holds weights that are no numbers (NaN): train again.')


def _short(value) -> str:
    text = 'nothing' if value is None else json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
