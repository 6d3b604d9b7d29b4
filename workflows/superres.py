"""Zero-shot super-resolution: every image of a session by itself on an isotropic grid."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.images import PrepareTarget
from bids_gsrecon.interfaces.reportlets import SuperresReportlets
from bids_gsrecon.interfaces.superres import SuperResolve
from bids_gsrecon.workflows.literate import LiterateWorkflow
from bids_gsrecon.workflows.nodes import init_targets_wf, light_memory_gb, method_node
from bids_gsrecon.workflows.outputs_superres import init_ds_superres_wf
from bids_gsrecon.workflows.plan_superres import SuperresSession, SuperresTarget, estimated_memory_gb


def init_superres_session_wf(*, config: Config, session: SuperresSession, name: str) -> LiterateWorkflow:
    """All images of one session."""
    return init_targets_wf(
        config=config,
        targets=session.targets,
        init_target_wf=init_superres_wf,
        summary=_summary(config, session),
        description=_description(config),
        name=name,
    )


def init_superres_wf(
    *, config: Config, target: SuperresTarget, summary: dict | None = None, name: str = 'superres_wf'
) -> LiterateWorkflow:
    """One image: check or average it, fit, render, write.

    Parameters
    ----------
    config, target
        Settings and what the planner found.
    summary
        What the report says about the session, once per session.

    Inputs
    ------
    image
        As acquired; a series is averaged.
    """
    workflow = LiterateWorkflow(name=name)
    light_gb = light_memory_gb(target.output_lattice.n_voxels)
    inputnode = pe.Node(niu.IdentityInterface(fields=['image']), name='inputnode')
    inputnode.inputs.image = target.file
    prepare = pe.Node(PrepareTarget(average=target.average), name='prepare', mem_gb=light_gb)
    if target.volumes:
        prepare.inputs.volumes = target.volumes
    super_resolve = method_node(
        config,
        SuperResolve(
            source=target.file,
            slice_axis=target.slice_axis,
            slice_thickness_mm=target.slice_thickness_mm,
            voxel_profile=target.slice_profile,
            output_mm=target.output_mm,
            memory_limit_gb=config.resources.memory_gb,
        ),
        name='super_resolve',
        options=config.method.superres,
        mem_gb=estimated_memory_gb(target),
    )
    pictures = pe.Node(SuperresReportlets(parameters=_parameters(target)), name='pictures', mem_gb=light_gb)
    if summary:
        pictures.inputs.summary = summary
    ds_superres_wf = init_ds_superres_wf(config=config, target=target)
    workflow.connect([
        (inputnode, prepare, [('image', 'in_file')]),
        (prepare, super_resolve, [('out_file', 'in_file')]),
        (prepare, pictures, [('out_file', 'target')]),
        (super_resolve, pictures, [
            ('out_file', 'result'),
            ('out_mask', 'mask'),
            ('out_amplitude', 'amplitude'),
            ('out_relaxation_proxy', 'relaxation_proxy'),
            ('out_residual', 'residual'),
            ('metadata_file', 'figures'),
        ]),
        (super_resolve, ds_superres_wf, [
            ('out_file', 'inputnode.image'),
            ('out_mask', 'inputnode.mask'),
            ('out_amplitude', 'inputnode.amplitude'),
            ('out_relaxation_proxy', 'inputnode.relaxation_proxy'),
            ('out_field', 'inputnode.field'),
            ('metadata_file', 'inputnode.metadata'),
            ('image_metadata_file', 'inputnode.image_metadata'),
        ]),
        (pictures, ds_superres_wf, [('out_files', 'inputnode.pictures'), ('parts', 'inputnode.parts')]),
    ])  # fmt: skip
    if target.volumes:
        workflow.__desc__ = (
            'Of diffusion series the mean of the volumes without diffusion weighting was used.'
        )
    elif target.average:
        workflow.__desc__ = 'Perfusion series were averaged over time.'
    return workflow


def _parameters(target: SuperresTarget) -> dict:
    return {
        'slice_axis': 'ijk'[target.slice_axis],
        'slice_thickness_mm': target.slice_thickness_mm,
        'voxel_profile': target.slice_profile,
        'output_voxel_mm': target.output_mm,
    }


def _summary(config: Config, session: SuperresSession) -> dict:
    return {
        'method': 'superres (physics-driven 3D Gaussians)',
        'images': [target.name.stem() for target in session.targets],
        'random_seed': config.execution.random_seed,
        **config.method.superres,
    }


def _description(config: Config) -> str:
    method = config.method
    options = method.superres
    resolution = (
        f'isotropic voxels of {method.output_resolution_mm:g} mm'
        if method.output_resolution_mm > 0
        else 'isotropic voxels of its finest voxel size'
    )
    learned = []
    if options.get('model', 'auto') == 'auto':
        if options.get('in_plane_learning', True):
            learned.append('from the planes of its own slices (after SMORE [@smore])')
        if options.get('scale_learning', True):
            learned.append('from its own coarser copies (after zero-shot super-resolution [@zssr])')
    learning = (
        f'Missing detail was learned {" and ".join(learned)}; no other image and no trained network was used.'
        if learned
        else 'No other image and no trained network was used.'
    )
    return f"""
Every image was brought by itself to {resolution} with normalised three-dimensional Gaussians that carry an amplitude
and a relaxation proxy (physics-driven Gaussian super-resolution [@physics_gaussians]), fitted through the averaging
of its voxels and slices. {learning}
"""
