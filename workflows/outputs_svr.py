"""Where the results of a slice-to-volume reconstruction go: the sinks of one volume, their names and sidecars."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.bids import BidsName, raw_uri
from bids_gsrecon.interfaces.svr_outputs import SLICES_DICTIONARY, STACKS_DICTIONARY
from bids_gsrecon.workflows.literate import LiterateWorkflow
from bids_gsrecon.workflows.outputs import derivative_sink, folder_sink, generated_by, picture_sink
from bids_gsrecon.workflows.plan_svr import SvrSession, SvrTarget

MAPS = {
    'uncertainty': 'standard deviation of the error, in the units of the volume',
    'coverage': 'how many slices see a voxel, by their weights; no unit',
}
TABLES = {'slices': SLICES_DICTIONARY, 'stacks': STACKS_DICTIONARY}


def session_results(config: Config, session: SvrSession) -> list[Path]:
    """Images that a session must have made, below the output folder."""
    return [image_name(target, 'recon').path('.nii.gz') for target in session.targets]


def image_name(target: SvrTarget, desc: str, **entities) -> BidsName:
    """``..._rec-svr_desc-<desc>_<suffix>``; entities in which the stacks differ are dropped."""
    return target.name.replaced(desc=desc, **entities)


def poses_folder(target: SvrTarget) -> Path:
    """Many files that BIDS has no names for; ``svr`` is in .bidsignore."""
    return target.name.folder().with_name('svr') / target.name.stem()


def init_ds_svr_wf(*, config: Config, target: SvrTarget, name: str = 'ds_svr_wf') -> LiterateWorkflow:
    """Write one volume: image, mask, maps, field, tables, poses, pictures.

    Inputs
    ------
    image, mask, uncertainty, coverage, field, slices, stacks
        Files to put in place.
    poses, simulated
        Lists of files for the folder of poses.
    metadata, mask_metadata
        JSON files: what the method did; what the mask shows.
    pictures, parts
        Reportlets and what each of them shows.
    """
    workflow = LiterateWorkflow(name=name)
    fields = ['image', 'mask', *MAPS, 'field', *TABLES, 'poses', 'simulated', 'metadata', 'mask_metadata']
    inputnode = pe.Node(niu.IdentityInterface(fields=[*fields, 'pictures', 'parts']), name='inputnode')
    sources = [raw_uri(stack.file, config.bids_dir) for stack in target.stacks]
    masks = [f'file://{stack.mask}' for stack in target.stacks if stack.mask]
    common = {
        'Resolution': f'{target.output_mm:g} mm isotropic',
        'Sources': sources + masks,
        'GeneratedBy': generated_by(),
    }
    if target.template:
        common['SpatialReference'] = f'file://{target.template}'
    sinks = {
        'image': derivative_sink(
            config,
            'ds_image',
            image_name(target, 'recon').path('.nii.gz'),
            {
                'Description': 'one volume of Gaussians from stacks of slices, each in a pose of its own',
                **common,
            },
        ),
        'mask': derivative_sink(
            config,
            'ds_mask',
            image_name(target, target.mask_label, suffix='mask').path('.nii.gz'),
            common,
        ),
        'field': derivative_sink(
            config, 'ds_field', image_name(target, 'field').path('.h5'), {'Sources': sources}
        ),
    }
    for part, text in MAPS.items():
        metadata = {'Description': text, 'SkullStripped': True, **common}
        path = image_name(target, part).path('.nii.gz')
        sinks[part] = derivative_sink(config, f'ds_{part}', path, metadata)
    for part, dictionary in TABLES.items():
        path = image_name(target, part).path('.tsv')
        sinks[part] = derivative_sink(config, f'ds_{part}', path, dictionary)
    for part, sink in sinks.items():
        workflow.connect(inputnode, part, sink, 'in_file')
    merge_poses = pe.Node(niu.Merge(2), name='merge_poses', run_without_submitting=True, mem_gb=0.1)
    ds_poses = folder_sink(config, 'ds_poses', poses_folder(target))
    # One report, whatever the space: it shows the last run.
    ds_pictures = picture_sink(config, 'ds_pictures', target.name.replaced(space=None))
    workflow.connect([
        (inputnode, sinks['image'], [('metadata', 'metadata_file')]),
        (inputnode, sinks['mask'], [('mask_metadata', 'metadata_file')]),
        (inputnode, sinks['field'], [('metadata', 'metadata_file')]),
        (inputnode, merge_poses, [('poses', 'in1'), ('simulated', 'in2')]),
        (merge_poses, ds_poses, [('out', 'in_files')]),
        (inputnode, ds_pictures, [('pictures', 'in_files'), ('parts', 'parts')]),
    ])  # fmt: skip
    return workflow
