"""Nipype interface that draws the pictures of a slice-to-volume reconstruction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    isdefined,
    traits,
)

from bids_gsrecon.interfaces.reportlets import PartsOutputSpec, json_bytes, load_picture, write_parts

WORST, OTHERS = 4, (0.5, 0.9)  # slices shown: the worst, and at these quantiles of the rest
MOST_ROWS = 60  # of the list of excluded slices


class _SvrReportletsInputSpec(BaseInterfaceInputSpec):
    result = File(exists=True, mandatory=True, desc='the volume')
    mask = File(exists=True, mandatory=True, desc='the anatomy in it')
    uncertainty = File(exists=True, mandatory=True, desc='standard deviation of its error')
    coverage = File(exists=True, mandatory=True, desc='how many slices see a voxel')
    stacks = InputMultiObject(File(exists=True), mandatory=True, desc='as they were reconstructed')
    stack_masks = InputMultiObject(File(exists=True), mandatory=True, desc='the anatomy in each')
    simulated = InputMultiObject(File(exists=True), mandatory=True, desc='predicted slices of each')
    slices_table = File(exists=True, mandatory=True)
    stacks_table = File(exists=True, mandatory=True)
    metadata_file = File(exists=True, mandatory=True, desc='what ReconstructStacks says')
    parameters = traits.Dict(desc='further entries of the merit file')
    summary = traits.Dict(desc='what was done in this session; shown at the top of the report')


class _SvrReportletsOutputSpec(PartsOutputSpec):
    before = File(exists=True, desc='the reference stack as acquired')
    mean = File(exists=True, desc='the mean of all stacks, no motion corrected')
    after = File(exists=True, desc='the volume')
    outline = File(exists=True, desc='the volume with the contour of its mask')
    motion = File(exists=True, desc='SVG: motion of every slice')
    slices = File(exists=True, desc='slices as acquired and as predicted')
    uncertainty = File(exists=True, desc='uncertainty map')
    coverage = File(exists=True, desc='coverage map')
    merit = File(exists=True, desc='JSON: figures of merit, tables, warnings')
    summary = File(desc='JSON')


class SvrReportlets(SimpleInterface):
    """Pictures of one volume: before and after, motion, slices beside their prediction, maps, and a JSON file."""

    input_spec = _SvrReportletsInputSpec
    output_spec = _SvrReportletsOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.imaging.lattice import Volume
        from bids_gsrecon.interfaces.svr_outputs import read_table
        from bids_gsrecon.reports import figures, svr_figures

        inputs = self.inputs
        known = json.loads(Path(inputs.metadata_file).read_text())
        result, mask, uncertainty, coverage = (
            load_picture(path) for path in (inputs.result, inputs.mask, inputs.uncertainty, inputs.coverage)
        )
        # The scanner's world to that of the volume, where a template turned it.
        motion = np.array(known.get('ReconstructionToTemplate', np.eye(4)))
        stacks = [load_picture(path) for path in inputs.stacks]
        masks = [load_picture(path).data > 0.5 for path in inputs.stack_masks]
        moved = [Volume(stack.data, stack.lattice.moved(motion)) for stack in stacks]
        reference = [record['Number'] for record in known['Stacks']].index(known['ReferenceStack'])
        inside = mask.data > 0.5
        view = figures.make_view(result.lattice, inside)
        window = figures.intensity_window(result, inside)
        slices, per_stack = read_table(inputs.slices_table), read_table(inputs.stacks_table)
        centre = result.lattice.to_world(np.argwhere(inside).mean(0))
        simulated = [load_picture(path) for path in inputs.simulated]
        seen = max(float(np.percentile(coverage.data[inside], 99)), 1.0) if inside.any() else 1.0
        contents = {
            'before': figures.gray_montage(moved[reference], view, window=window, order=0),
            'mean': figures.gray_montage(mean_of_stacks(moved, masks, reference, result.lattice), view, window=window),
            'after': figures.gray_montage(result, view, window=window, order=0),
            'outline': figures.gray_montage(result, view, window=window, mask=mask),
            'motion': svr_figures.motion_plot(stack_motions(slices, known, motion, centre)),
            'slices': svr_figures.slices_montage(slice_pairs(slices, known, stacks, masks, simulated)),
            'uncertainty': figures.uncertainty_montage(uncertainty, view, mask),
            'coverage': figures.map_montage(
                coverage, view, limits=(0.0, seen), colours='viridis', label='slices', mask=mask
            ),
            'merit': json_bytes(self._merit(known, result, slices, per_stack)),
        }  # fmt: skip
        if isdefined(inputs.summary):
            contents['summary'] = json_bytes(dict(inputs.summary))
        write_parts(self, contents, Path(runtime.cwd))
        return runtime

    def _merit(self, known: dict, result, slices, per_stack) -> dict:
        figures = {name: value for name, value in known['FiguresOfMerit'].items() if value is not None}
        thick = sorted({record['SliceThickness'] for record in known['Stacks']})
        sizes = ' and '.join(dict.fromkeys(f'{mm:.3g}' for mm in (thick[0], thick[-1])))
        return {
            'figures': figures,
            'input_text': f'{len(known["Stacks"])} stacks, {len(slices)} slices of {sizes} mm',
            'output_shape': list(result.data.shape),
            'output_voxel_mm': [round(float(v), 4) for v in result.lattice.voxel_sizes_mm],
            'warnings': known['Warnings'],
            'tables': [stacks_summary(per_stack, known), excluded_slices(slices)],
            'parameters': dict(self.inputs.parameters) if isdefined(self.inputs.parameters) else {},
        }


def mean_of_stacks(stacks, masks, reference: int, lattice):
    """What interpolation alone makes of the stacks: their mean as the headers place them, equally bright."""
    from bids_gsrecon.imaging.lattice import Volume
    from bids_gsrecon.imaging.resample import resample

    total, seen = np.zeros(lattice.shape, np.float32), np.zeros(lattice.shape, np.float32)
    bright = [float(np.median(stack.data[mask])) or 1.0 for stack, mask in zip(stacks, masks)]
    for stack, own in zip(stacks, bright):
        matrix = stack.lattice.world_to_voxel @ lattice.affine
        total += resample(stack.data, matrix, lattice.shape, 1) * (bright[reference] / own)
        seen += resample(np.ones(stack.data.shape, np.float32), matrix, lattice.shape, 1)
    return Volume(total / np.maximum(seen, 1e-3), lattice)


def stack_motions(slices, known: dict, to_volume: np.ndarray, centre_mm: np.ndarray):
    """Motion of all slices in the scanner's world; ``centre_mm`` lies in that of the volume."""
    from scipy.spatial.transform import Rotation

    from bids_gsrecon.interfaces.svr_outputs import POSE_COLUMNS
    from bids_gsrecon.reports.svr_figures import StackMotion

    back = np.linalg.inv(to_volume)
    centre = back[:3, :3] @ centre_mm + back[:3, 3]
    out = []
    for record in known['Stacks']:
        rows = [row for row in slices if int(row['stack']) == record['Number']]
        values = np.array([[float(row[name]) for name in POSE_COLUMNS] for row in rows]).reshape(-1, 6)
        poses = np.tile(np.eye(4), (len(rows), 1, 1))
        poses[:, :3, :3] = Rotation.from_rotvec(values[:, :3], degrees=True).as_matrix()
        poses[:, :3, 3] = values[:, 3:]
        poses = back @ poses
        out.append(
            StackMotion(
                title=Path(record['Input']).name,
                rank=np.array([int(row['rank']) for row in rows]),
                rotation_deg=Rotation.from_matrix(poses[:, :3, :3]).as_rotvec(degrees=True),
                translation_mm=poses[:, :3, :3] @ centre + poses[:, :3, 3] - centre,
                excluded=np.array([row['excluded'] == '1' for row in rows]),
            )
        )
    return out


