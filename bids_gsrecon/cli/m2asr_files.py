"""Files in and out of ``gsrecon m2asr``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bids_gsrecon.cli.arguments import image_stem, output_folder, output_image, refuse_overwrite
from bids_gsrecon.cli.m2asr_training import (
    TrainingFiles,
    check_memory,
    digest_of,
    prepare_store,
    weights_path,
)
from bids_gsrecon.cli.method_options import M2ASR_FIELDS
from bids_gsrecon.cli.resources import available_memory_gb
from bids_gsrecon.cli.slices import sidecar_metadata
from bids_gsrecon.cli.staging import staged
from bids_gsrecon.errors import InputError, about
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.support import find_support
from bids_gsrecon.interfaces.headers import check_stack, read_header, slice_axis
from bids_gsrecon.interfaces.io import load_array, load_volume, save_json, save_volume
from bids_gsrecon.interfaces.m2asr_files import HOW_TO_GET_WEIGHTS, load_weights
from bids_gsrecon.interfaces.m2asr_outputs import Application
from bids_gsrecon.interfaces.m2asr_pairs import HELD_GB, LazyPairs, PairFiles, drawn_box, make_pair
from bids_gsrecon.interfaces.m2asr_slices import SliceStore
from bids_gsrecon.interfaces.m2asr_split import HELD_OUT, update_split
from bids_gsrecon.recon.m2asr.synthetic import LabelMap
from bids_gsrecon.recon.m2asr.types import Model, Pair, TrainingOptions
from bids_gsrecon.workflows.collect import ANAT_SUFFIXES

SAME_GRID_MM = 0.05


@dataclass(frozen=True, eq=False)
class TrainingInputs:
    """Everything a training takes; see `bids_gsrecon.cli.m2asr_training.train_and_write`."""

    pairs: LazyPairs
    options: TrainingOptions
    files: TrainingFiles
    data: list[dict]
    digest: str
    store: SliceStore
    labels: list[LabelMap] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class ApplicationInputs:
    """Everything that is needed to apply a network."""

    model: Model
    reference: Volume
    target: Volume
    mask: np.ndarray
    slice_axis: int
    contrast: str
    reference_contrast: str


def read_training(args) -> TrainingInputs:
    """Read and check the input of ``gsrecon m2asr train``; the split is written.

    Raises
    ------
    InputError
        Any input that cannot be used: file, why, remedy.
    """
    if bool(args.pair) == bool(args.pairs):
        raise InputError(
            f'{args.output} cannot be learned from nothing: give registered images of at least one subject with '
            '--pair REFERENCE TARGET, or the folder of pairs that bids_gsrecon made with --pairs.'
            if not args.pair
            else f'{args.pairs[0]} (--pairs) takes the place of --pair: give one of them.'
        )
    if args.labels and not args.synthetic_fraction:
        raise InputError(
            f'{args.labels[0]} (--labels) is used for contrasts that are made up: say how many, --synthetic-fraction 0.2.'
        )
    files = TrainingFiles.of(weights_path(args.output), args.split)
    for path in files.all:
        refuse_overwrite(path, *(path for pair in args.pair or () for path in pair), *(args.labels or ()))
    pairs, boxes, data, digest = _kept_pairs(args) if args.pairs else _given_pairs(args)
    labels = [_read_labels(path) for path in args.labels or ()]
    output_folder(files.weights.parent)
    output_folder(files.split.parent)
    share = HELD_OUT if args.held_out is None else args.held_out
    held_out, warnings = update_split(files.split, pairs.subjects, share=share, seed=args.random_seed)
    given = {name: getattr(args, name) for name in M2ASR_FIELDS.values()}
    with about(files.weights):
        options = TrainingOptions(
            **{name: value for name, value in given.items() if value is not None},
            seed=args.random_seed,
            n_threads=args.threads or 0,
            device=args.device,
            validation_subjects=held_out,
        )
    trained_on = [box for box, subject in zip(boxes, pairs.subjects) if subject not in held_out]
    store, gigabytes = prepare_store(
        trained_on, files, digest, with_labels=options.synthetic_fraction > 0 and not labels
    )
    warnings.append(
        f'prepared slices will take {gigabytes:.2g} GB in {files.slices} until the training is done'
    )
    digest = digest_of([digest, *(one.labels.tobytes() for one in labels)])
    return TrainingInputs(pairs, options, files, data, digest, store, labels, warnings)


def _given_pairs(args) -> tuple[LazyPairs, list[tuple[int, int]], list[dict], str]:
    """Pairs of images, how large they are, where they came from, and a digest of what they hold.

    All are read once, to be checked, and again when they are wanted: not all may fit into memory.
    """
    subjects = subject_names(args.pair)
    motions: dict[int, np.ndarray] = {}  # registered once

    def read(index: int) -> Pair:
        pair, motion = _read_pair(args.pair[index], subjects[index], args, motions.get(index))
        if motion is not None:
            motions[index] = motion
        return pair

    pairs = LazyPairs(subjects, read, held_gb=_held_gb())
    data, boxes, digests = [], [], []
    for n, paths in enumerate(args.pair):
        pair = pairs[n]
        data.append({'subject': pair.subject, 'contrast': pair.contrast, 'files': [str(p) for p in paths]})
        boxes.append(drawn_box(pair))
        digests.append(digest_of([pair.reference.tobytes(), pair.target.tobytes()]))
    return pairs, boxes, data, digest_of(digests)


def _held_gb() -> float:
    """Of pairs in memory: those of a small training all stay."""
    return min(HELD_GB, 0.25 * available_memory_gb())


def _kept_pairs(args) -> tuple[PairFiles, list[tuple[int, int]], list[dict], str]:
    """The same of pairs in a folder; none is read."""
    paths = []
    for path in map(Path, args.pairs):
        paths += sorted(path.glob('*.h5')) if path.is_dir() else [path]
    if not paths:
        raise InputError(
            f'{args.pairs[0]} holds no pairs: make them with bids_gsrecon BIDS_DIR OUTPUT_DIR group --recon m2asr --train '
            'pairs, which puts them into WORK_DIR/m2asr_pairs.'
        )
    pairs = PairFiles(paths, held_gb=_held_gb())
    check_memory(
        [facts.n_voxels for facts in pairs.facts], _held_gb(), available_memory_gb(), 'another machine'
    )
    data = [
        {'subject': facts.subject, 'contrast': facts.contrast, 'files': facts.sources}
        for facts in pairs.facts
    ]
    return pairs, pairs.boxes(), data, digest_of([facts.key for facts in pairs.facts])


def read_application(args) -> ApplicationInputs:
    """Read and check the input of ``gsrecon m2asr apply``, the output folder last.

    Raises
    ------
    InputError
        Any input that cannot be used: file, why, remedy.
    """
    if not args.weights:
        raise InputError(f'{args.target} needs trained weights (--weights FILE); {HOW_TO_GET_WEIGHTS}.')
    inputs = (args.weights, args.reference, args.target)
    for path in output_paths(args.output):
        refuse_overwrite(path, *inputs)
    model = load_weights(args.weights)
    reference, target = load_volume(args.reference), load_volume(args.target)
    axis = _shared_slices(args, reference.lattice, target.lattice)
    output_image(args.output, *inputs)
    return ApplicationInputs(
        model,
        reference,
        target,
        find_support(reference)[0],
        axis,
        contrast_of(args.target),
        contrast_of(args.reference),
    )


def output_paths(output) -> tuple[Path, Path]:
    """The image, and the .json beside it."""
    output = Path(output)
    return output, output.with_name(f'{image_stem(output)}.json')


def write_application(args, inputs: ApplicationInputs, made: Application) -> None:
    """Write the image and its .json, which appear together."""
    from bids_gsrecon import __version__

    image, sidecar = output_paths(args.output)
    content = {
        'Description': 'The same slices with finer pixels, by a trained network that looks at a reference (GaussM2ASR)',
        'GeneratedBy': {'Name': 'bids_gsrecon', 'Version': __version__},
        'Reference': str(args.reference),
        'Target': str(args.target),
        'SliceAxis': inputs.slice_axis,
        'Contrast': inputs.contrast,
        **made.record,
    }
    with staged(image.parent, [sidecar.name]) as folder:
        save_volume(folder / image.name, made.image.data, made.image.affine)
        save_json(folder / sidecar.name, content)


def contrast_of(path) -> str:
    """The BIDS suffix that a file's name ends with; empty: none that is known."""
    last = re.split(r'[_\-.]', image_stem(path))[-1].lower()
    return next((suffix for suffix in ANAT_SUFFIXES if suffix.lower() == last), '')


