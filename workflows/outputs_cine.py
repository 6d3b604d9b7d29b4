"""Where the results of a cine reconstruction go: the sinks of one series, their names and sidecars.

BIDS has no name for any of them: all lie in a folder ``cine``, which is in .bidsignore.
"""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.bids import raw_uri
from bids_gsrecon.workflows.literate import LiterateWorkflow
from bids_gsrecon.workflows.outputs import derivative_sink, generated_by, picture_sink, recorded_verdict
from bids_gsrecon.workflows.plan_cine import CineSession, CineTarget

# Entities, and what the sidecar says; the sidecar of the magnitudes holds everything that is known.
IMAGES = {
    'magnitude': (
        {'part': 'mag', 'desc': 'recon'},
        {
            'Description': 'cine series by moving 2D Gaussians fitted to undersampled k-space; readout, phase encoding, '
            'slice, frame'
        },
    ),
    'phase': (
        {'part': 'phase', 'desc': 'recon'},
        {'Description': "phase of the series, of the coils' common reference", 'Units': 'rad'},
    ),
    'motion': (
        {'desc': 'motion'},
        {
            'Description': 'displacement from the mean position, two volumes per frame: along readout and phase encoding',
            'Units': 'mm',
        },
    ),
    'determinant': (
        {'desc': 'determinant'},
        {
            'Description': 'area of the Gaussians over that at their mean shape: below 1 where tissue is compressed'
        },
    ),
    'eigenvalueratio': (
        {'desc': 'eigenvalueratio'},
        {'Description': 'longest over shortest axis of the Gaussians: 1 where they are round'},
    ),
}
TABLES = {
    'roi': {
        'label': {'Description': 'number of the region'},
        'frame': {'Description': 'from 0'},
        'time_ms': {'Description': 'start of the frame', 'Units': 'ms'},
        'mean': {'Description': 'mean magnitude in the region'},
    },
    'retro': {
        'slice': {'Description': 'from 0, in the order of positions'},
        'R': {'Description': 'factor of undersampling'},
        'ssim': {'Description': 'structural similarity to the images of all lines'},
        'psnr': {'Description': 'peak signal to noise against the images of all lines', 'Units': 'dB'},
        'chi2': {'Description': 'mean squared residual in units of the noise'},
        'verdict': {'Description': 'trust, check or do not use'},
    },
}


def session_results(config: Config, session: CineSession) -> list[Path]:
    """Images that a session must have made, below the output folder."""
    return [image_path(target, 'magnitude') for target in session.targets]


def session_verdicts(config: Config, session: CineSession) -> list[str]:
    """Trust, check or do not use, and why, of every series that was made."""
    return [
        sentence
        for target in session.targets
        for sentence in recorded_verdict(config, image_path(target, 'magnitude'), target.name.stem())
    ]


def image_path(target: CineTarget, part: str) -> Path:
    """Of one of `IMAGES`, below the output folder."""
    entities, _ = IMAGES[part]
    return target.name.replaced(**entities).path('.nii.gz')


def init_ds_cine_wf(*, config: Config, target: CineTarget, name: str = 'ds_cine_wf') -> LiterateWorkflow:
    """Write one series: images, looping picture, model, tables, pictures.

    Inputs
    ------
    magnitude, phase, motion, determinant, eigenvalueratio, gif, model
        Files to put in place.
    roi, retro
        The same, where the target has regions and factors.
    metadata
        JSON file: what the method did.
    pictures, parts
        Reportlets and what each of them shows.
    """
    workflow = LiterateWorkflow(name=name)
    fields = [*IMAGES, 'gif', 'model', *TABLES, 'metadata', 'pictures', 'parts']
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name='inputnode')
    sources = [raw_uri(target.file, config.bids_dir)]
    sources += [f'file://{target.regions}'] if target.regions else []
    common = {'Sources': sources, 'GeneratedBy': generated_by()}
    sinks = {
        part: derivative_sink(config, f'ds_{part}', image_path(target, part), {**text, **common})
        for part, (_, text) in IMAGES.items()
    }
    gif = target.name.replaced(desc='recon').path('.gif')
    sinks['gif'] = derivative_sink(config, 'ds_gif', gif)
    model = target.name.replaced(desc='model').path('.h5')
    sinks['model'] = derivative_sink(config, 'ds_model', model, common)
    for part, wanted in (('roi', target.regions), ('retro', target.retro)):
        if wanted:
            path = target.name.replaced(desc=part).path('.tsv')
            sinks[part] = derivative_sink(config, f'ds_{part}', path, TABLES[part])
    for part, sink in sinks.items():
        workflow.connect(inputnode, part, sink, 'in_file')
    ds_pictures = picture_sink(config, 'ds_pictures', target.name)
    workflow.connect([
        (inputnode, sinks['magnitude'], [('metadata', 'metadata_file')]),
        (inputnode, sinks['model'], [('metadata', 'metadata_file')]),
        (inputnode, ds_pictures, [('pictures', 'in_files'), ('parts', 'parts')]),
    ])  # fmt: skip
    return workflow
