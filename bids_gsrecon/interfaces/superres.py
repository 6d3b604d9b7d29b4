"""Nipype interface of the super-resolution of one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, traits

from bids_gsrecon.errors import about
from bids_gsrecon.interfaces.method import MethodInputSpec, options_of, recorded


class _SuperResolveInputSpec(MethodInputSpec):
    in_file = File(exists=True, mandatory=True, desc='a 3D image')
    source = traits.Str(mandatory=True, desc='file of the image, for messages')
    slice_axis = traits.Range(0, 2, mandatory=True, desc='stored axis of the slices')
    slice_thickness_mm = traits.Float(mandatory=True)
    voxel_profile = traits.Enum('auto', 'cell', 'box', 'gaussian', 'point', usedefault=True)
    output_mm = traits.Float(mandatory=True, desc='isotropic voxel size')
    memory_limit_gb = traits.Float(0.0, usedefault=True, nohash=True, desc='0: not known')


class _SuperResolveOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='the image on the isotropic grid')
    out_amplitude = File(exists=True, desc='amplitudes of the Gaussians without their weights')
    out_relaxation_proxy = File(exists=True, desc='relaxation proxy, no unit')
    out_mask = File(exists=True, desc='where the image was reconstructed')
    out_residual = File(
        exists=True, desc='image minus what its acquisition makes of the result, its own grid'
    )
    out_field = File(exists=True, desc='field of Gaussians, HDF5')
    metadata_file = File(exists=True, desc='JSON: options, voxel profile, figures of merit')
    image_metadata_file = File(exists=True, desc='JSON: whether the image is skull-stripped')


class SuperResolve(SimpleInterface):
    """One image on an isotropic grid, by Gaussians fitted to it alone."""

    input_spec = _SuperResolveInputSpec
    output_spec = _SuperResolveOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.fields.io import save_field
        from bids_gsrecon.imaging.foreground import skull_stripped_support
        from bids_gsrecon.imaging.support import find_support
        from bids_gsrecon.interfaces.io import load_volume, save_json, save_volume
        from bids_gsrecon.interfaces.superres_checks import check_memory
        from bids_gsrecon.recon.superres import SuperresOptions, output_lattice, superres, voxel_profiles

        inputs, folder, out = self.inputs, Path(runtime.cwd), self._results
        image = load_volume(inputs.in_file)
        lattice = output_lattice(image.lattice, zooms_mm=np.full(3, inputs.output_mm))
        mask, how = find_support(image)
        check_memory(inputs.source, image.lattice, mask, lattice, inputs.memory_limit_gb)
        options = options_of(inputs, SuperresOptions)
        axis = inputs.slice_axis
        profiles = voxel_profiles(
            image.lattice, inputs.voxel_profile, slice_axis=axis, thickness_mm=inputs.slice_thickness_mm
        )
        with about(inputs.source):
            result = superres(image, lattice, profiles=profiles, mask=mask, options=options, seed=inputs.seed)
        images = {
            'out_file': (result.image, lattice, np.float32),
            'out_amplitude': (result.amplitude, lattice, np.float32),
            'out_relaxation_proxy': (result.relaxation_proxy, lattice, np.float32),
            'out_mask': (result.mask, lattice, np.uint8),
            'out_residual': (result.residual, image.lattice, np.float32),
        }
        for name, (data, grid, dtype) in images.items():
            path = folder / f'{name.removeprefix("out_")}.nii.gz'
            out[name] = str(save_volume(path, data, grid.affine, dtype=dtype))
        out['out_field'] = str(save_field(folder / 'field.h5', result.layers, lattice.metadata()))
        stripped = {'SkullStripped': skull_stripped_support(image) is not None}
        metadata = {
            **stripped,
            'SliceAxis': axis,
            'VoxelProfile': inputs.voxel_profile,
            'SliceProfile': profiles[axis].kind,
            'SliceThickness': profiles[axis].thickness_mm,
            'MaskSource': how,
            'RandomSeed': inputs.seed,
            'SuperresOptions': recorded(options),
            'NumberOfGaussians': sum(len(layer) for layer in result.layers),
            'Backend': result.backend,
            'FiguresOfMerit': {name: float(value) for name, value in result.figures.items()},
        }
        for name, content in (('metadata_file', metadata), ('image_metadata_file', stripped)):
            out[name] = str(save_json(folder / f'{name.removesuffix("_file")}.json', content))
        return runtime