def slice_pairs(slices, known: dict, stacks, masks, simulated):
    """The worst slices and some usual ones, cut to the anatomy of their stack."""
    from bids_gsrecon.imaging.foreground import bounding_box
    from bids_gsrecon.reports.svr_figures import SlicePair

    numbers = [record['Number'] for record in known['Stacks']]
    pairs = []
    for row in shown_slices(slices):
        place = numbers.index(int(row['stack']))
        record, stack = known['Stacks'][place], stacks[place]
        axis = record['SliceAxis']
        start, stop = bounding_box(masks[place])
        low, high = np.maximum(start - 2, 0), np.minimum(stop + 2, stack.data.shape)
        cut = [slice(a, b) for a, b in zip(low, high)]
        cut[axis] = int(row['slice'])
        acquired, predicted = (
            np.rot90(volume.data[tuple(cut)]) for volume in (stack, simulated[place])
        )  # the first stored axis to the right, the second up
        in_plane = [float(size) for a, size in enumerate(stack.lattice.voxel_sizes_mm) if a != axis]
        title = f'{Path(record["Input"]).name}, slice {row["slice"]}: NCC {_short(row["ncc"])}, weight {_short(row["weight"])}'
        if row['excluded'] == '1':
            title += ', excluded'
        pairs.append(SlicePair(title, acquired, predicted, (in_plane[1], in_plane[0])))
    return pairs


