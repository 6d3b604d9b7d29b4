"""The reference: checked, its brain found, its bias field removed."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_gsrecon.interfaces.images import CheckReference, CorrectBias, FindBrainMask
from bids_gsrecon.workflows.literate import LiterateWorkflow


def init_anatomical_wf(
    *,
    reference_suffix: str,
    mask_given: bool = False,
    accept_thick: bool = False,
    template: str = 'auto',
    seed: int = 0,
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    name: str = 'anatomical_wf',
) -> LiterateWorkflow:
    """Prepare the reference of a session.

    Parameters
    ----------
    reference_suffix
        For the methods text, e.g. ``T1w``.
    mask_given
        ``inputnode.mask`` holds a brain mask: it is used as it is.
    accept_thick
        Do not refuse a reference with thick slices.
    template
        ``auto`` or a template file, for images that are not skull-stripped.
    seed, omp_nthreads, mem_gb
        Seed of ANTs; threads and memory of a node.

    Inputs
    ------
    reference
        The image as acquired.
    mask
        A brain mask on any grid (only with ``mask_given``).

    Outputs
    -------
    reference
        Bias-corrected reference, on its own grid.
    mask
        Brain mask on that grid.
    mask_metadata
        JSON file: how the mask was found.
    reference_metadata
        JSON file: whether the reference is skull-stripped.
    """
    workflow = LiterateWorkflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['reference', 'mask']), name='inputnode')
    outputnode = pe.Node(
        niu.IdentityInterface(fields=['reference', 'mask', 'mask_metadata', 'reference_metadata']),
        name='outputnode',
    )
    check_reference = pe.Node(
        CheckReference(accept_thick=accept_thick), name='check_reference', mem_gb=mem_gb
    )
    brain_mask = pe.Node(
        FindBrainMask(template=template, seed=seed, n_threads=omp_nthreads),
        name='brain_mask',
        mem_gb=mem_gb,
        n_procs=omp_nthreads,
    )
    bias_field = pe.Node(CorrectBias(seed=seed), name='bias_field', mem_gb=mem_gb)
    workflow.connect([
        (inputnode, check_reference, [('reference', 'in_file')]),
        (check_reference, brain_mask, [('out_file', 'in_file')]),
        (check_reference, bias_field, [('out_file', 'in_file')]),
        (brain_mask, bias_field, [('out_mask', 'mask_file')]),
        (bias_field, outputnode, [('out_file', 'reference')]),
        (brain_mask, outputnode, [
            ('out_mask', 'mask'),
            ('metadata_file', 'mask_metadata'),
            ('image_metadata_file', 'reference_metadata'),
        ]),
    ])  # fmt: skip
    if mask_given:
        workflow.connect(inputnode, 'mask', brain_mask, 'mask_file')
    how = (
        'The brain mask was taken from given derivatives.'
        if mask_given
        else 'The brain mask was that of the image where it was skull-stripped, otherwise it was found by '
        'registration to a template with ANTs [@ants].'
    )
    workflow.__desc__ = (
        f'The {reference_suffix} image served as reference. {how} Its intensity non-uniformity was corrected '
        'with N4 [@n4] inside the mask.'
    )
    return workflow
