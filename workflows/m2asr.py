"""GaussM2ASR: thick contrasts made finer in plane by a trained network, and the pairs that it is trained on."""

from __future__ import annotations

import math

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.m2asr import ApplyNetwork, MakePair
from bids_gsrecon.interfaces.m2asr_reportlets import M2asrReportlets
from bids_gsrecon.workflows.anatomical import init_anatomical_wf
from bids_gsrecon.workflows.literate import LiterateWorkflow
from bids_gsrecon.workflows.nodes import light_memory_gb, method_node
from bids_gsrecon.workflows.outputs_m2asr import init_ds_m2asr_wf
from bids_gsrecon.workflows.plan_m2asr import M2asrSession, M2asrTarget, estimated_memory_gb
from bids_gsrecon.workflows.registration import init_registration_wf


def init_m2asr_session_wf(*, config: Config, session: M2asrSession, name: str) -> LiterateWorkflow:
    """One session: its reference, and what becomes of every contrast.

    Parameters
    ----------
    config
        Settings of the run; ``method.m2asr_train``: pairs are made, else weights are applied.
    session
        What the planner found.
    name
        Of the workflow; part of the path of its work folder.
    """
    execution, method = config.execution, config.method
    workflow = LiterateWorkflow(name=name)
    targets = [target for target in session.targets if not target.is_made]
    if not targets:
        return workflow
    inputnode = pe.Node(niu.IdentityInterface(fields=['reference', 'mask']), name='inputnode')
    inputnode.inputs.reference = session.reference
    anatomical_wf = init_anatomical_wf(
        reference_suffix=method.reference,
        mask_given=bool(session.mask),
        accept_thick=method.reference_chosen,
        template=method.brain_template,
        seed=execution.random_seed,
        omp_nthreads=config.resources.omp_nthreads,
        mem_gb=light_memory_gb(math.prod(session.reference_shape)),
    )
    workflow.connect(inputnode, 'reference', anatomical_wf, 'inputnode.reference')
    if session.mask:
        inputnode.inputs.mask = session.mask
        workflow.connect(inputnode, 'mask', anatomical_wf, 'inputnode.mask')
    for number, target in enumerate(targets):
        wf_name = f'{target.name.node_name()}_wf'
        if method.m2asr_train:
            target_wf = init_pair_wf(config=config, session=session, target=target, name=wf_name)
        else:
            summary = _summary(config, session) if number == 0 else None
            target_wf = init_apply_wf(
                config=config, session=session, target=target, summary=summary, name=wf_name
            )
        workflow.connect([
            (anatomical_wf, target_wf, [
                ('outputnode.reference', 'inputnode.reference'),
                ('outputnode.mask', 'inputnode.mask'),
            ]),
        ])  # fmt: skip
    if not method.m2asr_train:
        workflow.__postdesc__ = _description(config)
    return workflow


def init_pair_wf(
    *, config: Config, session: M2asrSession, target: M2asrTarget, name: str = 'pair_wf'
) -> LiterateWorkflow:
    """One pair: register, bring the reference to the target's slices, keep both in one small file.

    Inputs
    ------
    reference, mask
        Bias-corrected reference and its brain mask.
    """
    workflow, inputnode, registration_wf = _registered(config, session, target, name)
    make_pair = pe.Node(
        MakePair(
            source=target.file,
            subject=f'sub-{session.participant}',
            contrast=target.name.suffix,
            reference_contrast=config.method.reference,
            slice_axis=target.slice_axis,
            slice_thickness_mm=target.slice_thickness_mm,
            key=target.pair_key,
            sources=[session.reference, target.file],
            out_path=target.pair_file,
        ),
        name='make_pair',
        mem_gb=light_memory_gb(math.prod(target.shape)),
    )
    workflow.connect([
        (inputnode, make_pair, [('reference', 'reference'), ('mask', 'mask')]),
        (registration_wf, make_pair, [('outputnode.target', 'target'), ('outputnode.transform', 'transform')]),
    ])  # fmt: skip
    return workflow


