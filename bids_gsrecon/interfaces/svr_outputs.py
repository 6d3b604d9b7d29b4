"""What a slice-to-volume reconstruction leaves behind: tables, transforms and simulated slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from bids_gsrecon.interfaces.io import save_volume
from bids_gsrecon.interfaces.stacks import StackFile
from bids_gsrecon.recon.svr.types import SvrResult

if TYPE_CHECKING:
    from bids_gsrecon.interfaces.svr_checks import CheckedStacks
    from bids_gsrecon.recon.svr.orientation import Orientation

POSE_COLUMNS = ('rot_x_deg', 'rot_y_deg', 'rot_z_deg', 'trans_x_mm', 'trans_y_mm', 'trans_z_mm')
SEEN = 0.5  # slices that see a voxel, by their weights, for it to count as covered

# What the columns of the tables hold, as BIDS wants it in the .json beside a table.
_STACK_COLUMNS = {
    'stack': {'Description': 'number of the stack, from 1, in the order of the names of the files'},
    'file': {'Description': 'file of the stack'},
}
_POSE = (
    "pose of the slice: x' = R x + t in world RAS mm, slice as stored to volume; R as rotation vector "
    '(rot_*_deg), t as trans_*_mm'
)
SLICES_DICTIONARY = {
    **_STACK_COLUMNS,
    'slice': {'Description': 'slice as stored, from 0'},
    'rank': {'Description': 'when it was acquired in its stack, 0 first'},
    'ncc': {'Description': 'correlation with what the other stacks predict, in the mask'},
    'weight': {'Description': 'mean weight of its pixels, 0 to 1'},
    'gain': {'Description': 'its brightness over that of the volume'},
    'motion_mm': {
        'Description': 'mean way of its pixels from where the scanner believed them, less the motion of its stack',
        'Units': 'mm',
    },
    'excluded': {
        'Description': 'whether it counts for next to nothing, or never found its place',
        'Levels': {'0': 'no', '1': 'yes'},
    },
    **{name: {'Description': _POSE, 'Units': 'degree' if 'deg' in name else 'mm'} for name in POSE_COLUMNS},
}
STACKS_DICTIONARY = {
    **_STACK_COLUMNS,
    'slices': {'Description': 'slices of the stack'},
    'slices_in_mask': {'Description': 'of these show the anatomy'},
    'slices_excluded': {'Description': 'of those are excluded'},
    'ncc_mean': {'Description': 'mean ncc of its slices'},
    'weight_mean': {'Description': 'mean weight of its slices'},
    'motion_mean_mm': {'Description': 'mean motion_mm of its slices', 'Units': 'mm'},
    'motion_max_mm': {'Description': 'largest motion_mm of its slices', 'Units': 'mm'},
}


def slices_table(files: Sequence[StackFile], result: SvrResult) -> str:
    """One row per slice. A pose is ``x' = R x + t`` in world RAS mm, slice as stored to volume; R as rotation vector."""
    from scipy.spatial.transform import Rotation

    slices = result.slices
    vectors = Rotation.from_matrix(result.poses[:, :3, :3]).as_rotvec(degrees=True)
    names = (
        'stack',
        'file',
        'slice',
        'rank',
        'ncc',
        'weight',
        'gain',
        'motion_mm',
        'excluded',
        *POSE_COLUMNS,
    )
    rows = [
        (
            files[slices.stack[m]].number,
            files[slices.stack[m]].path.name,
            int(slices.index[m]),
            int(slices.rank[m]),
            slices.ncc[m],
            slices.weight[m],
            slices.gain[m],
            slices.motion_mm[m],
            int(slices.excluded[m]),
            *vectors[m],
            *result.poses[m, :3, 3],
        )
        for m in range(len(slices))
    ]
    return _table(names, rows)


def stacks_table(files: Sequence[StackFile], result: SvrResult) -> str:
    """One row per stack: its slices, how well they fit, and how far they moved."""
    slices = result.slices
    names = (
        'stack', 'file', 'slices', 'slices_in_mask', 'slices_excluded', 'ncc_mean', 'weight_mean',
        'motion_mean_mm', 'motion_max_mm',
    )  # fmt: skip
    rows = []
    for number, file in enumerate(files):
        mine = slices.stack == number
        ncc, motion = slices.ncc[mine], slices.motion_mm[mine]
        ncc, motion = ncc[np.isfinite(ncc)], motion[np.isfinite(motion)]
        rows.append(
            (
                file.number,
                file.path.name,
                file.n_slices,
                int(mine.sum()),
                int(slices.excluded[mine].sum()),
                _mean(ncc),
                _mean(slices.weight[mine]),
                _mean(motion),
                motion.max() if motion.size else np.nan,
            )
        )
    return _table(names, rows)


def read_table(path) -> list[dict[str, str]]:
    """The rows of a table written here."""
    header, *rows = [line.split('\t') for line in Path(path).read_text().splitlines()]
    return [dict(zip(header, row)) for row in rows]


