"""Nipype interface that draws the pictures of a cine reconstruction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, isdefined, traits

from bids_gsrecon.interfaces.reportlets import PartsOutputSpec, json_bytes, write_parts


class _CineReportletsInputSpec(BaseInterfaceInputSpec):
    result = File(exists=True, mandatory=True, desc='magnitudes (readout, phase encoding, slice, frame)')
    gif = File(exists=True, mandatory=True, desc='looping picture')
    metadata_file = File(exists=True, mandatory=True, desc='what ReconstructCine says')
    parameters = traits.Dict(desc='further entries of the merit file')
    summary = traits.Dict(desc='what was done in this session; shown at the top of the report')


class _CineReportletsOutputSpec(PartsOutputSpec):
    movie = File(exists=True, desc='GIF: looping picture')
    profile = File(exists=True, desc='a line across the heart over time')
    chi2 = File(exists=True, desc='SVG: chi^2 of every slice')
    merit = File(exists=True, desc='JSON: verdict, figures of merit, tables')
    summary = File(desc='JSON')


class CineReportlets(SimpleInterface):
    """Pictures of one series: looping picture, x-t profile, chi^2, and a JSON file."""

    input_spec = _CineReportletsInputSpec
    output_spec = _CineReportletsOutputSpec

    def _run_interface(self, runtime):
        import nibabel as nib

        from bids_gsrecon.reports import cine_figures

        inputs = self.inputs
        known = json.loads(Path(inputs.metadata_file).read_text())
        data = np.asarray(nib.load(inputs.result).dataobj, np.float32)
        data = data.reshape((*data.shape, 1, 1)[:4])
        series = data.transpose(2, 3, 0, 1)  # as the looping picture
        chi2 = [one['chi2'] for one in known['Slices']]
        contents = {
            'movie': Path(inputs.gif).read_bytes(),
            'profile': cine_figures.profile_montage(series, known['VoxelSizes'][:2], known['FrameTime']),
            'chi2': cine_figures.chi2_plot(chi2),
            'merit': json_bytes(self._merit(known, data.shape)),
        }
        if isdefined(inputs.summary):
            contents['summary'] = json_bytes(dict(inputs.summary))
        write_parts(self, contents, Path(runtime.cwd))
        return runtime

    def _merit(self, known: dict, shape) -> dict:
        slices = known['Slices']
        frames = f', {shape[3]} frames' + (
            f' of {1000 * known["FrameTime"]:.3g} ms' if known['FrameTime'] else ''
        )
        return {
            'verdict': known['Verdict'],
            'reasons': known['Reasons'],
            'figures': figures_of_merit(known),
            'input_text': f'{known["NumberOfCoils"]} coils, R = {known["Acceleration"]:.1f}{frames}',
            'output_shape': list(shape[:3]),
            'output_voxel_mm': known['VoxelSizes'],
            'tables': [
                slices_summary(slices),
                *([retro_summary(known)] if 'RetrospectiveUndersampling' in known else []),
            ],
            'parameters': {
                'noise_from': known['NoiseSource'],
                'virtual_coils': known['NumberOfVirtualCoils'],
                **known['CineOptions'],
                **(dict(self.inputs.parameters) if isdefined(self.inputs.parameters) else {}),
            },
        }


def figures_of_merit(known: dict) -> dict[str, float]:
    """Of all slices together: the chi^2 that is farthest from 1, sums of the rest."""
    slices = known['Slices']
    return {
        'chi2': max((one['chi2'] for one in slices), key=lambda value: abs(np.log(max(value, 1e-9)))),
        'unexplained_percent': 100 * max(one.get('unexplained_share', 0.0) for one in slices),
        'acceleration': known['Acceleration'],
        'lines_left_out': int(sum(one.get('lines_left_out', 0) for one in slices)),
        'n_gaussians': int(sum(one.get('gaussians', 0) for one in slices)),
        'n_moving_gaussians': int(sum(one.get('moving_gaussians', 0) for one in slices)),
    }


def slices_summary(slices: list[dict]) -> dict:
    """The table of slices for the report."""
    columns = {
        'chi2': 'chi^2',
        'gaussians': 'Gaussians',
        'moving_gaussians': 'Moving',
        'modes': 'Temporal modes',
        'lines_left_out': 'Lines left out',
    }
    rows = [
        [number, one['verdict'], *(_short(one[name]) if name in one else '' for name in columns)]
        for number, one in enumerate(slices)
    ]
    text = (
        'chi^2: mean squared residual in units of the noise; 1 says that the data are described down to it.'
    )
    return {'title': 'Slices', 'text': text, 'columns': ['Slice', 'Verdict', *columns.values()], 'rows': rows}


def retro_summary(known: dict) -> dict:
    """The table of --retro-R for the report."""
    rows = known['RetrospectiveUndersampling']
    return {
        'title': 'Fully sampled data, undersampled',
        'text': 'Reconstructions from fewer lines, against the images of all lines.',
        'columns': list(rows[0]),
        'rows': [[_short(value) for value in row.values()] for row in rows],
    }


def _short(value) -> str:
    return f'{value:.4g}' if isinstance(value, (int, float)) else str(value)
