"""Slice-to-volume reconstruction: the stacks of a session become one volume, every slice in a pose of its own."""

from __future__ import annotations

import math

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.svr import CorrectStacks, PrepareStacks, ReconstructStacks
from bids_gsrecon.interfaces.svr_reportlets import SvrReportlets
from bids_gsrecon.workflows.literate import LiterateWorkflow
from bids_gsrecon.workflows.nodes import init_targets_wf, light_memory_gb, method_node
from bids_gsrecon.workflows.outputs_svr import init_ds_svr_wf
from bids_gsrecon.workflows.plan_svr import SvrSession, SvrTarget, estimated_memory_gb


def init_svr_session_wf(*, config: Config, session: SvrSession, name: str) -> LiterateWorkflow:
    """All volumes of one session."""
    return init_targets_wf(
        config=config,
        targets=session.targets,
        init_target_wf=init_svr_wf,
        summary=_summary(config, session),
        description=_description(config, session),
        name=name,
    )


def init_svr_wf(
    *, config: Config, target: SvrTarget, summary: dict | None = None, name: str = 'svr_wf'
) -> LiterateWorkflow:
    """One volume: masks, denoising, bias field, reconstruction, pictures, outputs.

    Parameters
    ----------
    config, target
        Settings and what the planner found.
    summary
        What the report says about the session, once per session.

    Inputs
    ------
    stacks
        As acquired.
    """
    method = config.method
    workflow = LiterateWorkflow(name=name)
    stack_gb = light_memory_gb(max(math.prod(stack.shape) for stack in target.stacks))
    all_gb = light_memory_gb(sum(math.prod(stack.shape) for stack in target.stacks))
    inputnode = pe.Node(niu.IdentityInterface(fields=['stacks']), name='inputnode')
    inputnode.inputs.stacks = [stack.file for stack in target.stacks]
    prepare_stacks = pe.Node(
        PrepareStacks(
            metadata=[stack.metadata for stack in target.stacks], slice_order=method.svr_slice_order
        ),
        name='prepare_stacks',
        mem_gb=all_gb,
    )
    if any(stack.mask for stack in target.stacks):
        prepare_stacks.inputs.mask_files = [stack.mask for stack in target.stacks if stack.mask]
        prepare_stacks.inputs.mask_stacks = [n for n, stack in enumerate(target.stacks) if stack.mask]
    reconstruct = method_node(
        config,
        ReconstructStacks(memory_limit_gb=config.resources.memory_gb),
        name='reconstruct',
        options=method.svr | {'resolution_mm': target.output_mm},
        mem_gb=estimated_memory_gb(target),
    )
    if target.template:
        reconstruct.inputs.template = target.template
        if target.gestational_age_weeks is not None:
            reconstruct.inputs.gestational_age_weeks = target.gestational_age_weeks
    pictures = pe.Node(SvrReportlets(parameters=_parameters(config, target)), name='pictures', mem_gb=all_gb)
    if summary:
        pictures.inputs.summary = summary
    ds_svr_wf = init_ds_svr_wf(config=config, target=target)
    workflow.connect(inputnode, 'stacks', prepare_stacks, 'in_files')
    made_by = prepare_stacks
    if method.svr_denoise or method.svr_bias_correction:
        made_by = pe.Node(
            CorrectStacks(
                denoise=method.svr_denoise,
                bias_field=method.svr_bias_correction,
                seed=config.execution.random_seed,
            ),
            name='correct_stacks',
            mem_gb=stack_gb,
        )
        workflow.connect([
            (prepare_stacks, made_by, [
                ('out_files', 'in_files'),
                ('out_masks', 'mask_files'),
                ('sources', 'sources'),
                ('slice_axes', 'slice_axes'),
            ]),
        ])  # fmt: skip
    workflow.connect([
        (made_by, reconstruct, [('out_files', 'in_files')]),
        (prepare_stacks, reconstruct, [('out_masks', 'mask_files'), ('stacks_file', 'stacks_file')]),
        (made_by, pictures, [('out_files', 'stacks')]),
        (prepare_stacks, pictures, [('out_masks', 'stack_masks')]),
        (reconstruct, pictures, [
            ('out_file', 'result'),
            ('out_mask', 'mask'),
            ('out_uncertainty', 'uncertainty'),
            ('out_coverage', 'coverage'),
            ('simulated_files', 'simulated'),
            ('slices_table', 'slices_table'),
            ('stacks_table', 'stacks_table'),
            ('metadata_file', 'metadata_file'),
        ]),
        (reconstruct, ds_svr_wf, [
            ('out_file', 'inputnode.image'),
            ('out_mask', 'inputnode.mask'),
            ('out_uncertainty', 'inputnode.uncertainty'),
            ('out_coverage', 'inputnode.coverage'),
            ('out_field', 'inputnode.field'),
            ('slices_table', 'inputnode.slices'),
            ('stacks_table', 'inputnode.stacks'),
            ('pose_files', 'inputnode.poses'),
            ('simulated_files', 'inputnode.simulated'),
            ('metadata_file', 'inputnode.metadata'),
            ('mask_metadata_file', 'inputnode.mask_metadata'),
        ]),
        (pictures, ds_svr_wf, [('out_files', 'inputnode.pictures'), ('parts', 'inputnode.parts')]),
    ])  # fmt: skip
    return workflow


