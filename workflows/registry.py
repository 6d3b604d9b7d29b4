"""Which reconstruction methods exist.

A later method drops in by naming its three functions here; the parser, the planner, the graph and the exit codes
follow from the table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recon:
    """One entry of ``--recon``.

    Attributes
    ----------
    name
        As on the command line.
    summary
        What it does, for ``--help`` and messages.
    planner
        ``module:function`` that adds its sessions to a participant's plan.
    builder
        ``module:function`` of its ``init_*_wf`` (one session).
    results
        ``module:function`` that names the images a session must have made, below the output folder.
    verdicts
        ``module:function`` that reads what the method says of its own results, one sentence each; empty: nothing.
    estimator
        ``module:function`` that estimates what a session takes (`Estimate`), by the headers alone.
    on_gpu
        It can compute on a GPU.
    """

    name: str
    summary: str
    planner: str
    builder: str
    results: str
    verdicts: str = ''
    estimator: str = ''
    on_gpu: bool = True


RECONS = {
    recon.name: recon
    for recon in (
        Recon(
            'harmonize',
            'every contrast of an exam on the grid of its isotropic T1w',
            'bids_gsrecon.workflows.plan_harmonize:plan_sessions',
            'bids_gsrecon.workflows.harmonize:init_harmonize_session_wf',
            'bids_gsrecon.workflows.outputs_harmonize:session_results',
            estimator='bids_gsrecon.workflows.plan_harmonize:estimate',
        ),
        Recon(
            'superres',
            'every image by itself on a finer, isotropic grid',
            'bids_gsrecon.workflows.plan_superres:plan_sessions',
            'bids_gsrecon.workflows.superres:init_superres_session_wf',
            'bids_gsrecon.workflows.outputs_superres:session_results',
            estimator='bids_gsrecon.workflows.plan_superres:estimate',
        ),
        Recon(
            'svr',
            'one volume from several moving stacks of thick slices',
            'bids_gsrecon.workflows.plan_svr:plan_sessions',
            'bids_gsrecon.workflows.svr:init_svr_session_wf',
            'bids_gsrecon.workflows.outputs_svr:session_results',
            estimator='bids_gsrecon.workflows.plan_svr:estimate',
        ),
        Recon(
            'cine',
            'cardiac cine series from undersampled k-space',
            'bids_gsrecon.workflows.plan_cine:plan_sessions',
            'bids_gsrecon.workflows.cine:init_cine_session_wf',
            'bids_gsrecon.workflows.outputs_cine:session_results',
            verdicts='bids_gsrecon.workflows.outputs_cine:session_verdicts',
            estimator='bids_gsrecon.workflows.plan_cine:estimate',
            on_gpu=False,
        ),
        Recon(
            'm2asr',
            'in-plane super-resolution by a network that was trained with a reference contrast',
            'bids_gsrecon.workflows.plan_m2asr:plan_sessions',
            'bids_gsrecon.workflows.m2asr:init_m2asr_session_wf',
            'bids_gsrecon.workflows.outputs_m2asr:session_results',
            verdicts='bids_gsrecon.workflows.outputs_m2asr:session_verdicts',
            estimator='bids_gsrecon.workflows.plan_m2asr:estimate',
        ),
    )
}


def session_planner(name: str):
    """``plan_sessions(config, plan, scans)`` of a method."""
    return _function(RECONS[name].planner)


def session_builder(name: str):
    """The ``init_*_wf`` function of a method."""
    return _function(RECONS[name].builder)


def session_results(name: str):
    """``session_results(config, session)`` of a method."""
    return _function(RECONS[name].results)


def session_verdicts(name: str):
    """``session_verdicts(config, session)`` of a method."""
    return _function(RECONS[name].verdicts) if RECONS[name].verdicts else lambda config, session: []


def session_estimator(name: str):
    """``estimate(config, session)`` of a runnable method."""
    return _function(RECONS[name].estimator)


def _function(where: str):
    import importlib

    module, function = where.split(':')
    return getattr(importlib.import_module(module), function)
