"""Where the results of a harmonisation go: the sinks of a session, and the names and sidecars they give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.bids import BidsName, raw_uri
from bids_gsrecon.workflows.literate import LiterateWorkflow
from bids_gsrecon.workflows.outputs import (
    derivative_sink,
    generated_by,
    gradient_companions,
    picture_sink,
    transform_path,
    what_was_used,
)
from bids_gsrecon.workflows.plan_harmonize import HarmonizeSession
from bids_gsrecon.workflows.plan_types import TargetPlan

ISOTROPIC = 1.05  # coarsest over finest voxel size


@dataclass(frozen=True)
class OutputNames:
    """Names of what a session shares: the reference as acquired, prepared, and the output grid's label."""

    reference_raw: BidsName
    reference: BidsName
    resolution_label: str
    resolution_text: str
    space: str

    @property
    def spatial_reference(self) -> str:
        return f'bids::{self.reference.path(".nii.gz").as_posix()}'


def output_names(config: Config, session: HarmonizeSession) -> OutputNames:
    """Names for a session; the reference of another session keeps that session in its name."""
    raw = BidsName.parse(session.reference)
    wanted_mm = config.method.output_resolution_mm
    sizes = session.reference_voxels_mm
    isotropic = wanted_mm > 0 or max(sizes) <= ISOTROPIC * min(sizes)
    if wanted_mm > 0:
        text = f'{wanted_mm:g} mm isotropic over the field of view of the reference'
    else:
        text = f'grid of the reference ({" x ".join(f"{v:.4g}" for v in sizes)} mm)'
    return OutputNames(
        reference_raw=raw,
        reference=raw.replaced(desc='preproc'),
        resolution_label='iso' if isotropic else 'native',
        resolution_text=text,
        space=config.method.reference,
    )


def contrast_name(names: OutputNames, target: TargetPlan, desc: str, **entities) -> BidsName:
    """``..._space-T1w_res-iso_desc-<desc>_<suffix>`` with all entities of the source kept."""
    return target.name.replaced(space=names.space, res=names.resolution_label, desc=desc, **entities)


def session_results(config: Config, session: HarmonizeSession) -> list[Path]:
    """Images that a session must have made, below the output folder."""
    names = output_names(config, session)
    return [contrast_name(names, target, 'sr').path('.nii.gz') for target in session.targets]


def init_ds_reference_wf(
    *, config: Config, session: HarmonizeSession, name: str = 'ds_reference_wf'
) -> LiterateWorkflow:
    """Write the prepared reference, its mask, the scaffold and their pictures.

    Inputs
    ------
    reference, mask, mask_metadata, reference_metadata, scaffold
        Files to put in place.
    pictures, parts
        Reportlets and what each of them shows.
    """
    workflow = LiterateWorkflow(name=name)
    names = output_names(config, session)
    fields = ['reference', 'mask', 'mask_metadata', 'reference_metadata', 'scaffold', 'pictures', 'parts']
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name='inputnode')
    source = raw_uri(session.reference, config.bids_dir)
    common = {'Sources': [source], 'GeneratedBy': generated_by()}
    ds_reference = derivative_sink(
        config,
        'ds_reference',
        names.reference.path('.nii.gz'),
        {'Description': 'bias-corrected (N4) reference', **common},
    )
    mask_sources = [source] if not session.mask else [source, f'file://{session.mask}']
    ds_mask = derivative_sink(
        config,
        'ds_mask',
        names.reference.replaced(desc='brain', suffix='mask').path('.nii.gz'),
        {'Type': 'Brain', **common, 'Sources': mask_sources},
    )
    ds_scaffold = derivative_sink(
        config,
        'ds_scaffold',
        names.reference.replaced(desc='scaffold').path('.h5'),
        _method_metadata(config, common),
    )
    base = names.reference_raw.replaced(ses=session.session)
    ds_pictures = picture_sink(config, 'ds_pictures', base)
    workflow.connect([
        (inputnode, ds_reference, [('reference', 'in_file'), ('reference_metadata', 'metadata_file')]),
        (inputnode, ds_mask, [('mask', 'in_file'), ('mask_metadata', 'metadata_file')]),
        (inputnode, ds_scaffold, [('scaffold', 'in_file')]),
        (inputnode, ds_pictures, [('pictures', 'in_files'), ('parts', 'parts')]),
    ])  # fmt: skip
    return workflow


