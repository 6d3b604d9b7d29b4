"""Files in and out of ``gsrecon cine``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bids_gsrecon.cli.arguments import image_stem, output_image, refuse_overwrite
from bids_gsrecon.cli.staging import staged
from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.kspace import CineKSpace
from bids_gsrecon.interfaces.cine_io import load_cine_kspace, save_table, stack_affine
from bids_gsrecon.interfaces.cine_outputs import (
    MAX_FULL_ACCELERATION,
    MOTION_MAPS,
    RETRO_COLUMNS,
    load_labels,
    record,
    write_roi,
    write_series,
)
from bids_gsrecon.interfaces.io import save_json
from bids_gsrecon.recon.cine import CineOptions


@dataclass(frozen=True, eq=False)
class CineInputs:
    """Slices, labels (x, y, slice) or None, and choices."""

    slices: list[CineKSpace]
    affine: np.ndarray
    labels: np.ndarray | None
    options: CineOptions


def read_inputs(args) -> CineInputs:
    """Read and check the input of ``gsrecon cine``, the output folder last.

    Raises
    ------
    InputError
        Any input that cannot be used: file, why, remedy.
    """
    for path in output_paths(args.output).values():
        refuse_overwrite(path, args.kspace, args.roi)
    slices = load_cine_kspace(
        args.kspace, encoding_set=args.set, slice_number=args.slice, sigma=args.sigma, frame_ms=args.frame_ms
    )
    affine = stack_affine(args.kspace, [one.affine for one in slices])
    labels = None
    if args.roi:
        labels = load_labels(args.roi, slices, affine)
    if args.retro_R:
        for one in slices:
            if one.acceleration > MAX_FULL_ACCELERATION:
                raise InputError(
                    f'{args.kspace} is undersampled already (R = {one.acceleration:.1f}): --retro-R needs full data.'
                )
    output_image(args.output, args.kspace, args.roi)
    return CineInputs(slices, affine, labels, _options(args))


def output_paths(output) -> dict[str, Path]:
    """Every file that belongs to an output series, by what it holds."""
    output = Path(output)
    stem = image_stem(output)
    suffix = output.name.removeprefix(stem)
    images = {'phase': 'part-phase', **dict(zip(MOTION_MAPS, MOTION_MAPS))}
    paths = {
        'magnitude': output,
        **{key: output.with_name(f'{stem}_{name}{suffix}') for key, name in images.items()},
    }
    others = {'json': '.json', 'gif': '.gif', 'model': '_model.h5', 'roi': '_roi.tsv', 'retro': '_retro.tsv'}
    return paths | {key: output.with_name(f'{stem}{end}') for key, end in others.items()}


def write_outputs(args, inputs: CineInputs, results, retro) -> None:
    """Write every output; they appear only when all of them are complete."""
    names = {name: path.name for name, path in output_paths(args.output).items()}
    without = () if args.save_motion else MOTION_MAPS
    with staged(Path(args.output).parent, names.values()) as staging:
        paths = {key: staging / name for key, name in names.items()}
        series = {key: path for key, path in paths.items() if key not in without}
        write_series(series, inputs.slices, results, inputs.affine)
        if inputs.labels is not None:
            write_roi(paths['roi'], results, inputs.labels, inputs.slices[0].frame_ms)
        if retro:
            save_table(paths['retro'], RETRO_COLUMNS, retro)
        save_json(paths['json'], _sidecar(args, inputs, results, retro))


def _options(args) -> CineOptions:
    return CineOptions(
        model=args.model or CineOptions.model,
        n_gaussians=args.gaussians or 0,
        n_harmonics=args.harmonics or CineOptions.n_harmonics,
        iterations=args.iterations or 0,
        periodic=not args.not_periodic,
        fall_back=not args.no_fall_back,
        loss=args.loss,
        n_threads=args.threads or 0,
    )


def _sidecar(args, inputs: CineInputs, results, retro) -> dict:
    from bids_gsrecon import __version__

    return {
        'Description': 'Cine series by moving 2D Gaussians fitted to undersampled k-space',
        'GeneratedBy': {'Name': 'bids_gsrecon', 'Version': __version__},
        'Input': str(args.kspace),
        **record(inputs.slices, results, retro),
        'RandomSeed': args.random_seed,
        'Options': asdict(inputs.options),
        'ProcessorSeconds': {k: round(sum(r.seconds[k] for r in results), 3) for k in results[0].seconds},
    }
