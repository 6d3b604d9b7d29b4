"""Nipype interfaces of the harmonisation: learn a scaffold once, fit every contrast on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, isdefined, traits

from bids_gsrecon.errors import InputError, about
from bids_gsrecon.interfaces.method import MethodInputSpec, options_of, recorded


class _CommonInputSpec(MethodInputSpec):
    reference = File(exists=True, mandatory=True, desc='isotropic reference, bias corrected')
    mask = File(exists=True, mandatory=True, desc='brain mask')
    memory_limit_gb = traits.Float(0.0, usedefault=True, nohash=True, desc='0: not known')


class _LearnScaffoldInputSpec(_CommonInputSpec):
    scaffold_file = File(exists=True, desc='learned before: taken over instead of learning')


class _LearnScaffoldOutputSpec(TraitedSpec):
    scaffold_file = File(exists=True, desc='the field of Gaussians (HDF5)')


class LearnScaffold(SimpleInterface):
    """Learn the geometry of the anatomy from the reference (first stage of AtlasGS)."""

    input_spec = _LearnScaffoldInputSpec
    output_spec = _LearnScaffoldOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.fields.io import save_field
        from bids_gsrecon.interfaces.io import load_mask, load_scaffold, load_volume
        from bids_gsrecon.recon.harmonize import HarmonizeOptions, learn_scaffold

        reference = load_volume(self.inputs.reference)
        mask = load_mask(self.inputs.mask, reference.lattice)
        if isdefined(self.inputs.scaffold_file):
            scaffold = load_scaffold(self.inputs.scaffold_file, reference)
        else:
            options = options_of(self.inputs, HarmonizeOptions)
            check_memory(self.inputs.reference, mask, [], options, self.inputs.memory_limit_gb)
            scaffold = learn_scaffold(reference, mask, options=options, seed=self.inputs.seed)
        out_file = Path(runtime.cwd) / 'scaffold.h5'
        save_field(out_file, [scaffold], reference.lattice.metadata())
        self._results['scaffold_file'] = str(out_file)
        return runtime


class _HarmonizeContrastInputSpec(_CommonInputSpec):
    scaffold_file = File(exists=True, mandatory=True, desc='what LearnScaffold wrote')
    target = File(exists=True, mandatory=True, desc='thick-slice contrast, 3D')
    transform = File(exists=True, mandatory=True, desc='target to reference, ITK')
    name = traits.Str(mandatory=True, desc='name of the contrast: its channel in the field')
    source = traits.Str(mandatory=True, desc='file of the contrast, for messages')
    slice_axis = traits.Range(0, 2, mandatory=True, desc='stored axis of the slices')
    slice_thickness_mm = traits.Float(mandatory=True)
    slice_profile = traits.Enum('box', 'gaussian', usedefault=True)
    output_resolution_mm = traits.Float(
        0.0, usedefault=True, desc='isotropic voxels; 0: the grid of the reference'
    )


class _HarmonizeContrastOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='the contrast on the output grid')
    out_mask = File(exists=True, desc='the mask on the output grid')
    out_uncertainty = File(desc='expected error, same units (undefined if not asked for)')
    out_transform = File(exists=True, desc='target to reference as it was used, ITK')
    out_field = File(exists=True, desc='field of Gaussians of this contrast, HDF5')
    out_residual = File(exists=True, desc='target minus predicted slices, on the grid of the target')
    metadata_file = File(exists=True, desc='JSON: options, slice profile, pose, figures of merit')


class HarmonizeContrast(SimpleInterface):
    """Fit the appearance of one contrast on the scaffold and render it (second stage of AtlasGS)."""

    input_spec = _HarmonizeContrastInputSpec
    output_spec = _HarmonizeContrastOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.fields.io import save_field
        from bids_gsrecon.imaging.profile import SliceProfile
        from bids_gsrecon.interfaces.io import load_mask, load_scaffold, load_volume, save_json, save_volume
        from bids_gsrecon.interfaces.registration import load_itk_transform, save_itk_transform
        from bids_gsrecon.recon.harmonize import HarmonizeOptions, Target, harmonize

        inputs, folder = self.inputs, Path(runtime.cwd)
        reference, volume = load_volume(inputs.reference), load_volume(inputs.target)
        profile = SliceProfile(inputs.slice_profile, inputs.slice_thickness_mm, inputs.slice_axis)
        target = Target(inputs.name, volume, profile, load_itk_transform(inputs.transform))
        resolution = inputs.output_resolution_mm
        lattice = reference.lattice.resampled(resolution) if resolution > 0 else reference.lattice
        options = options_of(inputs, HarmonizeOptions)
        mask = load_mask(inputs.mask, reference.lattice)
        check_memory(inputs.source, mask, [volume.data.shape], options, inputs.memory_limit_gb)
        with about(inputs.source):
            result = harmonize(
                reference,
                [target],
                mask=mask,
                scaffold=load_scaffold(inputs.scaffold_file, reference),
                lattice=lattice,
                options=options,
                seed=inputs.seed,
            )
        contrast, affine = result.contrasts[0], result.lattice.affine
        out = self._results
        out['out_file'] = str(save_volume(folder / 'image.nii.gz', contrast.image, affine))
        out['out_mask'] = str(save_volume(folder / 'mask.nii.gz', result.mask, affine, dtype=np.uint8))
        if contrast.uncertainty is not None:
            out['out_uncertainty'] = str(
                save_volume(folder / 'uncertainty.nii.gz', contrast.uncertainty, affine)
            )
        out['out_residual'] = str(save_volume(folder / 'residual.nii.gz', contrast.residual, volume.affine))
        motion = contrast.target_to_reference
        out['out_transform'] = str(save_itk_transform(folder / 'to_reference.txt', motion))
        out['out_field'] = str(folder / 'field.h5')
        save_field(folder / 'field.h5', contrast.layers, result.lattice.metadata())
        metadata = {
            'SliceAxis': profile.axis,
            'SliceProfile': profile.kind,
            'SliceThickness': profile.thickness_mm,
            'TargetToReferenceRAS': np.asarray(motion, dtype=float).tolist(),
            'RandomSeed': inputs.seed,
            'HarmonizeOptions': recorded(options),
            'NumberOfGaussians': sum(len(layer) for layer in contrast.layers),
            # Times differ from run to run; everything else here is the same for the same input and seed.
            'FiguresOfMerit': {
                k: float(v) for k, v in contrast.figures.items() if not k.startswith('seconds')
            },
        }
        out['metadata_file'] = str(save_json(folder / 'metadata.json', metadata))
        return runtime


def check_memory(source, mask: np.ndarray, target_shapes, options, limit_gb: float) -> None:
    """Raise `InputError` where the anatomy (i, j, k, bool, on the reference) needs more memory than there is.

    Parameters
    ----------
    source
        File for the message.
    limit_gb
        What may be used; 0: not known.
    """
    from scipy import ndimage

    from bids_gsrecon.recon.harmonize import estimate_memory_gb

    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    need = estimate_memory_gb([s.stop - s.start for s in box], target_shapes, options)
    if 0 < limit_gb < need:
        raise InputError(
            f'{source} needs about {need:.1f} GB of memory to be harmonised and the limit here is {limit_gb:.1f} GB: '
            'give more (--mem).'
        )
