"""Training to the end: split, checkpoint, weights and card, for pairs from wherever they are."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bids_gsrecon.cli.staging import staged
from bids_gsrecon.errors import InputError, about
from bids_gsrecon.recon.m2asr.synthetic import LabelMap
from bids_gsrecon.recon.m2asr.types import Model, Pair, TrainingOptions, UnfitCheckpointError

if TYPE_CHECKING:
    from bids_gsrecon.interfaces.m2asr_slices import SliceStore

PROGRAM_GB = 1.0
BYTES_PER_VOXEL = (
    40  # of the largest pair while its slices are prepared: as it is, cut and normalised, tissue classes
)


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
    slices
        Folder of prepared slices; gone when it is done.
    """

    weights: Path
    checkpoint: Path
    split: Path
    slices: Path

    @classmethod
    def of(cls, weights, split='', work_dir='') -> TrainingFiles:
        """Named after the weights; ``split`` may lie elsewhere, and slices in ``work_dir``."""
        weights = Path(weights)
        beside = {
            name: weights.with_name(f'{weights.stem}_{name}')
            for name in ('checkpoint.pt', 'split.tsv', 'slices')
        }
        # Of two weights of one name in other folders each has its own.
        place = digest_of([weights.resolve()])
        slices = Path(work_dir) / 'm2asr_slices' / f'{weights.stem}-{place}' if work_dir else beside['slices']
        return cls(weights, beside['checkpoint.pt'], Path(split or beside['split.tsv']), slices)

    @property
    def all(self) -> tuple[Path, ...]:
        cards = [self.weights.with_name(f'{self.weights.stem}_card.{end}') for end in ('json', 'md')]
        return (self.weights, self.checkpoint, self.split, *cards)


def is_main_process() -> bool:
    """Of several under ``torchrun`` the one that writes and speaks; a process by itself is."""
    return int(os.environ.get('RANK', 0)) == 0


def lock_file(weights: Path) -> Path:
    """Of the training that writes these weights."""
    return weights.with_name(f'.lock-{weights.stem}')


@contextmanager
def locked(weights: Path) -> Iterator[None]:
    """No other training writes these weights in the meantime.

    Raises
    ------
    InputError
        One does.
    """
    from bids_gsrecon.cli.locks import Locks

    locks = Locks(f'of process {os.getpid()}')
    holder = locks.acquire([lock_file(weights)]) if is_main_process() else ''
    if holder:
        raise InputError(f'{weights} {holder}: wait for its end, or choose another file.')
    try:
        yield
    finally:
        locks.release()


def prepare_store(
    boxes: list[tuple[int, int]], files: TrainingFiles, digest: str, *, with_labels: bool
) -> tuple[SliceStore, float]:
    """Where slices are kept, its disk looked at, and GB that it will take; ``boxes`` as `prepared_bytes` takes them.

    Of several processes on one machine the first prepares; the others read.

    Raises
    ------
    InputError
        The disk has not enough space.
    """
    from bids_gsrecon.interfaces.m2asr_slices import SliceStore, prepared_bytes

    store = SliceStore(files.slices, digest, waits=int(os.environ.get('LOCAL_RANK', 0)) > 0)
    n_bytes = prepared_bytes(boxes, labels=with_labels)
    if not store.waits:
        store.keep_only_own()
        store.check_space(n_bytes)
    return store, n_bytes / 1e9


def train_and_write(
    pairs: Sequence[Pair],
    options: TrainingOptions,
    files: TrainingFiles,
    *,
    data: list[dict],
    digest: str,
    store: SliceStore | None = None,
    labels: Sequence[LabelMap] = (),
    progress=None,
) -> Model:
    """Train (or go on training), then write weights and card together; checkpoint and slices go last.

    Parameters
    ----------
    pairs, options
        As `bids_gsrecon.recon.m2asr.train` takes them.
    data
        For the card: where each pair came from.
    digest
        Of what the pairs (and labels) hold: a checkpoint of others is refused.
    store
        Of `prepare_store`; none: all slices in memory.
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
    with about(files.weights):
        try:
            model = method.train(
                pairs, options, labels=labels, checkpoint=checkpoint, store=store, progress=progress
            )
        except UnfitCheckpointError:
            with about(files.checkpoint):
                raise
    if not is_main_process():
        if store is not None and not store.waits:  # first of another machine, perhaps with a disk of its own
            store.remove()
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
    if store is not None:
        store.remove()
    return model


def check_memory(n_voxels: Iterable[int], held_gb: float, have_gb: float, remedy: str) -> None:
    """Raise `InputError` where the largest of pairs of so many voxels does not fit into the memory that there is."""
    need = needed_gb(n_voxels, held_gb)
    if need > have_gb:
        raise InputError(
            f'training needs about {need:.1f} GB of memory for its largest pair and the limit here is {have_gb:.1f} GB: '
            f'give more ({remedy}).'
        )


def needed_gb(n_voxels: Iterable[int], held_gb: float) -> float:
    """Memory of a training on pairs of so many voxels each, without that of its network."""
    return PROGRAM_GB + held_gb + BYTES_PER_VOXEL * max(n_voxels) / 1024**3


def digest_of(parts: Iterable) -> str:
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
