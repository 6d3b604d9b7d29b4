"""Nipype interfaces of GaussM2ASR: a pair to train on, and a trained network applied to one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, isdefined, traits

from bids_gsrecon.errors import about
from bids_gsrecon.interfaces.method import MethodInputSpec


class _RegisteredInputSpec(MethodInputSpec):
    reference = File(exists=True, mandatory=True, desc='the reference, bias corrected')
    mask = File(exists=True, mandatory=True, desc='its brain mask')
    target = File(exists=True, mandatory=True, desc='the contrast, 3D')
    transform = File(exists=True, mandatory=True, desc='target to reference, ITK')
    source = traits.Str(mandatory=True, desc='file of the contrast, for messages')
    contrast = traits.Str(mandatory=True, desc='its BIDS suffix')
    reference_contrast = traits.Str('T1w', usedefault=True, desc='that of the reference')
    slice_axis = traits.Range(0, 2, mandatory=True, desc='stored axis of the slices')
    slice_thickness_mm = traits.Float(mandatory=True)


class _MakePairInputSpec(_RegisteredInputSpec):
    subject = traits.Str(mandatory=True)
    key = traits.Str(mandatory=True, desc='what the pair is made of')
    sources = traits.List(traits.Str, mandatory=True, desc='the images as acquired')
    out_path = traits.Str(mandatory=True, desc='where it is kept')


class _MakePairOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='the pair')


class MakePair(SimpleInterface):
    """Bring the reference to the slices of a contrast, and keep both in one small file.

    It always runs: the file outlives the folder of the node, and is in no graph once it is made.
    """

    input_spec = _MakePairInputSpec
    output_spec = _MakePairOutputSpec
    _always_run = True

    def _run_interface(self, runtime):
        from bids_gsrecon.interfaces.io import load_mask, load_volume
        from bids_gsrecon.interfaces.m2asr_pairs import make_pair, save_pair
        from bids_gsrecon.interfaces.registration import load_itk_transform

        inputs = self.inputs
        reference = load_volume(inputs.reference)
        with about(inputs.source):
            pair = make_pair(
                reference,
                load_volume(inputs.target),
                subject=inputs.subject,
                contrast=inputs.contrast,
                reference_contrast=inputs.reference_contrast,
                target_to_reference=load_itk_transform(inputs.transform),
                slice_axis=inputs.slice_axis,
                slice_thickness_mm=inputs.slice_thickness_mm,
                mask=load_mask(inputs.mask, reference.lattice),
            )
        Path(inputs.out_path).parent.mkdir(parents=True, exist_ok=True)
        path = save_pair(inputs.out_path, pair, key=inputs.key, sources=inputs.sources)
        self._results['out_file'] = str(path)
        return runtime


class _ApplyNetworkInputSpec(_RegisteredInputSpec):
    weights = File(exists=True, mandatory=True, desc='the trained network')
    output_shape = traits.List(traits.Int, mandatory=True)
    output_affine = traits.List(traits.List(traits.Float), mandatory=True)


class _ApplyNetworkOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='the image with finer pixels')
    out_reference = File(exists=True, desc='the reference as the network saw it, on that grid')
    out_zero_filled = File(exists=True, desc='the image before the network, on that grid')
    out_mask = File(exists=True, desc='where figures of merit were taken')
    metadata_file = File(exists=True, desc='JSON: network, factors, verdict, figures of merit')


class ApplyNetwork(SimpleInterface):
    """One image with finer pixels, slice by slice, under the guidance of its reference."""

    input_spec = _ApplyNetworkInputSpec
    output_spec = _ApplyNetworkOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.imaging.foreground import skull_stripped_support
        from bids_gsrecon.imaging.lattice import Lattice, Volume
        from bids_gsrecon.imaging.resample import reached, resample
        from bids_gsrecon.interfaces.io import load_mask, load_volume, save_json, save_volume
        from bids_gsrecon.interfaces.m2asr_files import load_weights
        from bids_gsrecon.interfaces.m2asr_outputs import apply_network
        from bids_gsrecon.interfaces.m2asr_pairs import reference_on
        from bids_gsrecon.interfaces.registration import load_itk_transform

        inputs, folder, out = self.inputs, Path(runtime.cwd), self._results
        reference, target = load_volume(inputs.reference), load_volume(inputs.target)
        motion = load_itk_transform(inputs.transform)
        lattice = Lattice(tuple(inputs.output_shape), np.array(inputs.output_affine))
        model = load_weights(inputs.weights)
        slices = {'slice_axis': inputs.slice_axis, 'slice_thickness_mm': inputs.slice_thickness_mm}
        guide = Volume(reference_on(reference, lattice, motion, **slices), lattice)
        matrix = reference.lattice.world_to_voxel @ motion @ lattice.affine
        brain = load_mask(inputs.mask, reference.lattice).astype(np.float32)
        inside = resample(brain, matrix, lattice.shape, 0) > 0.5
        with about(inputs.source):
            made = apply_network(
                model,
                inputs.weights,
                guide,
                target,
                slice_axis=inputs.slice_axis,
                mask=inside,
                seen=reached(lattice.moved(motion), reference.lattice),
                contrast=inputs.contrast,
                reference_contrast=inputs.reference_contrast,
                n_threads=inputs.n_threads,
                device=inputs.options['device'] if isdefined(inputs.options) else 'auto',
            )
        images = {
            'out_file': (made.image.data, np.float32),
            'out_reference': (guide.data, np.float32),
            'out_zero_filled': (made.before.data, np.float32),
            'out_mask': (inside, np.uint8),
        }
        for name, (data, dtype) in images.items():
            path = folder / f'{name.removeprefix("out_")}.nii.gz'
            out[name] = str(save_volume(path, data, lattice.affine, dtype=dtype))
        metadata = {
            'SkullStripped': skull_stripped_support(target) is not None,
            'SliceAxis': inputs.slice_axis,
            'SliceThickness': inputs.slice_thickness_mm,
            **made.record,
        }
        out['metadata_file'] = str(save_json(folder / 'metadata.json', metadata))
        return runtime
