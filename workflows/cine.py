"""Cine from k-space: every file of a session becomes a series, all its slices in one node."""

from __future__ import annotations

import math

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.cine import ReconstructCine
from bids_gsrecon.interfaces.cine_reportlets import CineReportlets
from bids_gsrecon.workflows.literate import LiterateWorkflow
from bids_gsrecon.workflows.nodes import init_targets_wf, light_memory_gb, method_node
from bids_gsrecon.workflows.outputs_cine import IMAGES, init_ds_cine_wf
from bids_gsrecon.workflows.plan_cine import CineSession, CineTarget, estimated_memory_gb


def init_cine_session_wf(*, config: Config, session: CineSession, name: str) -> LiterateWorkflow:
    """All series of one session."""
    return init_targets_wf(
        config=config,
        targets=session.targets,
        init_target_wf=init_cine_wf,
        summary=_summary(config, session),
        description=_description(config, session),
        name=name,
    )


def init_cine_wf(
    *, config: Config, target: CineTarget, summary: dict | None = None, name: str = 'cine_wf'
) -> LiterateWorkflow:
    """One file: reconstruction, pictures, outputs.

    Parameters
    ----------
    config, target
        Settings and what the planner found.
    summary
        What the report says about the session, once per session.

    Inputs
    ------
    kspace
        Raw data.
    """
    workflow = LiterateWorkflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['kspace']), name='inputnode')
    inputnode.inputs.kspace = target.file
    reconstruct = method_node(
        config,
        ReconstructCine(),
        name='reconstruct',
        options=config.method.cine,
        mem_gb=estimated_memory_gb(target),
        takes_device=False,
    )
    if target.regions:
        reconstruct.inputs.regions = target.regions
    if target.retro:
        reconstruct.inputs.retro = target.retro
    n_values = math.prod(target.matrix) * target.n_slices * target.n_frames
    pictures = pe.Node(CineReportlets(), name='pictures', mem_gb=light_memory_gb(n_values))
    if summary:
        pictures.inputs.summary = summary
    ds_cine_wf = init_ds_cine_wf(config=config, target=target)
    tables = [part for part, wanted in (('roi', target.regions), ('retro', target.retro)) if wanted]
    outputs = [*IMAGES, 'gif', 'model', *tables]
    workflow.connect([
        (inputnode, reconstruct, [('kspace', 'in_file')]),
        (reconstruct, pictures, [
            ('magnitude', 'result'),
            ('gif', 'gif'),
            ('metadata_file', 'metadata_file'),
        ]),
        (reconstruct, ds_cine_wf, [(part, f'inputnode.{part}') for part in outputs]),
        (reconstruct, ds_cine_wf, [('metadata_file', 'inputnode.metadata')]),
        (pictures, ds_cine_wf, [('out_files', 'inputnode.pictures'), ('parts', 'inputnode.parts')]),
    ])  # fmt: skip
    return workflow


def _summary(config: Config, session: CineSession) -> dict:
    return {
        'method': 'cine (moving 2D Gaussians)',
        'series': [target.name.stem() for target in session.targets],
        'random_seed': config.execution.random_seed,
        **config.method.cine,
    }


def _description(config: Config, session: CineSession) -> str:
    targets = session.targets
    published = config.method.cine.get('model') == 'free'
    model = (
        'as published (dynamic 2D Gaussians, Terpstra and van den Berg): every Gaussian has a constant complex '
        'amplitude and a motion of its own in every frame, fitted to k-space by gradient descent.'
        if published
        else 'after dynamic 2D Gaussian splatting (Terpstra and van den Berg), each parameter with few temporal modes, '
        'static tissue apart, and modes of neighbours tied together; the data counted in units of their noise, so that '
        'chi^2 decided how much motion the model needed and whether a series can be trusted.'
    )
    retro = ''
    if any(target.retro for target in targets):
        factors = ', '.join(f'{value:g}' for value in config.method.cine_retro)
        retro = (
            f'Fully sampled data were also undersampled (R = {factors}) and compared with their full images.'
        )
    regions = (
        'The mean signal of given regions was measured over time.'
        if any(target.regions for target in targets)
        else ''
    )
    return f"""
Cine series were reconstructed from undersampled Cartesian multi-coil k-space (ISMRMRD [@ismrmrd]). Coils were
whitened by their noise and compressed, their sensitivities estimated by ESPIRiT [@espirit] from the temporal average.
Every slice was described by moving two-dimensional complex Gaussians, {model} {retro} {regions}
"""
