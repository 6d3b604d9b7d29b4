"""AtlasGS: a scaffold of Gaussians from the reference, then every contrast fitted on it."""

from __future__ import annotations

import math

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.harmonize import HarmonizeContrast, LearnScaffold
from bids_gsrecon.interfaces.reportlets import HarmonizeReportlets, ReferenceReportlets
from bids_gsrecon.workflows.anatomical import init_anatomical_wf
from bids_gsrecon.workflows.literate import LiterateWorkflow
from bids_gsrecon.workflows.nodes import light_memory_gb, method_node
from bids_gsrecon.workflows.outputs_harmonize import init_ds_contrast_wf, init_ds_reference_wf, output_names
from bids_gsrecon.workflows.plan_harmonize import HarmonizeSession, estimated_memory_gb
from bids_gsrecon.workflows.plan_types import TargetPlan
from bids_gsrecon.workflows.registration import init_registration_wf


def init_harmonize_session_wf(*, config: Config, session: HarmonizeSession, name: str) -> LiterateWorkflow:
    """All of one session: reference, scaffold, contrasts, derivatives and pictures.

    Parameters
    ----------
    config
        Settings of the run.
    session
        What the planner found.
    name
        Of the workflow; part of the path of its work folder.
    """
    execution, method = config.execution, config.method
    workflow = LiterateWorkflow(name=name)
    common = {'seed': execution.random_seed, 'omp_nthreads': config.resources.omp_nthreads}
    light_gb = light_memory_gb(math.prod(session.reference_shape))
    inputnode = pe.Node(niu.IdentityInterface(fields=['reference', 'mask', 'scaffold']), name='inputnode')
    inputnode.inputs.reference = session.reference
    if session.mask:
        inputnode.inputs.mask = session.mask
    if session.scaffold:
        inputnode.inputs.scaffold = session.scaffold
    anatomical_wf = init_anatomical_wf(
        reference_suffix=method.reference,
        mask_given=bool(session.mask),
        accept_thick=method.reference_chosen,
        template=method.brain_template,
        mem_gb=light_gb,
        **common,
    )
    heavy_gb = estimated_memory_gb(config, session)
    learn_scaffold = method_node(
        config,
        LearnScaffold(memory_limit_gb=config.resources.memory_gb),
        name='learn_scaffold',
        options=method.harmonize,
        mem_gb=heavy_gb,
    )
    reference_pictures = pe.Node(
        ReferenceReportlets(summary=_summary(config, session)), name='reference_pictures', mem_gb=light_gb
    )
    ds_reference_wf = init_ds_reference_wf(config=config, session=session)
    workflow.connect([
        (inputnode, anatomical_wf, [('reference', 'inputnode.reference')]),
        (anatomical_wf, learn_scaffold, [('outputnode.reference', 'reference'), ('outputnode.mask', 'mask')]),
        (anatomical_wf, reference_pictures, [('outputnode.reference', 'reference'), ('outputnode.mask', 'mask')]),
        (anatomical_wf, ds_reference_wf, [
            ('outputnode.reference', 'inputnode.reference'),
            ('outputnode.mask', 'inputnode.mask'),
            ('outputnode.mask_metadata', 'inputnode.mask_metadata'),
            ('outputnode.reference_metadata', 'inputnode.reference_metadata'),
        ]),
        (learn_scaffold, ds_reference_wf, [('scaffold_file', 'inputnode.scaffold')]),
        (reference_pictures, ds_reference_wf, [('out_files', 'inputnode.pictures'), ('parts', 'inputnode.parts')]),
    ])  # fmt: skip
    if session.mask:
        workflow.connect(inputnode, 'mask', anatomical_wf, 'inputnode.mask')
    if session.scaffold:
        workflow.connect(inputnode, 'scaffold', learn_scaffold, 'scaffold_file')
    for number, target in enumerate(session.targets):
        contrast_wf = init_contrast_wf(
            config=config,
            session=session,
            target=target,
            heavy_gb=heavy_gb,
            light_gb=light_gb,
            first=number == 0,
            name=f'{target.name.node_name()}_wf',
        )
        workflow.connect([
            (anatomical_wf, contrast_wf, [
                ('outputnode.reference', 'inputnode.reference'),
                ('outputnode.mask', 'inputnode.mask'),
            ]),
            (learn_scaffold, contrast_wf, [('scaffold_file', 'inputnode.scaffold')]),
        ])  # fmt: skip
        if number == 0 and method.output_resolution_mm > 0:
            # The pictures of the reference are cut from the output grid, which only a contrast has.
            workflow.connect(contrast_wf, 'outputnode.image', reference_pictures, 'like')
    workflow.__postdesc__ = _description(config)
    return workflow


