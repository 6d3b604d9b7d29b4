"""Where the results of GaussM2ASR go: the sinks of one image, and the names and sidecars they give."""

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
    picture_sink,
    recorded_verdict,
    transform_path,
)
from bids_gsrecon.workflows.plan_m2asr import M2asrSession, M2asrTarget


def session_results(config: Config, session: M2asrSession) -> list[Path]:
    """Files that a session must have made: images below the output folder, or pairs to train on."""
    if config.method.m2asr_train:
        return [Path(target.pair_file) for target in session.targets]
    return [image_name(target).path('.nii.gz') for target in session.targets]


def session_verdicts(config: Config, session: M2asrSession) -> list[str]:
    """Trust, check or do not use, and why, of every image that was made."""
    if config.method.m2asr_train:
        return []
    return [
        sentence
        for target in session.targets
        for sentence in recorded_verdict(
            config, image_name(target).path('.nii.gz'), image_name(target).stem()
        )
    ]


def image_name(target: M2asrTarget) -> BidsName:
    """``..._res-inplane_desc-sr_<suffix>`` with all entities of the source kept: it stays in its own space."""
    return target.name.replaced(res='inplane', desc='sr')


def init_ds_m2asr_wf(
    *, config: Config, session: M2asrSession, target: M2asrTarget, name: str = 'ds_m2asr_wf'
) -> LiterateWorkflow:
    """Write one image: result, transform, pictures.

    Inputs
    ------
    image, transform
        Files to put in place.
    metadata, registration_metadata
        JSON files: what the network and the registration did.
    pictures, parts
        Reportlets and what each of them shows.
    """
    workflow = LiterateWorkflow(name=name)
    fields = ['image', 'transform', 'metadata', 'registration_metadata', 'pictures', 'parts']
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name='inputnode')
    raw = [raw_uri(path, config.bids_dir) for path in (target.file, session.reference)]
    masks = [f'file://{session.mask}'] if session.mask else []
    pixel = ' x '.join(f'{size:.4g}' for size in target.in_plane_mm)
    ds_image = derivative_sink(
        config,
        'ds_image',
        image_name(target).path('.nii.gz'),
        {
            'Description': 'the same slices with finer pixels, by a trained network that looks at the reference '
            '(GaussM2ASR)',
            'Resolution': f'pixels of {pixel} mm over the field of view of the image, its own slices',
            'Sources': [*raw, *masks, f'file://{config.method.m2asr_weights}'],
            'GeneratedBy': generated_by(),
        },
    )
    ds_transform = derivative_sink(
        config, 'ds_transform', transform_path(target, config.method.reference), {'Sources': raw}
    )
    ds_pictures = picture_sink(config, 'ds_pictures', target.name)
    workflow.connect([
        (inputnode, ds_image, [('image', 'in_file'), ('metadata', 'metadata_file')]),
        (inputnode, ds_transform, [('transform', 'in_file'), ('registration_metadata', 'metadata_file')]),
        (inputnode, ds_pictures, [('pictures', 'in_files'), ('parts', 'parts')]),
    ])  # fmt: skip
    return workflow
