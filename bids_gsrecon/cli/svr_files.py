"""Files in and out of ``gsrecon svr``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_gsrecon.cli.arguments import image_stem, output_folder, output_image, refuse_overwrite
from bids_gsrecon.cli.resources import available_memory_gb
from bids_gsrecon.cli.slices import sidecar_metadata
from bids_gsrecon.cli.staging import staged
from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.lattice import Volume
from bids_gsrecon.imaging.stacks import SliceStack
from bids_gsrecon.interfaces.io import load_volume, save_json, save_volume
from bids_gsrecon.interfaces.stacks import StackFile, read_stack
from bids_gsrecon.interfaces.svr_checks import CheckedStacks, check_memory, checked_stacks
from bids_gsrecon.recon.svr.types import SvrOptions, SvrResult

if TYPE_CHECKING:
    from bids_gsrecon.recon.svr.orientation import Orientation

MAPS = ('mask', 'uncertainty', 'coverage')
NO_MASK = ('none', '-')


@dataclass(frozen=True, eq=False)
class SvrInputs:
    """Everything `svr` takes, and how it was found.

    Attributes
    ----------
    checked
        The stacks that are used.
    stacks
        The same for the method.
    template, template_path
        The standard space, where one is wanted.
    """

    checked: CheckedStacks
    stacks: list[SliceStack]
    options: SvrOptions
    template: Volume | None = None
    template_path: Path | None = None


def output_path(output) -> Path:
    """The image to write: .nii.gz is added to a name without an ending."""
    output = Path(output)
    return output if output.suffix else output.with_name(output.name + '.nii.gz')


def output_paths(output: Path) -> dict[str, Path]:
    """Every file that belongs to an output image, by what it holds."""
    stem = image_stem(output)
    suffix = output.name.removeprefix(stem)
    paths = {'image': output, **{name: output.with_name(f'{stem}_{name}{suffix}') for name in MAPS}}
    paths |= {name: output.with_name(f'{stem}_{name}.tsv') for name in ('slices', 'stacks')}
    return paths | {'json': output.with_name(f'{stem}.json'), 'field': output.with_name(f'{stem}_field.h5')}


def read_inputs(args) -> SvrInputs:
    """Read and check the input of ``gsrecon svr``, the output folder last.

    Raises
    ------
    InputError
        Any input that cannot be used: file, why, remedy.
    """
    _check_arguments(args)
    masks = _mask_names(args)
    thickness = _thicknesses(args)
    output = output_path(args.output)
    template_path = _template_path(args)
    inputs = (*args.stacks, *(mask for mask in masks if mask), *([template_path] if template_path else []))
    for derived in output_paths(output).values():
        refuse_overwrite(derived, *inputs)
    files = [
        read_stack(
            path,
            number,
            metadata=sidecar_metadata(path),
            axis=args.slice_axis,
            thickness_mm=thickness[number - 1],
            slice_order=args.slice_order,
        )
        for number, path in enumerate(args.stacks, 1)
    ]
    checked = checked_stacks(files, masks)
    files = checked.files
    reference = _reference(args, files)
    chosen = {'resolution_mm': args.resolution, 'device': args.device}
    options = SvrOptions(
        **{name: value for name, value in chosen.items() if value is not None},
        slice_motion=not args.no_slice_motion,
        robust=not args.no_robust,
        slice_bias=not args.no_slice_bias,
        anisotropic=not args.round_gaussians,
        self_similarity=not args.no_self_similarity,
        residual_field=args.residual_field,
        seed=args.random_seed,
        reference=reference,
        n_threads=args.threads or 0,
    )
    check_memory(files, checked.masks, options.resolution_mm, available_memory_gb())
    stacks = [file.stack(mask) for file, mask in zip(files, checked.masks)]
    template = None if template_path is None else load_volume(template_path)
    if args.poses:
        _check_pose_folder(args.poses, files, stacks, inputs)
    output_image(output, *inputs)
    return SvrInputs(checked, stacks, options, template, template_path)


def oriented(inputs: SvrInputs, result: SvrResult, progress) -> tuple[SvrResult, Orientation]:
    """The result in the space of the template, and how it was found."""
    from bids_gsrecon.recon.svr.orientation import turned_to

    return turned_to(result, inputs.template, progress=progress)


def write_outputs(args, inputs: SvrInputs, result: SvrResult, orientation: Orientation | None = None) -> Path:
    """Write every output; they appear only when all of them are complete. Returns the path of the image."""
    from bids_gsrecon.gpu import side_by_side
    from bids_gsrecon.interfaces.svr_outputs import earlier_poses, slices_table, stacks_table, write_poses

    output = output_path(args.output)
    names = {name: path.name for name, path in output_paths(output).items()}
    with ExitStack() as stack:
        staging = stack.enter_context(staged(output.parent, names.values()))

        def save(name):
            dtype = np.uint8 if name == 'mask' else np.float32
            save_volume(staging / names[name], getattr(result, name), result.lattice.affine, dtype=dtype)

        side_by_side(save, ('image', *MAPS))
        (staging / names['slices']).write_text(slices_table(inputs.checked.files, result))
        (staging / names['stacks']).write_text(stacks_table(inputs.checked.files, result))
        if args.save_field:
            from bids_gsrecon.fields.io import save_field

            save_field(staging / names['field'], [result.field], result.lattice.metadata())
        save_json(staging / names['json'], _sidecar(args, inputs, result, orientation))
        if args.poses:
            folder = stack.enter_context(staged(args.poses, earlier_poses(args.poses)))
            write_poses(folder, inputs.checked.files, result)
    return output


def _check_arguments(args) -> None:
    if not args.stacks:
        raise InputError(
            f'{args.output} cannot be made of nothing: give two stacks or more, in different directions.'
        )
    if args.like:
        raise InputError(
            f'{args.like} (--like) goes with --sample only: set the voxel size with --resolution.'
        )
    seen: dict[Path, str] = {}
    for path in args.stacks:
        if seen.setdefault(Path(path).resolve(), path) is not path:
            raise InputError(f'{path} is given twice: name every stack once.')


def _check_pose_folder(folder, files, stacks, inputs) -> None:
    """The folder can be written, and no input would be replaced or taken for a result of an earlier run."""
    from bids_gsrecon.interfaces.svr_outputs import earlier_poses, pose_names, simulated_name

    folder = output_folder(folder)
    seen = [(s, k) for s, stack in enumerate(stacks) for k in np.flatnonzero(stack.mask.any((0, 1)))]
    ours = {*pose_names(files, *zip(*seen)), *(simulated_name(file) for file in files)}
    for name in sorted(ours | earlier_poses(folder)):
        refuse_overwrite(folder / name, *inputs)


def _mask_names(args) -> list[str | None]:
    """One name or nothing per stack."""
    if not args.masks:
        return [None] * len(args.stacks)
    if len(args.masks) != len(args.stacks):
        raise InputError(
            f'{len(args.masks)} masks were given for {len(args.stacks)} stacks ({args.masks[0]}, ...): give one '
            'for each stack, in their order, and the word none for a stack that lacks one.'
        )
    return [None if name in NO_MASK else name for name in args.masks]


def _thicknesses(args) -> list[float | None]:
    """Thickness in mm per stack, or nothing."""
    given = args.thickness or [None]
    if len(given) == 1:
        return given * len(args.stacks)
    if len(given) != len(args.stacks):
        raise InputError(
            f'--thickness has {len(given)} values for {len(args.stacks)} stacks ({args.stacks[0]}, ...): give one '
            'for all, or one for each in their order.'
        )
    return list(given)


def _template_path(args) -> Path | None:
    """The image that --template names, or the one of its folder by age."""
    if args.template is None:
        if args.gestational_age is not None:
            raise InputError('--gestational-age chooses a template from a folder: add --template FOLDER.')
        return None
    path = Path(args.template)
    if not path.is_dir():
        return path
    if args.gestational_age is None:
        raise InputError(
            f'{path} is a folder of templates: say which with --gestational-age WEEKS, or name one.'
        )
    from bids_gsrecon.interfaces.age_templates import template_of_age

    return template_of_age(path, args.gestational_age)[0]


def _reference(args, files: list[StackFile]) -> int | None:
    """Index in ``files`` of the stack that --reference names."""
    wanted = args.reference
    if wanted is None:
        return None
    for index, file in enumerate(files):
        if wanted == str(file.number) or Path(wanted).resolve() == file.path.resolve():
            return index
    choices = ', '.join(f'{file.number}: {file.path}' for file in files)
    raise InputError(f'{wanted} (--reference) is none of the stacks that are used: name one of {choices}.')


def _sidecar(args, inputs: SvrInputs, result: SvrResult, orientation: Orientation | None) -> dict:
    from bids_gsrecon import __version__
    from bids_gsrecon.interfaces.svr_outputs import doubt_about, figures_of_merit, space_record, stack_records

    checked, space = inputs.checked, {}
    if orientation is not None:
        space = space_record(orientation, inputs.template_path, args.gestational_age)
    return {
        'Description': 'One volume of Gaussians from stacks of slices, each in a pose of its own',
        'GeneratedBy': {'Name': 'bids_gsrecon', 'Version': __version__},
        'Stacks': stack_records(checked),
        'StacksLeftOut': [str(file.path) for file in checked.left_out],
        'OutputVoxelSizes': [round(float(v), 6) for v in result.lattice.voxel_sizes_mm],
        **space,
        'RandomSeed': args.random_seed,
        'Options': asdict(inputs.options),
        'FiguresOfMerit': figures_of_merit(result),
        'NumberOfGaussians': len(result.field),
        'Seconds': {k: round(float(v), 3) for k, v in result.seconds.items()},
        'Warnings': [*checked.warnings, *doubt_about(orientation, inputs.template_path)],
    }
