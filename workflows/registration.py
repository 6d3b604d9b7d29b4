"""Every contrast is checked, averaged if it is a series, and registered to the reference."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.interfaces.images import PrepareTarget, RegisterRigid
from bids_gsrecon.workflows.literate import LiterateWorkflow


def init_registration_wf(
    *,
    target_name: str,
    average: bool = False,
    volumes: list[int] | None = None,
    seed: int = 0,
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    name: str = 'registration_wf',
) -> LiterateWorkflow:
    """Register one contrast rigidly to the reference.

    Parameters
    ----------
    target_name
        File of the contrast, for messages.
    average
        The contrast is a series: average it, or only its ``volumes``.
    volumes
        Volumes of the series to average.
    seed, omp_nthreads, mem_gb
        Seed of the metric's sampling; threads and memory of a node.

    Inputs
    ------
    target
        The contrast as acquired.
    reference, mask
        Bias-corrected reference and its brain mask.

    Outputs
    -------
    target
        A valid 3D image: the contrast, or its average.
    transform
        Target to reference, ITK text file.
    metadata
        JSON file: how well it was registered.
    """
    workflow = LiterateWorkflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['target', 'reference', 'mask']), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=['target', 'transform', 'metadata']), name='outputnode')
    prepare_target = pe.Node(PrepareTarget(average=average), name='prepare_target', mem_gb=mem_gb)
    if volumes:
        prepare_target.inputs.volumes = volumes
    register = pe.Node(
        RegisterRigid(moving_name=target_name, seed=seed, n_threads=omp_nthreads),
        name='register',
        mem_gb=mem_gb,
        n_procs=omp_nthreads,
    )
    workflow.connect([
        (inputnode, prepare_target, [('target', 'in_file')]),
        (inputnode, register, [('reference', 'fixed'), ('mask', 'fixed_mask')]),
        (prepare_target, register, [('out_file', 'moving')]),
        (prepare_target, outputnode, [('out_file', 'target')]),
        (register, outputnode, [('out_transform', 'transform'), ('metadata_file', 'metadata')]),
    ])  # fmt: skip
    workflow.__desc__ = (
        'Every further contrast was rigidly registered to the reference with ANTs [@ants] and by normalised '
        'mutual information at the voxels of its slices.'
    )
    if volumes:
        workflow.__postdesc__ = (
            'Of diffusion series the mean of the volumes without diffusion weighting was used.'
        )
    elif average:
        workflow.__postdesc__ = 'Perfusion series were averaged over time.'
    return workflow
