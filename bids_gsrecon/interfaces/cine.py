"""Nipype interface of the cine reconstruction."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, isdefined, traits

from bids_gsrecon.errors import about
from bids_gsrecon.interfaces.method import MethodInputSpec, options_of, recorded


class _ReconstructCineInputSpec(MethodInputSpec):
    in_file = File(exists=True, mandatory=True, desc='raw data, ISMRMRD')
    regions = File(exists=True, desc='labels on the grid of the series')
    retro = traits.List(traits.Float, desc='factors by which fully sampled data are undersampled')


class _ReconstructCineOutputSpec(TraitedSpec):
    magnitude = File(exists=True, desc='series (readout, phase encoding, slice, frame)')
    phase = File(exists=True, desc='its phase in radians')
    gif = File(exists=True, desc='looping picture')
    model = File(exists=True, desc='the Gaussians, HDF5')
    motion = File(exists=True, desc='displacement in mm, two volumes per frame')
    determinant = File(exists=True, desc='area of the Gaussians over that at rest')
    eigenvalueratio = File(exists=True, desc='elongation of the Gaussians')
    roi = File(desc='mean signal of the regions over time; only if there are any')
    retro = File(desc='undersampled reconstructions against full data; only if asked for')
    metadata_file = File(exists=True, desc='JSON: verdict, chi^2 of every slice, options')


class ReconstructCine(SimpleInterface):
    """All slices of one file."""

    input_spec = _ReconstructCineInputSpec
    output_spec = _ReconstructCineOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.interfaces import cine_outputs
        from bids_gsrecon.interfaces.cine_io import load_cine_kspace, save_table, stack_affine
        from bids_gsrecon.interfaces.io import save_json
        from bids_gsrecon.recon.cine import method
        from bids_gsrecon.recon.cine.types import CineOptions

        inputs, folder, out = self.inputs, Path(runtime.cwd), self._results
        options = options_of(inputs, CineOptions)
        slices = load_cine_kspace(inputs.in_file)
        affine = stack_affine(inputs.in_file, [one.affine for one in slices])
        labels = None
        if isdefined(inputs.regions):
            labels = cine_outputs.load_labels(inputs.regions, slices, affine)
        retro = []
        with about(inputs.in_file):
            results = [method.reconstruct_cine(one, options, seed=inputs.seed) for one in slices]
            if isdefined(inputs.retro):
                retro = cine_outputs.retro_rows(slices, inputs.retro, options, seed=inputs.seed)
        paths = {
            name: folder / f'{name}.nii.gz' for name in ('magnitude', 'phase', *cine_outputs.MOTION_MAPS)
        }
        paths |= {'gif': folder / 'cine.gif', 'model': folder / 'model.h5'}
        cine_outputs.write_series(paths, slices, results, affine)
        out |= {name.replace('-', ''): str(path) for name, path in paths.items()}
        if labels is not None:
            out['roi'] = str(folder / 'roi.tsv')
            cine_outputs.write_roi(out['roi'], results, labels, slices[0].frame_ms)
        if retro:
            out['retro'] = str(folder / 'retro.tsv')
            save_table(out['retro'], cine_outputs.RETRO_COLUMNS, retro)
        metadata = cine_outputs.record(slices, results, retro) | {
            'CineOptions': recorded(options),
            'RandomSeed': inputs.seed,
        }
        out['metadata_file'] = str(save_json(folder / 'metadata.json', metadata))
        return runtime
