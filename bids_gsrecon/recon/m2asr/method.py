"""GaussM2ASR: training, and use on whole volumes."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import numpy as np
import torch

from bids_gsrecon.gpu import thread_limit
from bids_gsrecon.imaging.kspace_crop import in_plane_axes
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.m2asr.config import SIZES
from bids_gsrecon.recon.m2asr.network import Network, n_parameters
from bids_gsrecon.recon.m2asr.samples import Sampler, Subject
from bids_gsrecon.recon.m2asr.synthetic import LabelMap
from bids_gsrecon.recon.m2asr.training import Trainer, choose_device, process_group
from bids_gsrecon.recon.m2asr.types import (
    CARD_FORMAT,
    Applied,
    Checkpoint,
    Model,
    Pair,
    Store,
    TrainingOptions,
)
from bids_gsrecon.recon.m2asr.volumes import SCORED_SCALES, scores, sharpen
from bids_gsrecon.recon.progress import Progress

LARGEST = 6.0
"""In-plane factor beyond which nothing is known of the method, nor published."""
LIKE = 1.2
"""Ratio of voxels or fields of view beyond which an image is not like those of the training."""


def train(
    pairs: Sequence[Pair],
    options: TrainingOptions | None = None,
    *,
    labels: Sequence[LabelMap] = (),
    checkpoint: Checkpoint | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Model:
    """Train a network on pairs.

    Coarse inputs are made from the sharp targets on the fly: the central block of the k-space of every slice, padded
    with zeros. Under ``torchrun`` (``WORLD_SIZE`` > 1 in the environment) every process works on draws of its own and
    gradients are averaged; all return the same model, and the one of rank 0 saves the checkpoint.

    Parameters
    ----------
    pairs
        Training and validation pairs together (`TrainingOptions.validation_subjects` tells which are which); looked at
        one by one, so that a sequence that reads them from files needs the memory of one.
    options
        Every choice; default: `TrainingOptions()`.
    labels
        What `TrainingOptions.synthetic_fraction` makes contrasts of; none: tissue classes of the pairs themselves.
    checkpoint
        Where to resume from and to save to, also when a `KeyboardInterrupt` ends the training; a resumed training of so
        many steps equals the undisturbed one.
    store
        Where prepared slices are kept, to be read when they are drawn; none: in memory. The draws are the same.
    progress
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    ValueError
        No training pair, slices too small.
    UnfitCheckpointError
        A checkpoint of another training.
    """
    options = options or TrainingOptions()
    report = progress or (lambda stage, done, total: None)
    names = pairs.subjects if hasattr(pairs, 'subjects') else [p.subject for p in pairs]
    held_out = [n for n, name in enumerate(names) if name in options.validation_subjects]
    if len(held_out) == len(names):
        raise ValueError('no pair is left to train on: give more subjects, or hold out fewer')
    size = SIZES[options.size]
    network, schedule = options.network or size.network, options.schedule or size.schedule
    device = choose_device(options.device)
    with thread_limit(options.n_threads), process_group(device):
        sampler = _sampler(pairs, labels, network, schedule.batch, options, held_out, store, report)
        trainer = Trainer(network, schedule, options, sampler, device)
        trainer.run(checkpoint, lambda done, total: report('training', done, total))
        averaged = trainer.averaged().to(device)
        report('scoring', 0, 1)
        low, high = options.scales
        scales = [s for s in SCORED_SCALES if low < s <= high]
        table = scores(averaged, [lambda n=n: pairs[n] for n in held_out], scales) if held_out else {}
        report('scoring', 1, 1)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in averaged.state_dict().items()}
    return Model(network, state, _card(trainer, {names[n] for n in held_out}, options, table))


def _sampler(
    pairs, labels, network, batch: int, options: TrainingOptions, held_out=(), store=None, report=None
) -> Sampler:
    """Of the pairs that are not held out, cut and normalised."""
    fraction, patch = options.synthetic_fraction, network.patch
    with_labels = fraction > 0 and not labels
    subjects, contrasts = [], set()
    for n in range(len(pairs)):
        if n in held_out:
            contrasts.add(pairs[n].reference_contrast)
        else:
            name = f'{n:05d}-{patch}{"-labels" if with_labels else ""}'
            subjects.append(Subject.kept(store, name, lambda: Subject.of(pairs[n], patch, with_labels)))  # noqa: B023
            contrasts.add(subjects[-1].facts['reference_contrast'])
        if report is not None:
            report('preparing slices', n + 1, len(pairs))
    if len(contrasts) > 1:
        raise ValueError('the pairs have different reference contrasts: train one model for each')
    made_up = [Subject.of_labels(one, patch) for one in labels] if labels else subjects
    if not patch and batch > 1 and len({subject.full for subject in subjects}) > 1:
        raise ValueError('whole slices of different sizes make no batch: choose a size that works on patches')
    return Sampler(subjects, made_up, patch, batch, fraction, options.seed, options.synthetic_weight)


def _card(trainer: Trainer, held_out: set[str], options: TrainingOptions, table: dict) -> dict:
    used = [subject.facts for subject in trainer.sampler.subjects]
    voxels, fields = ([v for facts in used for v in facts[key]] for key in ('voxel_mm', 'field_of_view_mm'))
    warnings = []
    if not held_out:
        one = len({facts['subject'] for facts in used}) == 1
        warnings.append(
            'Trained on one subject: there is no held-out score, and other heads may look different.'
            if one
            else 'No subject was held out: there is no score of what the model does with new subjects.'
        )
    return {
        'format': CARD_FORMAT,
        'size': options.size,
        'n_parameters': n_parameters(trainer.network),
        'scales': [float(s) for s in options.scales],
        'contrasts': sorted({facts['contrast'] for facts in used if facts['contrast']}),
        'reference_contrast': used[0]['reference_contrast'],
        'voxel_mm': [round(min(voxels), 4), round(max(voxels), 4)],
        'field_of_view_mm': [round(min(fields), 1), round(max(fields), 1)],
        'subjects': sorted({facts['subject'] for facts in used}),
        'validation_subjects': sorted(held_out),
        'steps': trainer.step,
        'minutes': round(trainer.minutes, 3),
        'seed': options.seed,
        'synthetic_fraction': options.synthetic_fraction,
        'losses': {'training': round(trainer.loss, 6)},
        'scores': table,
        'warnings': warnings,
        'versions': {
            'torch': str(torch.__version__),
            'numpy': np.__version__,
            'python': platform.python_version(),
        },
    }


def apply(
    model: Model,
    reference: np.ndarray,
    reference_lattice: Lattice,
    target: np.ndarray,
    target_lattice: Lattice,
    *,
    mask: np.ndarray | None = None,
    slice_axis: int | None = None,
    contrast: str = '',
    n_threads: int = 0,
    device: str = 'auto',
    progress: Progress | None = None,
) -> Applied:
    """Bring a target to the grid of its reference, slice by slice.

    Parameters
    ----------
    model
        Of `train`.
    reference, reference_lattice
        (X, Y, Z) and its grid: the grid of the result.
    target, target_lattice
        The coarse image: the same field of view and slices, directions alike, coarser in plane by any factors.
    mask
        (X, Y, Z) bool on the reference's grid: slices without any of it are only zero-filled; none: everything counts.
    slice_axis
        Array axis across slices; none: the axis along which both grids have the same voxels.
    contrast
        BIDS suffix of the target, if known, for the warning about contrasts that the model has not seen.
    n_threads
        0: all that are available.
    device
        ``auto``, ``cpu`` or ``cuda``.
    progress
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    ValueError
        Fields of view or slices that do not fit, a factor outside (1, 6], values that are not finite.
    """
    for name, image, lattice in (
        ('its reference', reference, reference_lattice),
        ('it', target, target_lattice),
    ):
        if np.shape(image) != lattice.shape:
            raise ValueError(f'{name} has the shape {np.shape(image)}, not that of its grid {lattice.shape}')
        if not np.isfinite(image).all():
            raise ValueError(f'{name} holds NaN or infinite values: replace them')
        if np.min(image) == np.max(image):
            raise ValueError(f'{name} has one value everywhere: there is nothing to sharpen')
    if mask is not None:
        mask = np.asarray(mask) > 0
        if mask.shape != reference_lattice.shape:
            raise ValueError('its mask is not on the grid of its reference')
    if slice_axis is None:
        slice_axis = find_slice_axis(reference_lattice, target_lattice)
    scale = check_grids(reference_lattice, target_lattice, slice_axis)
    warnings = unlike(model.card, reference_lattice, slice_axis, scale, contrast)
    report = progress or (lambda stage, done, total: None)
    where = choose_device(device)
    with thread_limit(n_threads):
        network = build(model).to(where)
        image, filled = sharpen(
            network, np.asarray(target, np.float32), target_lattice, np.asarray(reference, np.float32),
            reference_lattice, slice_axis, mask=mask, progress=lambda d, n: report('slices', d, n),
        )  # fmt: skip
    return Applied(image.astype(np.float32), filled, warnings, scale)


def build(model: Model) -> Network:
    """The network of a model, ready for use, on the CPU.

    Raises
    ------
    ValueError
        Weights that do not fit the configuration.
    """
    network = Network(model.config)
    try:
        network.load_state_dict(model.state)
    except RuntimeError as error:
        raise ValueError(
            'the weights are of another size or version of the network: train them again'
        ) from error
    return network.to(memory_format=torch.channels_last).eval()


def find_slice_axis(reference: Lattice, target: Lattice) -> int:
    """Array axis along which both grids have the same voxels; of several the one with the thickest.

    Raises
    ------
    ValueError
        There is none.
    """
    ratio = target.voxel_sizes_mm / reference.voxel_sizes_mm
    same = [a for a in range(3) if target.shape[a] == reference.shape[a] and abs(ratio[a] - 1) < 0.01]
    if not same:
        raise ValueError(
            'it and its reference share no slices, along one axis both need the same voxels: resample the'
            ' reference to its slices first'
        )
    return max(same, key=lambda a: (round(float(reference.voxel_sizes_mm[a]), 3), a))


def check_grids(reference: Lattice, target: Lattice, slice_axis: int) -> tuple[float, float]:
    """The in-plane factors, in array order.

    Raises
    ------
    ValueError
        Directions, slices or fields of view that do not fit, factors outside (1, 6].
    """
    matrix = target.world_to_voxel @ reference.affine
    diagonal = np.diag(matrix[:3, :3])
    turned = np.abs((matrix[:3, :3] - np.diag(diagonal)) * np.array(reference.shape)).max() > 0.25
    if turned or (diagonal <= 0).any():
        raise ValueError(
            'its axes and those of its reference point in different directions: resample the reference to its'
            ' directions first'
        )
    same_slices = (
        target.shape[slice_axis] == reference.shape[slice_axis]
        and abs(diagonal[slice_axis] - 1) < 0.01
        and abs(matrix[slice_axis, 3]) < 0.25
    )
    if not same_slices:
        raise ValueError(
            'it and its reference differ in their slices: resample the reference to its slices first'
        )
    axes = in_plane_axes(slice_axis)
    factors = tuple(float(1 / diagonal[a]) for a in axes)
    if min(factors) < 0.999 or max(factors) <= 1.001 or max(factors) > LARGEST + 1e-3:
        raise ValueError(
            f'it is {factors[0]:.3g} x {factors[1]:.3g} times as coarse as its reference in plane: the factors'
            f' must be 1 at least, {LARGEST:g} at most and not both 1'
        )
    for a in axes:
        first, last = matrix[a, 3] - diagonal[a] / 2, matrix[a, 3] + diagonal[a] * (reference.shape[a] - 0.5)
        if abs(first + 0.5) > 0.75 or abs(last - (target.shape[a] - 0.5)) > 0.75:
            raise ValueError(
                'it and its reference have different fields of view: crop or pad the reference to its own'
            )
    return factors


def unlike(card: dict, lattice: Lattice, slice_axis: int, scale, contrast: str) -> list[str]:
    """One sentence for each way in which an image is not like those of the training."""
    found = []
    low, high = card['scales']
    if max(scale) > high + 0.02 or min(scale) < low - 0.02:
        found.append(
            f'The in-plane factors {scale[0]:.3g} x {scale[1]:.3g} are outside those of the training,'
            f' {low:g} to {high:g}.'
        )
    if max(scale) / min(scale) > 1.05:
        found.append('The in-plane factors differ: the model was trained on equal ones.')
    if contrast and card['contrasts'] and contrast not in card['contrasts']:
        found.append(
            f'The model was not trained on {contrast} images, only on {", ".join(card["contrasts"])}.'
        )
    axes = list(in_plane_axes(slice_axis))
    voxels = lattice.voxel_sizes_mm[axes]
    fields = voxels * np.array(lattice.shape)[axes]
    for values, key, name in ((voxels, 'voxel_mm', 'voxels'), (fields, 'field_of_view_mm', 'field of view')):
        low, high = card[key]
        if values.min() < low / LIKE or values.max() > high * LIKE:
            found.append(
                f'The {name} of {values[0]:.3g} x {values[1]:.3g} mm in plane are outside those of the training,'
                f' {low:g} to {high:g} mm.'
            )
    return found
