"""Nipype interfaces that draw the pictures of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    OutputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)


class _ImageInputSpec(BaseInterfaceInputSpec):
    target = File(exists=True, mandatory=True, desc='image as acquired')
    result = File(exists=True, mandatory=True, desc='image on the output grid')
    mask = File(exists=True, mandatory=True, desc='where it was reconstructed')
    residual = File(exists=True, mandatory=True, desc='target minus what is predicted of it, on its own grid')
    figures = traits.Either(
        File(exists=True), traits.Dict(), desc='figures of merit: a JSON file or a dictionary'
    )
    parameters = traits.Dict(desc='further entries of the merit file: profile, thickness, ...')


class PartsOutputSpec(TraitedSpec):
    """Of every interface that draws."""

    out_files = OutputMultiPath(File(exists=True), desc='all reportlets')
    parts = traits.List(traits.Str, desc='what each of them shows: the desc- entity of its name')


class _ImageOutputSpec(PartsOutputSpec):
    before = File(exists=True, desc='the image as acquired')
    interpolated = File(exists=True, desc='the same after linear interpolation')
    after = File(exists=True, desc='the result')
    residual = File(exists=True, desc='residual in units of noise')
    merit = File(exists=True, desc='JSON: figures of merit and parameters')


class _HarmonizeReportletsInputSpec(_ImageInputSpec):
    reference = File(exists=True, mandatory=True, desc='isotropic reference')
    uncertainty = File(exists=True, desc='uncertainty map on the grid of the result')
    target_to_reference = traits.List(
        traits.List(traits.Float),
        xor=['transform'],
        desc='4x4 rigid world motion (RAS mm): target world to reference world',
    )
    transform = File(
        exists=True,
        xor=['target_to_reference'],
        desc='the same motion as an ITK file (see save_itk_transform)',
    )


class _HarmonizeReportletsOutputSpec(_ImageOutputSpec):
    registration = File(exists=True, desc='edges of the reference on the target')
    uncertainty = File(exists=True, desc='uncertainty map')


class HarmonizeReportlets(SimpleInterface):
    """Pictures of one harmonised contrast: before, after, registration, uncertainty, residual, and a JSON
    file.

    All but the residual are cut from one view of the result's grid and agree pixel by pixel.
    """

    input_spec = _HarmonizeReportletsInputSpec
    output_spec = _HarmonizeReportletsOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.imaging.lattice import Volume
        from bids_gsrecon.reports import figures

        inputs = self.inputs
        reference, target, result = (
            load_picture(p) for p in (inputs.reference, inputs.target, inputs.result)
        )
        mask = load_picture(inputs.mask)
        if isdefined(inputs.transform):
            from bids_gsrecon.interfaces.registration import load_itk_transform

            target = Volume(target.data, target.lattice.moved(load_itk_transform(inputs.transform)))
        elif isdefined(inputs.target_to_reference):
            target = Volume(target.data, target.lattice.moved(np.array(inputs.target_to_reference)))
        inside = figures.sample_mask(mask, result.lattice)
        view = figures.make_view(result.lattice, inside)
        window = figures.intensity_window(result, inside)
        pictures = _flips(target, result, view, window)
        pictures['registration'] = figures.registration_montage(
            target, reference, view, window=window, mask=mask
        )
        merit = _merit(inputs, target, result)
        if isdefined(inputs.uncertainty):
            pictures['uncertainty'] = figures.uncertainty_montage(
                load_picture(inputs.uncertainty), view, mask
            )
        pictures['residual'] = _residual(inputs, target, mask, merit)
        contents = {**pictures, 'merit': json_bytes(merit)}
        write_parts(self, contents, Path(runtime.cwd))
        return runtime


class _ReferenceReportletsInputSpec(BaseInterfaceInputSpec):
    reference = File(exists=True, mandatory=True, desc='isotropic reference')
    mask = File(exists=True, mandatory=True, desc='its mask')
    like = File(exists=True, desc='image on the output grid, where that is not the grid of the reference')
    summary = traits.Dict(desc='what was done in this session; shown at the top of the report')


class _ReferenceReportletsOutputSpec(PartsOutputSpec):
    reference = File(exists=True, desc='the reference; flips with before and after')
    mask = File(exists=True, desc='the reference with the contour of the mask')
    summary = File(exists=True, desc='JSON')


class ReferenceReportlets(SimpleInterface):
    """Pictures of a session's reference: plain (same view as the contrasts) and with the mask's contour."""

    input_spec = _ReferenceReportletsInputSpec
    output_spec = _ReferenceReportletsOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.reports import figures

        reference, mask = load_picture(self.inputs.reference), load_picture(self.inputs.mask)
        lattice = load_picture(self.inputs.like).lattice if isdefined(self.inputs.like) else reference.lattice
        view = figures.make_view(lattice, figures.sample_mask(mask, lattice))
        window = figures.intensity_window(reference, figures.sample_mask(mask, reference.lattice))
        contents = {
            'reference': figures.gray_montage(reference, view, window=window, order=0),
            'mask': figures.gray_montage(reference, view, window=window, order=0, mask=mask),
        }
        if isdefined(self.inputs.summary):
            contents['summary'] = json_bytes(dict(self.inputs.summary))
        write_parts(self, contents, Path(runtime.cwd))
        return runtime


class _SuperresReportletsInputSpec(_ImageInputSpec):
    amplitude = File(exists=True, mandatory=True, desc='amplitude map')
    relaxation_proxy = File(exists=True, mandatory=True, desc='relaxation proxy')
    summary = traits.Dict(desc='what was done in this session; shown at the top of the report')


class _SuperresReportletsOutputSpec(_ImageOutputSpec):
    support = File(exists=True, desc='the image with the contour of the mask')
    amplitude = File(exists=True, desc='amplitude map')
    relaxationproxy = File(exists=True, desc='relaxation proxy')
    summary = File(desc='JSON')


class SuperresReportlets(SimpleInterface):
    """Pictures of one image on a finer grid: before, after, residual, mask, maps, and a JSON file."""

    input_spec = _SuperresReportletsInputSpec
    output_spec = _SuperresReportletsOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.reports import figures

        inputs = self.inputs
        target, result, mask = (load_picture(p) for p in (inputs.target, inputs.result, inputs.mask))
        inside = mask.data > 0.5
        view = figures.make_view(result.lattice, inside)
        window = figures.intensity_window(result, inside)
        merit = _merit(inputs, target, result)
        proxy = load_picture(inputs.relaxation_proxy)
        highest = max(float(np.percentile(proxy.data[inside], 99)) if inside.any() else 1.0, 1e-9)
        contents = {
            **_flips(target, result, view, window),
            'residual': _residual(inputs, target, mask, merit),
            'support': figures.gray_montage(target, view, window=window, order=1, mask=mask),
            'amplitude': figures.gray_montage(load_picture(inputs.amplitude), view, window=window),
            'relaxationproxy': figures.map_montage(
                proxy, view, limits=(0.0, highest), label='no unit', mask=mask
            ),
            'merit': json_bytes(merit),
        }
        if isdefined(inputs.summary):
            contents['summary'] = json_bytes(dict(inputs.summary))
        write_parts(self, contents, Path(runtime.cwd))
        return runtime


def _flips(target, result, view, window) -> dict[str, bytes]:
    """The pictures that agree pixel by pixel."""
    from bids_gsrecon.reports import figures

    return {
        'before': figures.gray_montage(target, view, window=window, order=0),
        'interpolated': figures.gray_montage(target, view, window=window, order=1),
        'after': figures.gray_montage(result, view, window=window, order=0),
    }


def _merit(inputs, target, result) -> dict:
    """Content of the merit file: figures, grids, parameters."""
    figures = inputs.figures if isdefined(inputs.figures) else {}
    if not isinstance(figures, dict):
        content = json.loads(Path(figures).read_text())
        figures = content.get('FiguresOfMerit', content)
    return {
        'figures': figures,
        'input_shape': list(target.data.shape),
        'input_voxel_mm': [round(float(v), 4) for v in target.lattice.voxel_sizes_mm],
        'output_shape': list(result.data.shape),
        'output_voxel_mm': [round(float(v), 4) for v in result.lattice.voxel_sizes_mm],
        'parameters': dict(inputs.parameters) if isdefined(inputs.parameters) else {},
    }


def load_picture(path):
    """A volume for display: masks of ones and empty maps are fine here."""
    import nibabel as nib

    from bids_gsrecon.imaging.lattice import Volume

    image = nib.load(path)
    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    data = data.reshape((*data.shape[:3], -1)).mean(-1) if data.ndim > 3 else data
    return Volume.from_affine(data, image.affine)


def _residual(inputs, target, mask, merit) -> bytes:
    from bids_gsrecon.reports import figures

    residual = _inside(load_picture(inputs.residual), target.lattice, mask)
    return figures.residual_montage(residual, noise_sigma=_noise_sigma(merit['figures']))


def _inside(residual, lattice, mask):
    """The residual where whole voxels of the (moved) target lie in the mask; zero where nothing is fitted."""
    from bids_gsrecon.imaging.lattice import Lattice, Volume
    from bids_gsrecon.reports.figures import sample_mask

    axis = int(np.argmax(lattice.voxel_sizes_mm))
    seen = np.ones(lattice.shape, bool)
    for offset in (-0.4, 0.0, 0.4):  # across the slice
        affine = lattice.affine.copy()
        affine[:3, 3] += offset * affine[:3, axis]
        seen &= sample_mask(mask, Lattice(lattice.shape, affine))
    return Volume(np.where(seen, residual.data, 0), residual.lattice)


def _noise_sigma(figures: dict) -> float | None:
    """The noise in intensity units, where the figures of merit hold it as a share of the brightness."""
    if 'noise_percent' in figures and 'intensity_scale' in figures:
        return figures['noise_percent'] / 100 * figures['intensity_scale']
    return None


def json_bytes(content: dict) -> bytes:
    """Content of a JSON part."""
    return (json.dumps(content, indent=2, default=float) + '\n').encode()


def write_parts(interface, contents: dict[str, bytes], folder: Path) -> None:
    """One file per part, the same names in every run; fills the interface's results."""
    paths = {}
    for part, content in contents.items():
        kinds = {b'{': 'json', b'<': 'svg', b'G': 'gif'}
        suffix = kinds.get(content[:1], 'png')
        paths[part] = folder / f'desc-{part}.{suffix}'
        paths[part].write_bytes(content)
        interface._results[part] = str(paths[part])
    interface._results['out_files'] = [str(path) for path in paths.values()]
    interface._results['parts'] = list(paths)