def figures_of_merit(result: SvrResult) -> dict[str, float | int | None]:
    """What a reconstruction is judged by, in one number each."""
    slices, mask = result.slices, result.mask
    ncc, motion = (column[np.isfinite(column)] for column in (slices.ncc, slices.motion_mm))
    bright = float(np.median(result.image[mask])) if mask.any() else 0.0
    figures = {
        'ncc_mean': _mean(ncc),
        'excluded_percent': 100 * float(slices.excluded.mean()),
        'motion_mean_mm': _mean(motion),
        'motion_max_mm': float(motion.max()) if motion.size else np.nan,
        'mask_coverage_percent': 100 * _mean(result.coverage[mask] >= SEEN),
        'uncertainty_percent': 100 * float(np.median(result.uncertainty[mask])) / bright
        if bright
        else np.nan,
    }
    rounded = {name: round(value, 5) if np.isfinite(value) else None for name, value in figures.items()}
    return {'slices': len(slices), 'slices_excluded': int(slices.excluded.sum()), **rounded}


def stack_records(checked: CheckedStacks) -> list[dict]:
    """How every stack was understood, for sidecars."""
    return [
        {
            'Number': file.number,
            'Input': str(file.path),
            'Mask': source,
            'SliceAxis': file.axis,
            'SliceThickness': round(file.thickness_mm, 6),
            'SliceThicknessSource': file.thickness_source,
            'SpacingBetweenSlices': round(file.spacing_mm, 6),
            'SliceOrder': file.order_source,
        }
        for file, source in zip(checked.files, checked.mask_sources)
    ]


def space_record(orientation: Orientation, template, gestational_age_weeks: float | None) -> dict:
    """How a volume was turned to a template, for sidecars."""
    return {
        'Template': str(template),
        'GestationalAge': gestational_age_weeks,
        'TemplateMargin': round(orientation.margin, 4),
        'ReconstructionToTemplate': orientation.motion.round(9).tolist(),
    }


def doubt_about(orientation: Orientation | None, template) -> list[str]:
    """A sentence where the volume may be turned the wrong way, else nothing."""
    if orientation is None or orientation.is_sure:
        return []
    return [
        f'{template}: the volume fits it nearly as well when turned otherwise (margin '
        f'{orientation.margin:.2f}): look at it, or take another template.'
    ]


def pose_names(files: Sequence[StackFile], stack_of, slice_of) -> list[str]:
    """Names of the transform files of slices: stack number from 1, stored slice from 0."""
    return [f'stack-{files[s].number}_slice-{k:03d}.tfm' for s, k in zip(stack_of, slice_of)]


def simulated_name(file: StackFile) -> str:
    return f'stack-{file.number}_simulated.nii.gz'


def earlier_poses(folder) -> set[str]:
    """Names in a folder of what `write_poses` left there before."""
    patterns = ('stack-*_slice-*.tfm', 'stack-*_simulated.nii.gz')
    return {item.name for pattern in patterns for item in Path(folder).glob(pattern)}


def write_poses(folder: Path, files: Sequence[StackFile], result: SvrResult) -> None:
    """Transforms of all slices (ITK files, one array, one table) and the simulated slices of all stacks."""
    from bids_gsrecon.interfaces.registration import save_itk_transform

    slices = result.slices
    names = pose_names(files, slices.stack, slices.index)
    for name, pose in zip(names, result.poses):
        save_itk_transform(folder / name, pose, rigid=True)
    np.save(folder / 'poses.npy', result.poses)
    columns = ('stack', 'slice', *(f'm{i}{j}' for i in range(4) for j in range(4)), 'transform')
    rows = [
        (files[s].number, int(k), *pose.ravel(), name)
        for s, k, pose, name in zip(slices.stack, slices.index, result.poses, names)
    ]
    (folder / 'poses.tsv').write_text(_table(columns, rows, digits=9))
    for file, predicted in zip(files, result.predicted):
        save_simulated(folder / simulated_name(file), file, predicted)


def save_simulated(path, file: StackFile, predicted: np.ndarray) -> None:
    """(i, j, slice) predicted pixels of a stack under the header of its file; zero where nothing is predicted."""
    data = file.as_stored(np.nan_to_num(predicted, nan=0.0)).astype(np.float32)
    source = nib.load(file.path)
    if not isinstance(source.header, nib.Nifti1Header):
        save_volume(path, data, file.lattice.affine)
        return
    header = source.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    nib.save(nib.Nifti1Image(data, source.affine, header), path)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _table(names: Sequence[str], rows, digits: int = 5) -> str:
    """Tab-separated text as BIDS wants it: n/a for what is not known."""
    lines = ['\t'.join(names)]
    lines += ['\t'.join(_cell(value, digits) for value in row) for row in rows]
    return '\n'.join(lines) + '\n'


def _cell(value, digits: int) -> str:
    if isinstance(value, (float, np.floating)):
        return f'{value:.{digits}g}' if np.isfinite(value) else 'n/a'
    return str(value)
