"""Files in and out of ``gsrecon superres``."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_gsrecon.cli.arguments import image_stem, output_image, refuse_overwrite
from bids_gsrecon.cli.grids import load_lattice
from bids_gsrecon.cli.method_options import SHARED_SWITCHES, SUPERRES_SWITCHES
from bids_gsrecon.cli.resources import available_memory_gb
from bids_gsrecon.cli.slices import thickness_of
from bids_gsrecon.cli.staging import staged
from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.profile import SliceProfile
from bids_gsrecon.interfaces.headers import check_stack
from bids_gsrecon.interfaces.io import load_or_find_mask, load_volume, save_json, save_volume
from bids_gsrecon.interfaces.superres_checks import check_memory, check_overlap, is_fine_already
from bids_gsrecon.recon.superres import SuperresOptions, output_lattice, voxel_profiles

MAPS = ('amplitude', 'relaxation-proxy', 'mask', 'residual')


@dataclass(frozen=True, eq=False)
class SuperresInputs:
    """Everything `superres` takes, and how it was found; ``copy``: there is nothing to do but to copy."""

    image: Volume
    lattice: Lattice
    slice_axis: int
    profiles: tuple[SliceProfile, SliceProfile, SliceProfile]
    mask: np.ndarray
    mask_source: str
    options: SuperresOptions
    copy: bool = False


def read_inputs(args) -> SuperresInputs:
    """Read and check the input of ``gsrecon superres``, the output folder last.

    Raises
    ------
    InputError
        Any input that cannot be used: file, why, remedy.
    """
    path = args.image
    inputs = (args.image, args.like, args.mask)
    for derived in output_paths(args.output).values():
        refuse_overwrite(derived, *inputs)
    image = load_volume(path)
    check_stack(path, image.data.shape)
    axis = image.lattice.coarsest_axis if args.slice_axis is None else args.slice_axis
    spacing = float(image.lattice.voxel_sizes_mm[axis])
    thickness, remark = args.thickness, ''
    if thickness is None:
        thickness, remark = thickness_of(path, spacing)
    profiles = voxel_profiles(image.lattice, args.profile, slice_axis=axis, thickness_mm=thickness)
    lattice = _output_lattice(args, image.lattice)
    copy = is_fine_already(image.lattice, lattice)
    if copy and not args.copy_if_fine:
        raise InputError(
            f'{path} has voxels of {_sizes(image.lattice)} mm, as fine as the output ({_sizes(lattice)} mm) '
            'already: ask for smaller voxels (--zooms), or copy it with --copy-if-fine.'
        )
    if copy and args.like and not lattice.same_as(image.lattice):
        raise InputError(
            f'{path} is as fine as {args.like} already, and a copy (--copy-if-fine) would keep its own grid: '
            'resample it with an interpolating program, or leave out --like.'
        )
    mask, mask_source = load_or_find_mask(args.mask, image)
    if not copy:
        if args.like:
            check_overlap(path, image.lattice, mask, lattice, args.like)
        check_memory(path, image.lattice, mask, lattice, available_memory_gb())
    options = _options(args)
    output_image(args.output, *inputs)
    if remark and not copy and args.profile != 'point':
        print(f'gsrecon superres: note: {path}: {remark}.', file=sys.stderr)
    return SuperresInputs(image, lattice, axis, profiles, mask, mask_source, options, copy)


def output_paths(output) -> dict[str, Path]:
    """Every file that belongs to an output image, by what it holds."""
    output = Path(output)
    stem = image_stem(output)
    suffix = output.name.removeprefix(stem)
    paths = {'image': output, **{name: output.with_name(f'{stem}_{name}{suffix}') for name in MAPS}}
    return paths | {'json': output.with_name(f'{stem}.json'), 'field': output.with_name(f'{stem}_field.h5')}


def write_outputs(args, inputs: SuperresInputs, result) -> None:
    """Write every output; they appear only when all of them are complete."""
    names = {name: path.name for name, path in output_paths(args.output).items()}
    affine = result.lattice.affine
    with staged(Path(args.output).parent, names.values()) as staging:
        save_volume(staging / names['image'], result.image, affine)
        save_volume(staging / names['amplitude'], result.amplitude, affine)
        save_volume(staging / names['relaxation-proxy'], result.relaxation_proxy, affine)
        save_volume(staging / names['mask'], result.mask, affine, dtype=np.uint8)
        save_volume(staging / names['residual'], result.residual, inputs.image.affine)
        if args.save_field:
            from bids_gsrecon.fields.io import save_field

            save_field(staging / names['field'], result.layers, result.lattice.metadata())
        save_json(staging / names['json'], _sidecar(args, inputs, result))


def copy_image(args) -> None:
    """The input under the name of the output: byte by byte where the endings agree."""
    output = Path(args.output)
    with staged(output.parent, [path.name for path in output_paths(output).values()]) as staging:
        if output.name.removeprefix(image_stem(output)) == Path(args.image).name.removeprefix(
            image_stem(args.image)
        ):
            shutil.copyfile(args.image, staging / output.name)
        else:
            nib.save(nib.load(args.image), staging / output.name)
        content = {'Description': 'A copy: the image was as fine as was asked for', 'Input': str(args.image)}
        save_json(staging / f'{image_stem(output)}.json', content)


def _output_lattice(args, image: Lattice) -> Lattice:
    if args.like:
        return load_lattice(args.like)
    if args.shape:
        return output_lattice(image, shape=args.shape)
    if args.zooms:
        if len(args.zooms) not in (1, 3):
            raise InputError(f'--zooms takes one voxel size or three, not {len(args.zooms)}: correct it.')
        return output_lattice(image, zooms_mm=np.broadcast_to(args.zooms, 3))
    finest = float(image.voxel_sizes_mm.min())
    isotropic = output_lattice(image, zooms_mm=np.full(3, finest))
    if args.isotropic or not is_fine_already(image, isotropic):
        return isotropic
    return output_lattice(image, zooms_mm=np.full(3, finest / 2))


def _options(args) -> SuperresOptions:
    names = ('model', 'iterations', 'device', *SHARED_SWITCHES, *SUPERRES_SWITCHES)
    chosen = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return SuperresOptions(**chosen, n_threads=args.threads or 0)


def _sizes(lattice: Lattice) -> str:
    return ' x '.join(f'{size:.4g}' for size in lattice.voxel_sizes_mm)


def _sidecar(args, inputs: SuperresInputs, result) -> dict:
    from bids_gsrecon import __version__

    profile = inputs.profiles[inputs.slice_axis]
    return {
        'Description': 'One image on a finer grid by a field of Gaussians fitted to it alone',
        'GeneratedBy': {'Name': 'bids_gsrecon', 'Version': __version__},
        'Input': str(args.image),
        'InputShape': list(inputs.image.data.shape),
        'InputVoxelSizes': [round(float(v), 6) for v in inputs.image.lattice.voxel_sizes_mm],
        'OutputVoxelSizes': [round(float(v), 6) for v in result.lattice.voxel_sizes_mm],
        'Mask': str(args.mask) if args.mask else inputs.mask_source,
        'SliceAxis': inputs.slice_axis,
        'VoxelProfile': args.profile,
        'SliceProfile': profile.kind,
        'SliceThickness': round(profile.thickness_mm, 6),
        'RandomSeed': args.random_seed,
        'Options': asdict(inputs.options),
        'Backend': result.backend,
        'FiguresOfMerit': {k: float(v) for k, v in result.figures.items()},
        'Seconds': {k: round(float(v), 3) for k, v in result.seconds.items()},
        'NumberOfGaussians': sum(len(layer) for layer in result.layers),
    }
