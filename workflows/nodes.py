"""Sessions and nodes of every method: what they are given, and what they take of the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config
from bids_gsrecon.workflows.literate import LiterateWorkflow


def method_node(
    config: Config, interface, *, name: str, options: dict, mem_gb: float, takes_device: bool = True
) -> pe.Node:
    """A node that reconstructs; under ``--low-mem`` it takes every processor, so that none runs beside it.

    ``takes_device``: its options have a ``device``; without, it computes on the CPU.
    """
    resources, device = config.resources, config.method.device
    interface.inputs.trait_set(
        options=options | ({'device': device} if takes_device else {}),
        seed=config.execution.random_seed,
        n_threads=resources.omp_nthreads,
        use_gpu=takes_device and (device == 'cuda' or resources.uses_gpu),
    )
    n_procs = resources.nprocs if config.execution.low_mem else resources.omp_nthreads
    return pe.Node(interface, name=name, mem_gb=mem_gb, n_procs=n_procs)


def light_memory_gb(n_voxels: int) -> float:
    """Of a node that holds a few float32/64 copies of an image, e.g. to draw it."""
    return max(0.5, 40 * n_voxels / 1024**3)


def init_targets_wf(
    *,
    config: Config,
    targets: Sequence,
    init_target_wf: Callable[..., LiterateWorkflow],
    summary: dict,
    description: str,
    name: str,
) -> LiterateWorkflow:
    """The workflows of a session's targets, which have nothing to do with each other.

    Parameters
    ----------
    config
        Settings of the run.
    targets
        What the planner found; ``target.name`` is the BIDS name of what it becomes.
    init_target_wf
        Makes the workflow of one, from ``config``, ``target``, ``summary`` and ``name``.
    summary
        What the report says about the session; the first target's workflow writes it.
    description
        For the boilerplate.
    name
        Of the workflow; part of the path of its work folder.
    """
    workflow = LiterateWorkflow(name=name)
    for number, target in enumerate(targets):
        # Without the space: what was done before a template was given is found again.
        name_in_work = target.name.replaced(space=None).node_name()
        target_wf = init_target_wf(
            config=config,
            target=target,
            summary=summary if number == 0 else None,
            name=f'{name_in_work}_wf',
        )
        workflow.add_nodes([target_wf])
    workflow.__postdesc__ = description
    return workflow