def _method_metadata(config: Config, common: dict) -> dict:
    return {
        **common,
        'Description': 'anatomy of the reference as a field of Gaussians (HDF5)',
        'RandomSeed': config.execution.random_seed,
        'HarmonizeOptions': config.method.harmonize | {'device': config.method.device},
    }


def init_ds_contrast_wf(
    *,
    config: Config,
    session: HarmonizeSession,
    target: TargetPlan,
    with_mask: bool = False,
    name: str = 'ds_contrast_wf',
) -> LiterateWorkflow:
    """Write one contrast: image, uncertainty, transform, field, pictures; and the mask of the output grid.

    Inputs
    ------
    image, uncertainty, mask, transform, field
        Files to put in place.
    metadata, registration_metadata
        JSON files: what the method and the registration did.
    pictures, parts
        Reportlets and what each of them shows.
    """
    workflow = LiterateWorkflow(name=name)
    names = output_names(config, session)
    fields = ['image', 'uncertainty', 'mask', 'transform', 'field', 'metadata', 'registration_metadata']
    inputnode = pe.Node(niu.IdentityInterface(fields=[*fields, 'pictures', 'parts']), name='inputnode')
    sources = [raw_uri(path, config.bids_dir) for path in (target.file, session.reference)]
    common = {
        'SkullStripped': True,  # the field is defined inside the mask only
        'Resolution': names.resolution_text,
        'SpatialReference': names.spatial_reference,
        'Sources': sources,
        'GeneratedBy': generated_by(),
    }
    image_name = contrast_name(names, target, 'sr')
    ds_image = derivative_sink(
        config,
        'ds_image',
        image_name.path('.nii.gz'),
        {
            'Description': f'{what_was_used(target)}, from thick slices on the grid of the reference by Gaussians (AtlasGS)',
            **common,
        },
        **gradient_companions(target),
    )
    ds_transform = derivative_sink(
        config, 'ds_transform', transform_path(target, names.space), {'Sources': sources}
    )
    field_name = target.name.replaced(space=names.space, desc='field')
    ds_field = derivative_sink(config, 'ds_field', field_name.path('.h5'), {'Sources': sources})
    ds_pictures = picture_sink(config, 'ds_pictures', target.name)
    workflow.connect([
        (inputnode, ds_image, [('image', 'in_file'), ('metadata', 'metadata_file')]),
        (inputnode, ds_transform, [('transform', 'in_file'), ('registration_metadata', 'metadata_file')]),
        (inputnode, ds_field, [('field', 'in_file'), ('metadata', 'metadata_file')]),
        (inputnode, ds_pictures, [('pictures', 'in_files'), ('parts', 'parts')]),
    ])  # fmt: skip
    if config.method.harmonize.get('uncertainty', True):
        text = 'expected root-mean-square error of the image, in its units'
        ds_uncertainty = derivative_sink(
            config,
            'ds_uncertainty',
            contrast_name(names, target, 'uncertainty').path('.nii.gz'),
            {'Description': text, **common},
        )
        workflow.connect(inputnode, 'uncertainty', ds_uncertainty, 'in_file')
    if with_mask:
        mask_name = names.reference_raw.replaced(
            ses=session.session, space=names.space, res=names.resolution_label, desc='brain', suffix='mask'
        )
        metadata = {'Type': 'Brain', 'Description': 'where the contrasts are defined', **common}
        metadata.pop('SkullStripped')
        ds_mask = derivative_sink(
            config, 'ds_mask', mask_name.path('.nii.gz'), {**metadata, 'Sources': sources[1:]}
        )
        workflow.connect(inputnode, 'mask', ds_mask, 'in_file')
    return workflow
