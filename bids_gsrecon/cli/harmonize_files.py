"""Files in and out of ``gsrecon harmonize``."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bids_gsrecon.cli.arguments import image_stem, output_folder, refuse_overwrite
from bids_gsrecon.cli.grids import load_lattice
from bids_gsrecon.cli.resources import available_memory_gb
from bids_gsrecon.cli.slices import thickness_of
from bids_gsrecon.cli.staging import staged
from bids_gsrecon.errors import InputError, about
from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.imaging.resample import share_reached
from bids_gsrecon.interfaces.headers import check_stack
from bids_gsrecon.interfaces.io import load_or_find_mask, load_scaffold, load_volume, save_json, save_volume
from bids_gsrecon.recon.harmonize.types import HarmonizeOptions, Target

MIN_OVERLAP = 0.02  # of the mask that a target must see


@dataclass(frozen=True, eq=False)
class HarmonizeInputs:
    """Everything `harmonize` takes, and how it was found."""

    reference: Volume
    targets: list[Target]
    mask: np.ndarray
    mask_source: str
    scaffold: GaussianField | None
    lattice: Lattice
    options: HarmonizeOptions


def read_inputs(args) -> HarmonizeInputs:
    """Read and check every input of ``gsrecon harmonize``, the output folder included.

    Raises
    ------
    InputError
        Any input that cannot be used: file, why, remedy.
    """
    from bids_gsrecon.recon.harmonize import check_reference

    names = [Path(path).name for path in args.targets]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f'two targets are named {name} and would overwrite each other: run them one by one.'
            )
    outdir = Path(args.output)
    if outdir.is_file() or outdir.name.endswith(('.nii', '.nii.gz')):
        raise InputError(f'{outdir} is not a folder: give the folder that the results go to.')
    for name in names:
        refuse_overwrite(outdir / name, args.reference, *args.targets)
        for changing in _changing_names(name):
            refuse_overwrite(outdir / changing, args.scaffold)
    reference = load_volume(args.reference)
    with about(args.reference):
        check_reference(reference)
    mask, mask_source = load_or_find_mask(args.mask, reference)
    options = HarmonizeOptions(
        relax_geometry=args.relax_geometry,
        n_threads=args.threads or 0,
    )
    volumes = [_load_target(path, args) for path in args.targets]
    scaffold = load_scaffold(args.scaffold, reference) if args.scaffold else None
    lattice = _output_lattice(args, reference)
    output_folder(outdir)
    targets = []
    for path, (volume, profile) in zip(args.targets, volumes):
        motion = _pose(path, volume, reference, mask, args)
        _check_overlap(path, volume, reference, mask, motion)
        targets.append(Target(image_stem(path), volume, profile, motion))
    _check_memory(reference, targets, options)
    return HarmonizeInputs(reference, targets, mask, mask_source, scaffold, lattice, options)


def write_outputs(args, inputs: HarmonizeInputs, result) -> list[Path]:
    """Write every output; they appear in the folder only when all of them are complete.

    Returns
    -------
    list of Path
        The harmonized images.
    """
    from bids_gsrecon.fields.io import save_field

    outdir = Path(args.output)
    reference_stem = image_stem(args.reference)
    affine, grid = result.lattice.affine, result.lattice.metadata()
    changing = [name for path in args.targets for name in _changing_names(path)]
    with staged(outdir, changing) as staging:
        images = []
        for path, contrast in zip(args.targets, result.contrasts):
            stem, target = image_stem(path), next(t for t in inputs.targets if t.name == contrast.name)
            images.append(save_volume(staging / _image_name(path), contrast.image, affine).name)
            if contrast.uncertainty is not None:
                save_volume(staging / f'{stem}_uncertainty.nii.gz', contrast.uncertainty, affine)
            save_volume(staging / f'{stem}_residual.nii.gz', contrast.residual, target.volume.affine)
            if not np.allclose(contrast.target_to_reference, np.eye(4), atol=1e-9):
                from bids_gsrecon.interfaces.registration import save_itk_transform

                save_itk_transform(staging / f'{stem}_to-reference.txt', contrast.target_to_reference)
            if args.save_field:
                save_field(staging / f'{stem}_field.h5', contrast.layers, grid)
            save_json(staging / f'{stem}.json', _sidecar(args, inputs, result, contrast, target, path))
        save_volume(staging / f'{reference_stem}_mask.nii.gz', result.mask, affine, dtype=np.uint8)
        save_field(staging / f'{reference_stem}_scaffold.h5', [result.scaffold], grid)
    return [outdir / name for name in images]


def _load_target(path, args) -> tuple[Volume, SliceProfile]:
    volume = load_volume(path)
    check_stack(path, volume.data.shape)
    axis = volume.lattice.coarsest_axis if args.slice_axis is None else args.slice_axis
    spacing = float(volume.lattice.voxel_sizes_mm[axis])
    thickness, remark = (args.thickness, '') if args.thickness else thickness_of(path, spacing)
    if remark:
        print(f'gsrecon harmonize: note: {path}: {remark}.', file=sys.stderr)
    return volume, SliceProfile(args.profile, thickness, axis)


def _pose(path, volume: Volume, reference: Volume, mask: np.ndarray, args) -> np.ndarray:
    if args.register == 'header':
        return np.eye(4)
    from bids_gsrecon.interfaces.registration import register_rigid

    found = register_rigid(
        reference,
        volume,
        fixed_mask=mask,
        seed=args.random_seed,
        n_threads=args.threads or os.cpu_count() or 1,
    )
    return found.moving_to_fixed


def _check_overlap(path, volume: Volume, reference: Volume, mask: np.ndarray, target_to_reference) -> None:
    """The target sees some of the mask."""
    seen = share_reached(mask, reference.lattice, volume.lattice.moved(target_to_reference))
    if seen < MIN_OVERLAP:
        how = 'their headers' if np.allclose(target_to_reference, np.eye(4)) else 'the registration'
        raise InputError(
            f'{path} does not overlap the reference: by {how} it shows {100 * seen:.1f} % of it; '
            'check the headers, or try --register rigid.'
        )


def _output_lattice(args, reference: Volume) -> Lattice:
    if args.like:
        return load_lattice(args.like)
    if args.resolution:
        return reference.lattice.resampled(args.resolution)
    return reference.lattice


def _check_memory(reference: Volume, targets, options) -> None:
    from bids_gsrecon.recon.harmonize import estimate_memory_gb

    need = estimate_memory_gb(reference.data.shape, [t.volume.data.shape for t in targets], options)
    have = available_memory_gb()
    if need > have:
        print(
            f'gsrecon harmonize: warning: needs about {need:.1f} GB of memory, has {have:.1f} GB: a '
            ' --mask or a cropped reference needs less.',
            file=sys.stderr,
        )


def _changing_names(path) -> list[str]:
    """Files of a target that some runs write and others do not."""
    return [f'{image_stem(path)}_{end}' for end in ('field.h5', 'to-reference.txt', 'uncertainty.nii.gz')]


def _image_name(path) -> str:
    name = Path(path).name
    return name if name.endswith(('.nii', '.nii.gz')) else f'{image_stem(path)}.nii.gz'


def _sidecar(args, inputs, result, contrast, target, path) -> dict:
    from bids_gsrecon import __version__

    return {
        'Description': 'Thick-slice image brought onto another grid by a field of Gaussians (AtlasGS)',
        'GeneratedBy': {'Name': 'bids_gsrecon', 'Version': __version__},
        'Reference': str(args.reference),
        'Target': str(path),
        'Mask': inputs.mask_source,
        'SliceAxis': target.profile.axis,
        'SliceProfile': target.profile.kind,
        'SliceThickness': round(target.profile.thickness_mm, 6),
        'Registration': args.register,
        'TargetToReferenceRAS': np.asarray(contrast.target_to_reference, dtype=float).tolist(),
        'RandomSeed': args.random_seed,
        'Options': asdict(inputs.options),
        'FiguresOfMerit': {k: float(v) for k, v in contrast.figures.items()},
        'Seconds': {k: round(float(v), 3) for k, v in result.seconds.items()},
        'NumberOfGaussians': sum(len(layer) for layer in contrast.layers),
    }