def _parameters(config: Config, target: SvrTarget) -> dict:
    method = config.method
    space = {'template': target.template, 'gestational_age_weeks': target.gestational_age_weeks}
    return {
        'output_voxel_mm': target.output_mm,
        'bias_correction': method.svr_bias_correction,
        'denoising': method.svr_denoise,
        'slice_order': method.svr_slice_order or 'by SliceTiming, else interleaved',
        **{name: value for name, value in space.items() if value},
    }


def _summary(config: Config, session: SvrSession) -> dict:
    return {
        'method': 'svr (slice-to-volume reconstruction with 3D Gaussians)',
        'volumes': [target.name.stem() for target in session.targets],
        'stacks': [stack.name.stem() for target in session.targets for stack in target.stacks],
        'random_seed': config.execution.random_seed,
        **config.method.svr,
    }


def _description(config: Config, session: SvrSession) -> str:
    method, options = config.method, config.method.svr
    stacks = [stack for target in session.targets for stack in target.stacks]
    masks = (
        'Masks of the anatomy were given for the stacks.'
        if all(stack.mask for stack in stacks)
        else 'Masks of the anatomy that were not given were carried over from other stacks, or found where all stacks '
        'show an object.'
    )
    steps = []
    if method.svr_denoise:
        steps.append('denoised slice by slice with non-local means [@nonlocal_means]')
    if method.svr_bias_correction:
        steps.append('corrected for intensity non-uniformity with N4 [@n4] inside its mask')
    prepared = f'Every stack was {" and ".join(steps)} (ANTs [@ants]).' if steps else ''
    motion = (
        'Rigid motion was estimated for whole stacks, packets of slices and single slices from coarse to fine, the last '
        'jointly with the volume.'
        if options.get('slice_motion', True)
        else 'Rigid motion was estimated for whole stacks.'
    )
    shapes = (
        'Its Gaussians were given the shape of the anatomy by the structure tensor of a first volume.'
        if options.get('anisotropic', True)
        else ''
    )
    robust = (
        'Pixels and slices that contradict the others were given less weight (as in [@svr]).'
        if options.get('robust', True)
        else ''
    )
    template = (
        'The volume was turned to a template by a rigid motion.'
        if any(target.template for target in session.targets)
        else ''
    )
    return f"""
Stacks of thick slices of one contrast were reconstructed to one volume with isotropic voxels of
{session.targets[0].output_mm:g} mm, made of three-dimensional Gaussians (after M-Gaussian [@mgaussian]) that slices
see through a Gaussian point spread of their thickness. {masks} {prepared} {motion} {shapes} {robust} {template}
"""
