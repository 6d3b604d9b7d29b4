"""Where the results of a super-resolution go: the sinks of one image, and the names and sidecars they give."""

from __future__ import annotations

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
    what_was_used,
)
from bids_gsrecon.workflows.plan_superres import SuperresSession, SuperresTarget


def session_results(config: Config, session: SuperresSession) -> list[Path]:
    """Images that a session must have made, below the output folder."""
    return [image_name(target, 'sr').path('.nii.gz') for target in session.targets]


def image_name(target: SuperresTarget, desc: str, **entities) -> BidsName:
    """``..._res-iso_desc-<desc>_<suffix>`` with all entities of the source kept: it stays in its own space."""
    return target.name.replaced(res='iso', desc=desc, **entities)


def mask_name(target: SuperresTarget) -> BidsName:
    """The contrast is in the description: images of one session have masks of their own."""
    return image_name(target, f'support{target.name.suffix}', suffix='mask')


def init_ds_superres_wf(
    *, config: Config, target: SuperresTarget, name: str = 'ds_superres_wf'
) -> LiterateWorkflow:
    """Write one image: result, maps, mask, field, pictures.

    Inputs
    ------
    image, amplitude, relaxation_proxy, mask, field
        Files to put in place.
    metadata, image_metadata
        JSON files: what the method did; whether the image is skull-stripped.
    pictures, parts
        Reportlets and what each of them shows.
    """
    workflow = LiterateWorkflow(name=name)
    fields = ['image', 'amplitude', 'relaxation_proxy', 'mask', 'field', 'metadata', 'image_metadata']
    inputnode = pe.Node(niu.IdentityInterface(fields=[*fields, 'pictures', 'parts']), name='inputnode')
    used = what_was_used(target) if target.average else 'one image'
    sources = [raw_uri(target.file, config.bids_dir)]
    common = {
        'Resolution': f'{target.output_mm:g} mm isotropic over the field of view of the image',
        'Sources': sources,
        'GeneratedBy': generated_by(),
    }
    ds_image = derivative_sink(
        config,
        'ds_image',
        image_name(target, 'sr').path('.nii.gz'),
        {
            'Description': f'{used}, on a finer grid by Gaussians fitted to it alone',
            **common,
        },
        **gradient_companions(target),
    )
    ds_amplitude = derivative_sink(
        config,
        'ds_amplitude',
        image_name(target, 'amplitude').path('.nii.gz'),
        {'Description': 'amplitudes of the Gaussians, without their relaxation weights', **common},
    )
    ds_relaxation_proxy = derivative_sink(
        config,
        'ds_relaxation_proxy',
        image_name(target, 'relaxationproxy').path('.nii.gz'),
        {
            'Description': 'how much the Gaussians prevail over their neighbours (rt of 1 - exp(-rt)); no '
            'unit, and no relaxation time: one contrast holds none',
            **common,
        },
    )
    ds_mask = derivative_sink(
        config,
        'ds_mask',
        mask_name(target).path('.nii.gz'),
        {'Type': 'ROI', 'Description': 'where the image was reconstructed, elsewhere interpolated', **common},
    )
    field_name = target.name.replaced(desc='field')
    ds_field = derivative_sink(config, 'ds_field', field_name.path('.h5'), {'Sources': sources})
    ds_pictures = picture_sink(config, 'ds_pictures', target.name)
    workflow.connect([
        (inputnode, ds_image, [('image', 'in_file'), ('metadata', 'metadata_file')]),
        (inputnode, ds_amplitude, [('amplitude', 'in_file'), ('image_metadata', 'metadata_file')]),
        (inputnode, ds_relaxation_proxy, [
            ('relaxation_proxy', 'in_file'),
            ('image_metadata', 'metadata_file'),
        ]),
        (inputnode, ds_mask, [('mask', 'in_file')]),
        (inputnode, ds_field, [('field', 'in_file'), ('metadata', 'metadata_file')]),
        (inputnode, ds_pictures, [('pictures', 'in_files'), ('parts', 'parts')]),
    ])  # fmt: skip
    return workflow
