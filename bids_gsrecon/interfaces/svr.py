"""Nipype interfaces of the slice-to-volume reconstruction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    OutputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_gsrecon.errors import about
from bids_gsrecon.interfaces.method import MethodInputSpec, options_of, recorded


class _PrepareStacksInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc='the stacks as acquired')
    mask_files = InputMultiObject(File(exists=True), desc='given masks')
    mask_stacks = traits.List(traits.Int, desc='to which stack (from 0) each mask belongs')
    metadata = traits.List(traits.Dict, mandatory=True, desc='what sidecars say about the slices of each')
    slice_order = traits.Str('', usedefault=True, desc='order of acquisition; empty: by the metadata')


class _PrepareStacksOutputSpec(TraitedSpec):
    out_files = OutputMultiPath(File(exists=True), desc='stacks that show something, without NaN')
    out_masks = OutputMultiPath(File(exists=True), desc='the anatomy in each, on its grid')
    sources = traits.List(traits.Str, desc='the file that each was read from')
    slice_axes = traits.List(traits.Int, desc='stored axis across the slices of each')
    stacks_file = File(exists=True, desc='JSON: how the stacks were understood')


class PrepareStacks(SimpleInterface):
    """Read the stacks of a volume, find their masks, look for everything that speaks against them."""

    input_spec = _PrepareStacksInputSpec
    output_spec = _PrepareStacksOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.interfaces.io import save_json, save_volume
        from bids_gsrecon.interfaces.stacks import read_stack
        from bids_gsrecon.interfaces.svr_checks import checked_stacks
        from bids_gsrecon.interfaces.svr_outputs import stack_records

        inputs, folder, out = self.inputs, Path(runtime.cwd), self._results
        files = [
            read_stack(path, number, metadata=metadata, slice_order=inputs.slice_order or None)
            for number, (path, metadata) in enumerate(zip(inputs.in_files, inputs.metadata), 1)
        ]
        names = [None] * len(files)
        if isdefined(inputs.mask_files):
            for stack, name in zip(inputs.mask_stacks, inputs.mask_files):
                names[stack] = name
        checked = checked_stacks(files, names)
        out['out_files'], out['out_masks'] = [], []
        for file, mask in zip(checked.files, checked.masks):
            affine, stem = file.lattice.affine, f'stack-{file.number}'
            out['out_files'].append(str(save_volume(folder / f'{stem}.nii.gz', file.data, affine)))
            mask = mask & file.finite
            out['out_masks'].append(
                str(save_volume(folder / f'{stem}_mask.nii.gz', mask, affine, dtype=np.uint8))
            )
        out['sources'] = [str(file.path) for file in checked.files]
        out['slice_axes'] = [file.axis for file in checked.files]
        content = {
            'Stacks': stack_records(checked),
            'SliceOrders': [file.order for file in checked.files],
            'MasksGiven': any(name is not None for name in names),
            'StacksLeftOut': [str(file.path) for file in checked.left_out],
            'Warnings': checked.warnings,
        }
        out['stacks_file'] = str(save_json(folder / 'stacks.json', content))
        return runtime


class _CorrectStacksInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc='prepared stacks')
    mask_files = InputMultiObject(File(exists=True), mandatory=True, desc='the anatomy in each')
    sources = traits.List(traits.Str, mandatory=True, desc='the file that each was read from, for messages')
    slice_axes = traits.List(traits.Int, mandatory=True, desc='stored axis across the slices of each')
    denoise = traits.Bool(False, usedefault=True, desc='non-local means within every slice')
    bias_field = traits.Bool(True, usedefault=True, desc='N4 inside the mask')
    seed = traits.Int(0, usedefault=True)


class _CorrectStacksOutputSpec(TraitedSpec):
    out_files = OutputMultiPath(File(exists=True), desc='corrected stacks')


class CorrectStacks(SimpleInterface):
    """Reduce the noise of stacks, and remove their bias fields.

    All stacks in one node, no map node: nipype stores that one with its plugin, and ours cannot be stored.
    """

    input_spec = _CorrectStacksInputSpec
    output_spec = _CorrectStacksOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.interfaces.bias_field import correct_bias_field
        from bids_gsrecon.interfaces.denoise import denoised_slices
        from bids_gsrecon.interfaces.io import load_mask, load_volume, save_volume

        inputs = self.inputs
        paths = []
        rows = zip(inputs.in_files, inputs.mask_files, inputs.sources, inputs.slice_axes)
        for path, mask_path, source, axis in rows:
            volume = load_volume(path)
            if inputs.denoise:
                volume = denoised_slices(volume, axis)
            if inputs.bias_field:
                with about(source):
                    volume = correct_bias_field(volume, load_mask(mask_path), seed=inputs.seed)
            out_file = Path(runtime.cwd) / Path(path).name
            paths.append(str(save_volume(out_file, volume.data, volume.affine)))
        self._results['out_files'] = paths
        return runtime


class _ReconstructStacksInputSpec(MethodInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc='prepared stacks')
    mask_files = InputMultiObject(File(exists=True), mandatory=True, desc='the anatomy in each')
    stacks_file = File(exists=True, mandatory=True, desc='what PrepareStacks found out about them')
    template = File(exists=True, desc='image in whose space the volume shall be')
    gestational_age_weeks = traits.Float(desc='by which the template was chosen, for the records')
    memory_limit_gb = traits.Float(0.0, usedefault=True, nohash=True, desc='0: not known')


class _ReconstructStacksOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='the volume, zero outside of the anatomy')
    out_mask = File(exists=True, desc='the anatomy')
    out_uncertainty = File(exists=True, desc='standard deviation of the error')
    out_coverage = File(exists=True, desc='how many slices see a voxel')
    out_field = File(exists=True, desc='field of Gaussians, HDF5')
    slices_table = File(exists=True, desc='a row per slice')
    stacks_table = File(exists=True, desc='a row per stack')
    pose_files = OutputMultiPath(File(exists=True), desc='ITK transforms, one array, one table')
    simulated_files = OutputMultiPath(File(exists=True), desc='predicted slices, on the grid of each stack')
    metadata_file = File(exists=True, desc='JSON: options, stacks, warnings, figures of merit')
    mask_metadata_file = File(exists=True, desc='JSON: what the mask shows')


class ReconstructStacks(SimpleInterface):
    """One volume and the pose of every slice."""

    input_spec = _ReconstructStacksInputSpec
    output_spec = _ReconstructStacksOutputSpec

    def _run_interface(self, runtime):
        from bids_gsrecon.interfaces.io import load_volume
        from bids_gsrecon.interfaces.svr_checks import check_memory
        from bids_gsrecon.recon.svr import method
        from bids_gsrecon.recon.svr.orientation import turned_to
        from bids_gsrecon.recon.svr.types import SvrOptions

        inputs = self.inputs
        known = json.loads(Path(inputs.stacks_file).read_text())
        files, masks = self._stacks(known)
        options = options_of(inputs, SvrOptions)
        check_memory(files, masks, options.resolution_mm, inputs.memory_limit_gb)
        orientation = None
        with about(', '.join(file.path.name for file in files)):
            result = method.svr([file.stack(mask) for file, mask in zip(files, masks)], options=options)
            if isdefined(inputs.template):
                result, orientation = turned_to(result, load_volume(inputs.template))
        self._write_images(Path(runtime.cwd), files, result)
        self._write_records(Path(runtime.cwd), known, files, options, result, orientation)
        return runtime

    def _stacks(self, known: dict):
        """The stacks under the names of their sources, and their masks."""
        from bids_gsrecon.interfaces.io import load_array
        from bids_gsrecon.interfaces.stacks import StackFile

        files, masks = [], []
        rows = zip(self.inputs.in_files, self.inputs.mask_files, known['Stacks'], known['SliceOrders'])
        for path, mask_path, record, order in rows:
            data, lattice = load_array(path)
            file = StackFile(
                path=Path(record['Input']),
                number=record['Number'],
                data=data,
                finite=np.ones(data.shape, bool),
                lattice=lattice,
                axis=record['SliceAxis'],
                thickness_mm=record['SliceThickness'],
                thickness_source=record['SliceThicknessSource'],
                order=tuple(order),
                order_source=record['SliceOrder'],
            )
            files.append(file)
            masks.append(load_array(mask_path)[0] > 0.5)
        return files, masks

    def _write_images(self, folder: Path, files, result) -> None:
        from bids_gsrecon.fields.io import save_field
        from bids_gsrecon.interfaces.io import save_volume
        from bids_gsrecon.interfaces.svr_outputs import simulated_name, write_poses

        out = self._results
        images = {
            'out_file': (result.image, np.float32),
            'out_mask': (result.mask, np.uint8),
            'out_uncertainty': (result.uncertainty, np.float32),
            'out_coverage': (result.coverage, np.float32),
        }
        for name, (data, dtype) in images.items():
            path = folder / f'{name.removeprefix("out_")}.nii.gz'
            out[name] = str(save_volume(path, data, result.lattice.affine, dtype=dtype))
        out['out_field'] = str(save_field(folder / 'field.h5', [result.field], result.lattice.metadata()))
        poses = folder / 'poses'
        poses.mkdir(exist_ok=True)
        write_poses(poses, files, result)
        simulated = [simulated_name(file) for file in files]
        out['simulated_files'] = [str(poses / name) for name in simulated]
        out['pose_files'] = [str(path) for path in sorted(poses.iterdir()) if path.name not in simulated]

    def _write_records(self, folder: Path, known: dict, files, options, result, orientation) -> None:
        from bids_gsrecon.interfaces.io import save_json
        from bids_gsrecon.interfaces.svr_outputs import (
            doubt_about,
            figures_of_merit,
            slices_table,
            space_record,
            stacks_table,
        )

        inputs, out = self.inputs, self._results
        for name, table in (('slices', slices_table), ('stacks', stacks_table)):
            path = folder / f'{name}.tsv'
            path.write_text(table(files, result))
            out[f'{name}_table'] = str(path)
        space = {}
        if orientation is not None:
            age = inputs.gestational_age_weeks if isdefined(inputs.gestational_age_weeks) else None
            space = space_record(orientation, inputs.template, age)
        metadata = {
            'SkullStripped': True,  # zero outside of the mask, whatever it shows
            'Stacks': known['Stacks'],
            'StacksLeftOut': known['StacksLeftOut'],
            'ReferenceStack': files[result.reference].number,
            **space,
            'SvrOptions': recorded(options),
            'NumberOfGaussians': len(result.field),
            'FiguresOfMerit': figures_of_merit(result),
            'Warnings': [*known['Warnings'], *doubt_about(orientation, inputs.template)],
        }
        out['metadata_file'] = str(save_json(folder / 'metadata.json', metadata))
        mask = (
            {'Type': 'Brain', 'Description': 'where most slices that see a voxel show what their masks hold'}
            if known['MasksGiven']
            else {'Type': 'ROI', 'Description': 'what all stacks show: no masks were given'}
        )
        out['mask_metadata_file'] = str(save_json(folder / 'mask.json', mask))