def shown_slices(slices) -> list[dict[str, str]]:
    """Rows of the slices to show: those that fit worst first."""
    ranked = sorted((row for row in slices if row['ncc'] != 'n/a'), key=lambda row: float(row['ncc']))
    if not ranked:
        return list(slices[:1])
    shown = ranked[:WORST]
    rest = ranked[WORST:]
    return shown + [rest[round(share * (len(rest) - 1))] for share in OTHERS if rest]


def stacks_summary(per_stack, known: dict) -> dict:
    """The table of stacks for the report."""
    columns = {
        'file': 'Stack',
        'slices_in_mask': 'Slices',
        'slices_excluded': 'Excluded',
        'ncc_mean': 'NCC',
        'weight_mean': 'Weight',
        'motion_mean_mm': 'Motion (mm)',
        'motion_max_mm': 'at most (mm)',
    }
    how = {record['Number']: _mask_in_words(record['Mask']) for record in known['Stacks']}
    rows = [[_short(row[name]) for name in columns] + [how[int(row['stack'])]] for row in per_stack]
    return {
        'title': 'Stacks',
        'text': 'NCC: correlation of slices with what the other stacks predict of them; weight: how much the pixels '
        'count, 0 to 1; motion: of slices, less that of their whole stack.',
        'columns': [*columns.values(), 'Mask'],
        'rows': rows,
    }


def _short(cell: str) -> str:
    """A cell of a table with the digits that matter to the eye."""
    return (
        f'{float(cell):.2f}' if cell.replace('.', '', 1).replace('-', '').isdigit() and '.' in cell else cell
    )


def _mask_in_words(source: str) -> str:
    """The records hold the path of a given mask, and what was done to it."""
    is_path = source.startswith('/')
    return 'given' + (f' ({source.split(" (", 1)[1]}' if ' (' in source else '') if is_path else source


def excluded_slices(slices) -> dict:
    """The table of excluded slices for the report."""
    columns = {
        'file': 'Stack',
        'slice': 'Slice',
        'ncc': 'NCC',
        'weight': 'Weight',
        'motion_mm': 'Motion (mm)',
    }
    rows = [[_short(row[name]) for name in columns] for row in slices if row['excluded'] == '1']
    more = (
        f' The first {MOST_ROWS} of {len(rows)}; all are in the table of slices.'
        if len(rows) > MOST_ROWS
        else ''
    )
    text = 'They count for next to nothing in the volume, or never found their place.' + more
    return {
        'title': f'Excluded slices: {len(rows) or "none"}',
        'text': text if rows else '',
        'columns': list(columns.values()),
        'rows': rows[:MOST_ROWS],
    }