def init_contrast_wf(
    *,
    config: Config,
    session: HarmonizeSession,
    target: TargetPlan,
    heavy_gb: float,
    light_gb: float,
    first: bool,
    name: str,
) -> LiterateWorkflow:
    """One contrast: register, fit on the scaffold, render, write.

    Parameters
    ----------
    config, session, target
        Settings and what the planner found.
    heavy_gb, light_gb
        Memory of the method's node, and of the others.
    first
        Whether this contrast also writes the mask on the output grid.

    Inputs
    ------
    reference, mask, scaffold
        Bias-corrected reference, its mask, the learned field of Gaussians.

    Outputs
    -------
    image
        The contrast on the output grid.
    """
    method = config.method
    workflow = LiterateWorkflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=['reference', 'mask', 'scaffold', 'target']), name='inputnode'
    )
    inputnode.inputs.target = target.file
    outputnode = pe.Node(niu.IdentityInterface(fields=['image']), name='outputnode')
    registration_wf = init_registration_wf(
        target_name=target.file,
        average=target.average,
        volumes=target.volumes,
        seed=config.execution.random_seed,
        omp_nthreads=config.resources.omp_nthreads,
        mem_gb=light_gb,
    )
    harmonize = method_node(
        config,
        HarmonizeContrast(
            name=target.name.stem(),
            source=target.file,
            slice_axis=target.slice_axis,
            slice_thickness_mm=target.slice_thickness_mm,
            slice_profile=target.slice_profile,
            output_resolution_mm=method.output_resolution_mm,
            memory_limit_gb=config.resources.memory_gb,
        ),
        name='harmonize',
        options=method.harmonize,
        mem_gb=heavy_gb,
    )
    pictures = pe.Node(HarmonizeReportlets(parameters=_parameters(target)), name='pictures', mem_gb=light_gb)
    ds_contrast_wf = init_ds_contrast_wf(config=config, session=session, target=target, with_mask=first)
    workflow.connect([
        (inputnode, registration_wf, [
            ('target', 'inputnode.target'),
            ('reference', 'inputnode.reference'),
            ('mask', 'inputnode.mask'),
        ]),
        (inputnode, harmonize, [('reference', 'reference'), ('mask', 'mask'), ('scaffold', 'scaffold_file')]),
        (registration_wf, harmonize, [('outputnode.target', 'target'), ('outputnode.transform', 'transform')]),
        (inputnode, pictures, [('reference', 'reference')]),
        (registration_wf, pictures, [('outputnode.target', 'target')]),
        (harmonize, pictures, [
            ('out_file', 'result'),
            ('out_mask', 'mask'),
            ('out_residual', 'residual'),
            ('out_transform', 'transform'),
            ('metadata_file', 'figures'),
        ]),
        (registration_wf, ds_contrast_wf, [('outputnode.metadata', 'inputnode.registration_metadata')]),
        (harmonize, ds_contrast_wf, [
            ('out_file', 'inputnode.image'),
            ('out_mask', 'inputnode.mask'),
            ('out_transform', 'inputnode.transform'),
            ('out_field', 'inputnode.field'),
            ('metadata_file', 'inputnode.metadata'),
        ]),
        (pictures, ds_contrast_wf, [('out_files', 'inputnode.pictures'), ('parts', 'inputnode.parts')]),
        (harmonize, outputnode, [('out_file', 'image')]),
    ])  # fmt: skip
    if method.harmonize.get('uncertainty', True):
        workflow.connect(harmonize, 'out_uncertainty', pictures, 'uncertainty')
        workflow.connect(harmonize, 'out_uncertainty', ds_contrast_wf, 'inputnode.uncertainty')
    return workflow


def _parameters(target: TargetPlan) -> dict:
    return {
        'slice_axis': 'ijk'[target.slice_axis],
        'slice_thickness_mm': target.slice_thickness_mm,
        'slice_profile': target.slice_profile,
    }


def _summary(config: Config, session: HarmonizeSession) -> dict:
    names = output_names(config, session)
    return {
        'reference': names.reference_raw.stem(),
        'contrasts': [target.name.stem() for target in session.targets],
        'brain_mask': 'given' if session.mask else 'found',
        'scaffold': 'given' if session.scaffold else 'learned',
        'method': 'harmonize (AtlasGS)',
        'random_seed': config.execution.random_seed,
        **config.method.harmonize,
    }


def _description(config: Config) -> str:
    method = config.method
    geometry = (
        'small offsets of the Gaussians were allowed per contrast'
        if method.harmonize.get('relax_geometry')
        else 'the geometry was kept fixed'
    )
    grid = (
        f'an isotropic grid of {method.output_resolution_mm:g} mm'
        if method.output_resolution_mm > 0
        else f'the grid of the {method.reference} image'
    )
    return f"""
The anatomy was represented by anisotropic three-dimensional Gaussians learned from the {method.reference} image
(AtlasGS [@atlasgs], here volumetric, in millimetres). For every further contrast {geometry} and the amplitudes
were found by least squares through the slice profile of its thick slices, with guidance by the reference;
additional Gaussians of each contrast alone represent what the reference does not show. All contrasts were
rendered on {grid}.
"""