def subject_names(pairs) -> list[str]:
    """Whose each (reference, target) is: ``sub-<label>`` where a name says so, else named after its reference.

    Pairs with the same reference are of one subject.
    """
    references = [Path(reference).resolve() for reference, _ in pairs]
    names = []
    for (_, target), reference in zip(pairs, references):
        found = re.match(r'(sub-[0-9A-Za-z]+)_', Path(target).name) or re.match(
            r'(sub-[0-9A-Za-z]+)_', reference.name
        )
        same_name = {path for path in references if path.name == reference.name}
        alone = (
            image_stem(reference) if len(same_name) == 1 else f'{reference.parent}/{image_stem(reference)}'
        )
        names.append(found[1] if found else alone)
    return names


def _read_pair(paths, subject: str, args, motion: np.ndarray | None) -> tuple[Pair, np.ndarray | None]:
    """The pair, and target to reference (4x4) where it is registered; ``motion``: that, if it is known already."""
    reference_path, target_path = paths
    reference, target = load_volume(reference_path), load_volume(target_path)
    check_stack(target_path, target.data.shape)
    if args.register == 'rigid' and motion is None:
        from bids_gsrecon.interfaces.registration import register_rigid

        with about(target_path):
            found = register_rigid(
                reference, target, seed=args.random_seed, n_threads=args.threads or os.cpu_count() or 1
            )
        motion = found.moving_to_fixed
    elif args.register != 'rigid' and not target.lattice.same_as(reference.lattice, SAME_GRID_MM):
        raise InputError(
            f'{target_path} lies on another grid than its reference {reference_path}: resample both to one grid, or let '
            'each reference be registered and brought to its target (--register rigid).'
        )
    axis = args.axis
    if axis is None:
        axis, _ = slice_axis(read_header(target_path), sidecar_metadata(target_path))
    with about(target_path):
        pair = make_pair(
            reference,
            target,
            subject=subject,
            contrast=contrast_of(target_path),
            reference_contrast=contrast_of(reference_path) or 'T1w',
            target_to_reference=motion,
            slice_axis=axis,
            mask=find_support(reference)[0],
        )
    return pair, motion


