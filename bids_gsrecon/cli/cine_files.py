"""Files in and out of ``gsrecon cine``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bids_gsrecon.cli.arguments import image_stem, output_image, refuse_overwrite
from bids_gsrecon.cli.staging import staged
from bids_gsrecon.errors import InputError
from bids_gsrecon.fields.dynamic import save_cine
from bids_gsrecon.imaging.cine_sampling import variable_density_lines
from bids_gsrecon.imaging.kspace import CineKSpace, retrospective
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.metrics import evaluate_series
from bids_gsrecon.interfaces.cine_io import (
    load_cine_kspace,
    roi_rows,
    save_gif,
    save_series,
    save_table,
    stack_affine,
    worst_verdict,
)
from bids_gsrecon.interfaces.io import load_volume, save_json, save_volume
from bids_gsrecon.recon.cine import CineOptions, reconstruct_cine
from bids_gsrecon.recon.cine.motion import motion_maps
from bids_gsrecon.recon.cine.reference import coil_combined


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
        regions = load_volume(args.roi)
        grid = Lattice((*slices[0].hybrid.shape[2:], len(slices)), affine)
        if not regions.lattice.same_as(grid, 0.1):
            raise InputError(f'{args.roi} is not on the grid of the series: draw the regions on its output.')
        labels = np.rint(regions.data).astype(int)
    if args.retro_R:
        for one in slices:
            if one.acceleration > 1.2:
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
    images = {'phase': 'part-phase', **{name: name for name in ('motion', 'determinant', 'eigenvalue-ratio')}}
    paths = {
        'magnitude': output,
        **{key: output.with_name(f'{stem}_{name}{suffix}') for key, name in images.items()},
    }
    others = {'json': '.json', 'gif': '.gif', 'model': '_model.h5', 'roi': '_roi.tsv', 'retro': '_retro.tsv'}
    return paths | {key: output.with_name(f'{stem}{end}') for key, end in others.items()}


def retro_rows(args, inputs: CineInputs, progress):
    """Rows of OUT_retro.tsv: undersampled reconstructions against the fully sampled images."""
    rows = []
    for acceleration in args.retro_R or ():
        for number, one in enumerate(inputs.slices):
            fewer = retrospective(one, acceleration, variable_density_lines)
            result = reconstruct_cine(fewer, inputs.options, seed=args.random_seed, progress=progress)
            full, support = coil_combined(one)
            scores = evaluate_series(result.images * support, full * support)
            rows.append(
                (
                    number,
                    float(acceleration),
                    scores['ssim'],
                    scores['psnr'],
                    float(result.chi2),
                    result.verdict,
                )
            )
    return rows


def write_outputs(args, inputs: CineInputs, results, retro) -> None:
    """Write every output; they appear only when all of them are complete."""
    names = {name: path.name for name, path in output_paths(args.output).items()}
    images = np.stack([r.images for r in results])
    frame_ms, affine = inputs.slices[0].frame_ms, inputs.affine
    with staged(Path(args.output).parent, names.values()) as staging:
        save_series(staging / names['magnitude'], np.abs(images), affine, frame_ms)
        save_series(staging / names['phase'], np.angle(images), affine, frame_ms)
        save_gif(staging / names['gif'], images, frame_ms)
        metadata = {'affine': affine.tolist(), 'shape': list(images.shape[2:]), 'frame_ms': frame_ms}
        save_cine(staging / names['model'], [r.field for r in results], metadata)
        if args.save_motion:
            _save_motion(staging, names, inputs, results)
        if inputs.labels is not None:
            rows = roi_rows(images, inputs.labels, frame_ms)
            save_table(staging / names['roi'], ('label', 'frame', 'time_ms', 'mean'), rows)
        if retro:
            header = ('slice', 'R', 'ssim', 'psnr', 'chi2', 'verdict')
            save_table(staging / names['retro'], header, retro)
        save_json(staging / names['json'], _sidecar(args, inputs, results, retro))


def _save_motion(staging, names, inputs, results):
    shape = inputs.slices[0].hybrid.shape[2:]
    sizes = np.array(inputs.slices[0].voxel_sizes_mm[:2], np.float32)
    frame_ms = inputs.slices[0].frame_ms
    maps = [motion_maps(r.field, shape) for r in results]
    moved = np.stack([m.displacement * sizes for m in maps])  # (slice, T, x, y, 2)
    moved = moved.transpose(2, 3, 0, 1, 4).reshape(*shape, len(maps), -1)
    save_volume(staging / names['motion'], moved, inputs.affine)
    save_series(
        staging / names['determinant'], np.stack([m.determinant for m in maps]), inputs.affine, frame_ms
    )
    ratios = np.stack([m.eigenvalue_ratio for m in maps])
    save_series(staging / names['eigenvalue-ratio'], ratios, inputs.affine, frame_ms)


def _options(args) -> CineOptions:
    return CineOptions(
        model=args.model,
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

    verdict, reasons = worst_verdict(results)
    first = inputs.slices[0]
    content = {
        'Description': 'Cine series by moving 2D Gaussians fitted to undersampled k-space',
        'GeneratedBy': {'Name': 'bids_gsrecon', 'Version': __version__},
        'Input': str(args.kspace),
        'Verdict': verdict,
        'Reasons': reasons,
        'FrameTime': first.frame_ms / 1000.0,
        'VoxelSizes': [round(float(v), 6) for v in first.voxel_sizes_mm],
        'PhaseEncodingDirection': 'j',
        'Acceleration': round(first.acceleration, 3),
        'NumberOfCoils': first.to_file.shape[0],
        'NumberOfVirtualCoils': first.hybrid.shape[1],
        'NoiseSource': first.noise.source,
        'NoiseStandardDeviation': float(first.noise.scale),
        'RandomSeed': args.random_seed,
        'Options': asdict(inputs.options),
        'Slices': [{k: float(v) for k, v in r.figures.items()} | {'verdict': r.verdict} for r in results],
        'ProcessorSeconds': {k: round(sum(r.seconds[k] for r in results), 3) for k in results[0].seconds},
    }
    if retro:
        names = ('Slice', 'R', 'SSIM', 'PSNR', 'Chi2', 'Verdict')
        content['RetrospectiveUndersampling'] = [dict(zip(names, row)) for row in retro]
    return content