def init_apply_wf(
    *,
    config: Config,
    session: M2asrSession,
    target: M2asrTarget,
    summary: dict | None = None,
    name: str = 'apply_wf',
) -> LiterateWorkflow:
    """One contrast: register, apply the network slice by slice, draw, write.

    Parameters
    ----------
    config, session, target
        Settings and what the planner found.
    summary
        What the report says about the session, once per session.

    Inputs
    ------
    reference, mask
        Bias-corrected reference and its brain mask.
    """
    workflow, inputnode, registration_wf = _registered(config, session, target, name)
    n_voxels = target.output_lattice.n_voxels
    light_gb = light_memory_gb(n_voxels)
    apply_network = method_node(
        config,
        ApplyNetwork(
            source=target.file,
            weights=config.method.m2asr_weights,
            contrast=target.name.suffix,
            reference_contrast=config.method.reference,
            slice_axis=target.slice_axis,
            slice_thickness_mm=target.slice_thickness_mm,
            output_shape=target.output_shape,
            output_affine=target.output_affine,
        ),
        name='apply_network',
        options={},
        mem_gb=estimated_memory_gb(target),
    )
    pictures = pe.Node(M2asrReportlets(parameters=_parameters(target)), name='pictures', mem_gb=light_gb)
    if summary:
        pictures.inputs.summary = summary
    ds_m2asr_wf = init_ds_m2asr_wf(config=config, session=session, target=target)
    workflow.connect([
        (inputnode, apply_network, [('reference', 'reference'), ('mask', 'mask')]),
        (registration_wf, apply_network, [
            ('outputnode.target', 'target'),
            ('outputnode.transform', 'transform'),
        ]),
        (registration_wf, pictures, [('outputnode.target', 'target')]),
        (apply_network, pictures, [
            ('out_file', 'result'),
            ('out_mask', 'mask'),
            ('out_reference', 'reference'),
            ('out_zero_filled', 'zero_filled'),
            ('metadata_file', 'metadata_file'),
        ]),
        (registration_wf, ds_m2asr_wf, [
            ('outputnode.transform', 'inputnode.transform'),
            ('outputnode.metadata', 'inputnode.registration_metadata'),
        ]),
        (apply_network, ds_m2asr_wf, [
            ('out_file', 'inputnode.image'),
            ('metadata_file', 'inputnode.metadata'),
        ]),
        (pictures, ds_m2asr_wf, [('out_files', 'inputnode.pictures'), ('parts', 'inputnode.parts')]),
    ])  # fmt: skip
    return workflow


def _registered(config: Config, session: M2asrSession, target: M2asrTarget, name: str):
    """A workflow whose target is registered to the reference: itself, its input node, and the part that registers."""
    workflow = LiterateWorkflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['reference', 'mask', 'target']), name='inputnode')
    inputnode.inputs.target = target.file
    registration_wf = init_registration_wf(
        target_name=target.file,
        average=target.average,
        volumes=target.volumes,
        seed=config.execution.random_seed,
        omp_nthreads=config.resources.omp_nthreads,
        mem_gb=light_memory_gb(math.prod(session.reference_shape)),
    )
    workflow.connect([
        (inputnode, registration_wf, [
            ('target', 'inputnode.target'),
            ('reference', 'inputnode.reference'),
            ('mask', 'inputnode.mask'),
        ]),
    ])  # fmt: skip
    return workflow, inputnode, registration_wf


def _parameters(target: M2asrTarget) -> dict:
    return {
        'slice_axis': 'ijk'[target.slice_axis],
        'slice_thickness_mm': target.slice_thickness_mm,
        'output_pixel_mm': target.in_plane_mm,
    }


def _summary(config: Config, session: M2asrSession) -> dict:
    return {
        'method': 'm2asr (GaussM2ASR, a trained network)',
        'reference': session.reference.rsplit('/', 1)[-1],
        'images': [target.name.stem() for target in session.targets],
        'brain_mask': 'given' if session.mask else 'found',
        'weights': config.method.m2asr_weights,
    }


def _description(config: Config) -> str:
    from bids_gsrecon.interfaces.m2asr_card import described
    from bids_gsrecon.interfaces.m2asr_files import read_card

    return f"""
The slices of every further contrast were made finer in plane by a network that renders two-dimensional Gaussians
(GaussM2ASR [@gaussm2asr]) under the guidance of the registered {config.method.reference} image, averaged over the
thickness of the slices. {described(read_card(config.method.m2asr_weights))}
"""
