"""Nipype interface that draws the pictures of an image that a trained network made finer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, isdefined, traits

from bids_gsrecon.interfaces.reportlets import PartsOutputSpec, json_bytes, load_picture, write_parts


class _M2asrReportletsInputSpec(BaseInterfaceInputSpec):
    target = File(exists=True, mandatory=True, desc='image as acquired')
    zero_filled = File(exists=True, mandatory=True, desc='the same on the finer grid, before the network')
    result = File(exists=True, mandatory=True, desc='image with finer pixels')
    reference = File(exists=True, mandatory=True, desc='the reference as the network saw it, on that grid')
    mask = File(exists=True, mandatory=True, desc='where figures of merit were taken')
    metadata_file = File(exists=True, mandatory=True, desc='what ApplyNetwork says')
    parameters = traits.Dict(desc='further entries of the merit file')
    summary = traits.Dict(desc='what was done in this session; shown at the top of the report')


class _M2asrReportletsOutputSpec(PartsOutputSpec):
    before = File(exists=True, desc='the image as acquired')
    interpolated = File(exists=True, desc='zero-filled')
    after = File(exists=True, desc='the result')
    guide = File(exists=True, desc='the reference')
    registration = File(exists=True, desc='edges of the reference on the target')
    change = File(exists=True, desc='result minus zero-filled')
    merit = File(exists=True, desc='JSON: verdict, figures of merit, parameters')
    summary = File(desc='JSON')


class M2asrReportlets(SimpleInterface):
    """Pictures of one image with finer pixels, and a JSON file."""

    input_spec = _M2asrReportletsInputSpec
    output_spec = _M2asrReportletsOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.imaging.lattice import Volume
        from bids_gsrecon.reports import figures

        inputs = self.inputs
        target, before, result, reference, mask = (
            load_picture(path)
            for path in (inputs.target, inputs.zero_filled, inputs.result, inputs.reference, inputs.mask)
        )
        known = json.loads(Path(inputs.metadata_file).read_text())
        inside = mask.data > 0.5
        view = figures.make_view(result.lattice, inside)
        window = figures.intensity_window(result, inside)
        change = Volume((result.data - before.data) * (before.data != 0), result.lattice)
        limit = max(float(np.percentile(np.abs(change.data[inside]), 99.5)) if inside.any() else 0.0, 1e-9)
        contents = {
            'before': figures.gray_montage(target, view, window=window, order=0),
            'interpolated': figures.gray_montage(before, view, window=window, order=0),
            'after': figures.gray_montage(result, view, window=window, order=0),
            'guide': figures.gray_montage(
                reference, view, window=figures.intensity_window(reference, inside), order=0
            ),
            'registration': figures.registration_montage(before, reference, view, window=window, mask=mask),
            'change': figures.map_montage(
                change, view, limits=(-limit, limit), colours='RdBu_r', label='units of the image', mask=mask
            ),
            'merit': json_bytes(self._merit(known, target, result)),
        }
        if isdefined(inputs.summary):
            contents['summary'] = json_bytes(dict(inputs.summary))
        write_parts(self, contents, Path(runtime.cwd))
        return runtime

    def _merit(self, known: dict, target, result) -> dict:
        return {
            'verdict': known['Verdict'],
            'reasons': known['Reasons'],
            'warnings': known['Warnings'],
            'figures': known['FiguresOfMerit'],
            'input_shape': list(target.data.shape),
            'input_voxel_mm': [round(float(v), 4) for v in target.lattice.voxel_sizes_mm],
            'output_shape': list(result.data.shape),
            'output_voxel_mm': [round(float(v), 4) for v in result.lattice.voxel_sizes_mm],
            'parameters': {
                **{f'network_{name}': value for name, value in known['Network'].items()},
                **(dict(self.inputs.parameters) if isdefined(self.inputs.parameters) else {}),
            },
        }
