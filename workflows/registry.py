"""Which reconstruction methods exist, and which of them this version can run.

A later method drops in by naming its participant-level builder here; the parser, the planner and the exit
codes follow from the table.
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
    builder
        ``module:function`` of its ``init_*_wf`` (one session); empty: not in this version.
    """

    name: str
    summary: str
    builder: str = ''

    @property
    def runnable(self) -> bool:
        return bool(self.builder)


RECONS = {
    recon.name: recon
    for recon in (
        Recon(
            'harmonize',
            'every contrast of an exam on the grid of its isotropic T1w',
            'bids_gsrecon.workflows.harmonize:init_harmonize_session_wf',
        ),
        Recon('superres', 'one anisotropic scan on any finer grid'),
        Recon('svr', 'one volume from several moving stacks of thick slices'),
        Recon('cine', 'cardiac cine series from undersampled k-space'),
        Recon('m2asr', 'reference-guided super-resolution at any scale by a trained network'),
    )
}


def not_runnable_message(name: str) -> str:
    """The sentence that ends a run whose method this version does not have."""
    have = ', '.join(recon.name for recon in RECONS.values() if recon.runnable)
    return (
        f'--recon {name} ({RECONS[name].summary}) is not in this version of bids_gsrecon: '
        f'use one of the methods it has ({have}).'
    )


def session_builder(name: str):
    """The ``init_*_wf`` function of a runnable method."""
    import importlib

    module, function = RECONS[name].builder.split(':')
    return getattr(importlib.import_module(module), function)
