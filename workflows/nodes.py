"""Nodes of every method: what they are given, and what they take of the machine."""

from __future__ import annotations

from nipype.pipeline import engine as pe

from bids_gsrecon.config import Config


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
