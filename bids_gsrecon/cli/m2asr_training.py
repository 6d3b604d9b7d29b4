"""Training to the end: split, checkpoint, weights and card, for pairs from wherever they are."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_gsrecon.cli.staging import staged
from bids_gsrecon.errors import InputError
from bids_gsrecon.recon.m2asr.synthetic import LabelMap
from bids_gsrecon.recon.m2asr.types import Model, Pair, TrainingOptions

PROGRAM_GB = 1.0
BYTES_PER_VOXEL = 20  # of a pair while it is trained on: two images as they are, and cut and normalised


@dataclass(frozen=True)
class TrainingFiles:
    """Everything a training writes.

    Attributes
    ----------
    weights
        The network, ``<stem>.h5``; beside it ``<stem>_card.json`` and ``<stem>_card.md``.
    checkpoint
        Where a training that was cut short goes on; gone when it is done.
    split
        Who is held out.
    """

    weights: Path
    checkpoint: Path
    split: Path

    @classmethod
    def of(cls, weights, split='') -> TrainingFiles:
        """Named after the weights; ``split`` may lie elsewhere."""
        weights = Path(weights)
        checkpoint = weights.with_name(f'{weights.stem}_checkpoint.pt')
        return cls(weights, checkpoint, Path(split or weights.with_name(f'{weights.stem}_split.tsv')))

    @property
    def all(self) -> tuple[Path, ...]:
        cards = [self.weights.with_name(f'{self.weights.stem}_card.{end}') for end in ('json', 'md')]
        return (self.weights, self.checkpoint, self.split, *cards)


def is_main_process() -> bool:
    """Of several under ``torchrun`` the one that writes and speaks; a process by itself is."""
    return int(os.environ.get('RANK', 0)) == 0


def train_and_write(
    pairs: Sequence[Pair],
    options: TrainingOptions,
    files: TrainingFiles,
    *,
    data: list[dict],
    digest: str,
    labels: Sequence[LabelMap] = (),
    progress=None,
) -> Model:
    """Train (or go on training), then write weights and card together; the checkpoint goes last.

    Parameters
    ----------
    pairs, options
        As `bids_gsrecon.recon.m2asr.train` takes them.
    data
        For the card: where each pair came from.
    digest
        Of what the pairs (and labels) hold: a checkpoint of others is refused.
    labels
        As `train` takes them.

    Raises
    ------
    InputError
        As `train`; a checkpoint that cannot be used; a folder that cannot be written.
    """
    from bids_gsrecon import __version__
    from bids_gsrecon.interfaces.m2asr_card import write_card
    from bids_gsrecon.interfaces.m2asr_files import CheckpointFile, save_weights
    from bids_gsrecon.interfaces.m2asr_relation import relation_of
    from bids_gsrecon.recon.m2asr import method

    run = {
        'size': options.size,
        'random seed': options.seed,
        'factors': list(options.scales),
        'share of made-up contrasts': options.synthetic_fraction,
        'held out': list(options.validation_subjects),
        'pairs': digest,
    }
    checkpoint = CheckpointFile(files.checkpoint, run)
    try:
        model = method.train(pairs, options, labels=labels, checkpoint=checkpoint, progress=progress)
    except InputError as error:
        if str(error).startswith('The checkpoint'):  # the method knows no files
            raise InputError(f'{files.checkpoint}: {error}') from error
        raise
    if not is_main_process():
        return model
    relations = [relation_of(pairs[n]) for n in range(len(pairs))]
    if relations := [value for value in relations if math.isfinite(value)]:
        model.card['edge_correlation'] = [round(min(relations), 3), round(max(relations), 3)]
    model.card['data'] = data
    model.card['versions'] = {**model.card.get('versions', {}), 'bids_gsrecon': __version__}
    with staged(files.weights.parent) as folder:
        save_weights(folder / files.weights.name, model)
        write_card(folder, files.weights.stem, model.card)
    checkpoint.remove()
    return model


def check_memory(n_voxels: int, have_gb: float, remedy: str) -> None:
    """Raise `InputError` where pairs of so many voxels do not fit into the memory that there is."""
    need = PROGRAM_GB + BYTES_PER_VOXEL * n_voxels / 1024**3
    if need > have_gb:
        raise InputError(
            f'the pairs need about {need:.1f} GB of memory to train on and the limit here is {have_gb:.1f} GB: give more '
            f'({remedy}), or train on fewer participants.'
        )


def digest_of(parts: Sequence) -> str:
    """A short fingerprint of bytes or texts, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode())
    return digest.hexdigest()[:16]


def weights_path(path) -> Path:
    """Where to write weights: .h5 is added to a name without ending.

    Raises
    ------
    InputError
        Another ending, or a folder.
    """
    path = Path(path)
    path = path if path.suffix else path.with_name(f'{path.name}.h5')
    if path.suffix != '.h5':
        raise InputError(f'{path} does not end in .h5: name the file of weights so.')
    if path.is_dir():
        raise InputError(f'{path} is a folder: name the file of weights otherwise.')
    return path


def score_text(card: dict) -> str:
    """The score at the largest factor, in a few words; empty where nobody was held out."""
    scores = card.get('scores')
    if not scores:
        return ''
    factor = max(scores, key=float)
    ours, before = (scores[factor][name] for name in ('psnr_db', 'zero_filled_db'))
    return f'held out x{factor}: {ours:.2f} dB (zero-filled {before:.2f})'
