"""Thin nipype interfaces around images: check and average, brain mask, bias field, registration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_gsrecon.errors import InputError, about
from bids_gsrecon.imaging.lattice import Volume


class _PrepareTargetInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='a 3D image, or a series to average')
    volumes = traits.List(traits.Int, desc='volumes of the series to average (b=0); undefined: all')
    average = traits.Bool(False, usedefault=True, desc='a series is averaged; otherwise it is refused')


class _PrepareTargetOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='a valid 3D image: the input itself, or the average')


class PrepareTarget(SimpleInterface):
    """Check every voxel of a contrast, and average a series (b=0 volumes, ASL, M0) over time."""

    input_spec = _PrepareTargetInputSpec
    output_spec = _PrepareTargetOutputSpec

    def _run_interface(self, runtime):
        import nibabel as nib

        from bids_gsrecon.interfaces.io import load_volume, save_volume

        path = self.inputs.in_file
        out_file = Path(runtime.cwd) / 'average.nii.gz'
        if isdefined(self.inputs.volumes):
            image = nib.load(path)
            try:
                data = np.asanyarray(image.dataobj)[..., self.inputs.volumes].mean(-1, dtype=np.float64)
            except Exception as error:
                raise InputError(
                    f'{path} cannot be read ({error}): the file is truncated; copy it again.'
                ) from error
            if not np.isfinite(data).all():
                raise InputError(
                    f'{path} holds NaN or infinite values: replace them (for instance by 0) first.'
                )
            save_volume(out_file, data, image.affine)
            load_volume(out_file)
        else:
            volume = load_volume(path, allow_4d_mean=self.inputs.average)
            if not self.inputs.average:
                self._results['out_file'] = path
                return runtime
            save_volume(out_file, volume.data, volume.affine)
        self._results['out_file'] = str(out_file)
        return runtime


class _CheckReferenceInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='the reference')
    accept_thick = traits.Bool(
        False, usedefault=True, desc='the user named this reference: thick slices are accepted'
    )


class _CheckReferenceOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='the same file')


class CheckReference(SimpleInterface):
    """Check every voxel of the reference, and that it can be a scaffold."""

    input_spec = _CheckReferenceInputSpec
    output_spec = _CheckReferenceOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.interfaces.io import load_volume
        from bids_gsrecon.recon.harmonize import check_reference

        volume = load_volume(self.inputs.in_file)
        if not self.inputs.accept_thick:
            with about(self.inputs.in_file):
                check_reference(volume)
        self._results['out_file'] = self.inputs.in_file
        return runtime


class _FindBrainMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='image')
    mask_file = File(exists=True, desc='a given mask, on any grid; found if undefined')
    template = traits.Str('auto', usedefault=True, desc='"auto" or a T1w template file')
    seed = traits.Int(0, usedefault=True)
    n_threads = traits.Int(1, usedefault=True, nohash=True)


class _FindBrainMaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc='mask on the grid of the image, uint8')
    metadata_file = File(exists=True, desc='JSON: how the mask was found')
    image_metadata_file = File(exists=True, desc='JSON: whether the image is skull-stripped')


class FindBrainMask(SimpleInterface):
    """The brain mask: given, or that of a skull-stripped image, or by ANTs from a template."""

    input_spec = _FindBrainMaskInputSpec
    output_spec = _FindBrainMaskOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.imaging.foreground import skull_stripped_support
        from bids_gsrecon.interfaces.io import load_mask, load_volume, save_json, save_volume

        volume = load_volume(self.inputs.in_file)
        if isdefined(self.inputs.mask_file):
            mask, how = load_mask(self.inputs.mask_file, volume.lattice), f'given: {self.inputs.mask_file}'
        else:
            from bids_gsrecon.interfaces.brain_mask import find_brain_mask

            template = self.inputs.template
            with about(self.inputs.in_file):
                mask, how = find_brain_mask(
                    volume,
                    template=template if template == 'auto' else Path(template),
                    seed=self.inputs.seed,
                    n_threads=self.inputs.n_threads,
                )
        if not mask.any():
            raise InputError(f'{self.inputs.in_file}: no brain was found; give a mask through --derivatives.')
        folder, out = Path(runtime.cwd), self._results
        out['out_mask'] = str(save_volume(folder / 'brain_mask.nii.gz', mask, volume.affine, dtype=np.uint8))
        metadata = {'Description': f'brain mask ({how})', 'MaskSource': how}
        out['metadata_file'] = str(save_json(folder / 'brain_mask.json', metadata))
        stripped = {'SkullStripped': skull_stripped_support(volume) is not None}
        out['image_metadata_file'] = str(save_json(folder / 'image.json', stripped))
        return runtime


class _CorrectBiasInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='image')
    mask_file = File(exists=True, mandatory=True, desc='where the bias field is estimated')
    seed = traits.Int(0, usedefault=True)


class _CorrectBiasOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='corrected image')


class CorrectBias(SimpleInterface):
    """N4 bias field correction inside a mask."""

    input_spec = _CorrectBiasInputSpec
    output_spec = _CorrectBiasOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.interfaces.bias_field import correct_bias_field
        from bids_gsrecon.interfaces.io import load_mask, load_volume, save_volume

        volume = load_volume(self.inputs.in_file)
        mask = load_mask(self.inputs.mask_file, volume.lattice)
        with about(self.inputs.in_file):
            corrected = correct_bias_field(volume, mask, seed=self.inputs.seed)
        out_file = save_volume(Path(runtime.cwd) / 'corrected.nii.gz', corrected.data, corrected.affine)
        self._results['out_file'] = str(out_file)
        return runtime


class _RegisterInputSpec(BaseInterfaceInputSpec):
    fixed = File(exists=True, mandatory=True, desc='reference')
    moving = File(exists=True, mandatory=True, desc='contrast')
    fixed_mask = File(exists=True, desc='brain mask of the reference')
    moving_name = traits.Str(desc='name of the contrast in messages (default: the moving file)')
    seed = traits.Int(0, usedefault=True)
    n_threads = traits.Int(1, usedefault=True, nohash=True)


class _RegisterOutputSpec(TraitedSpec):
    out_transform = File(exists=True, desc='ITK text file, for resampling moving onto fixed')
    metadata_file = File(exists=True, desc='JSON: metric, size of the correction, how it was found')


class RegisterRigid(SimpleInterface):
    """Rigid registration of one contrast to the reference."""

    input_spec = _RegisterInputSpec
    output_spec = _RegisterOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.interfaces.io import load_mask, load_volume, save_json
        from bids_gsrecon.interfaces.registration import register_rigid, save_itk_transform

        fixed = load_volume(self.inputs.fixed)
        moving: Volume = load_volume(self.inputs.moving)
        mask = load_mask(self.inputs.fixed_mask, fixed.lattice) if isdefined(self.inputs.fixed_mask) else None
        name = self.inputs.moving_name if isdefined(self.inputs.moving_name) else self.inputs.moving
        with about(name):
            found = register_rigid(
                fixed, moving, fixed_mask=mask, seed=self.inputs.seed, n_threads=self.inputs.n_threads
            )
        folder, out = Path(runtime.cwd), self._results
        out['out_transform'] = str(save_itk_transform(folder / 'to_reference.txt', found.moving_to_fixed))
        metadata = {
            'NormalizedMutualInformation': found.metric,
            'NormalizedMutualInformationOfHeaders': found.initial_metric,
            'MovedMillimetres': found.moved_mm,
            'MovedDegrees': found.moved_deg,
            'HowRegistered': found.how,
        }
        out['metadata_file'] = str(save_json(folder / 'registration.json', metadata))
        return runtime