def _read_labels(path) -> LabelMap:
    """A map of whole numbers, two tissues or more.

    Raises
    ------
    InputError
        Anything else.
    """
    data, lattice = load_array(path)
    values = np.unique(data[np.isfinite(data)])
    if (
        not np.isfinite(data).all()
        or (values != np.round(values)).any()
        or values.min() < 0
        or len(values) > 5000
    ):
        raise InputError(f'{path} is no map of labels: give whole numbers, 0 outside.')
    if (values > 0).sum() < 2:
        raise InputError(f'{path} has fewer than two tissues: nothing can be told apart in it.')
    return LabelMap(data, lattice)


def _shared_slices(args, reference: Lattice, target: Lattice) -> int:
    """The stored axis across the slices that both show.

    Raises
    ------
    InputError
        Other directions, slices or field of view.
    """
    names = f'{args.target} and its reference {args.reference}'
    remedy = (
        'bring the reference to the slices of the target first (bids_gsrecon does so), with smaller pixels.'
    )
    sizes = reference.voxel_sizes_mm, target.voxel_sizes_mm
    cosines = [lattice.affine[:3, :3] / size for lattice, size in zip((reference, target), sizes)]
    if np.abs(cosines[0] - cosines[1]).max() > 1e-3:
        raise InputError(f'{names} differ in the direction of their axes: {remedy}')
    box = np.array(reference.shape) * sizes[0], np.array(target.shape) * sizes[1]
    apart = np.abs(reference.centre_mm - target.centre_mm).max()
    # An acquisition may put its first pixel, and not its corner, where the finer one has it.
    if np.abs(box[0] - box[1]).max() > 0.1 * sizes[1].max() or apart > 0.51 * sizes[1].max():
        fields = ' against '.join(' x '.join(f'{length:.4g}' for length in lengths) for lengths in box[::-1])
        raise InputError(
            f'{names} differ in their field of view ({fields} mm, centres {apart:.2g} mm apart): {remedy}'
        )
    same = [
        axis
        for axis in range(3)
        if reference.shape[axis] == target.shape[axis] and abs(sizes[0][axis] / sizes[1][axis] - 1) < 1e-3
    ]
    if args.axis is not None:
        same = [axis for axis in same if axis == args.axis]
    if not same:
        raise InputError(f'{names} have no slices in common (the same number, equally far apart): {remedy}')
    if len(same) == 3:
        raise InputError(f'{names} have pixels of the same size: there is nothing to make finer.')
    return max(same, key=lambda axis: (sizes[0][axis], -reference.shape[axis]))
