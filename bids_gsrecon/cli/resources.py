"""How many processors and how much memory this process may use: not the whole node."""

from __future__ import annotations

import os
from pathlib import Path

# How batch systems say how many processors a job was given: SLURM, Grid Engine, PBS, LSF.
CPU_VARIABLES = ('SLURM_CPUS_PER_TASK', 'NSLOTS', 'PBS_NP', 'LSB_DJOB_NUMPROC')


def available_cpus(environ=None, cgroup_root='/sys/fs/cgroup', proc_cgroup='/proc/self/cgroup') -> int:
    """Processors granted by the batch system, the affinity mask and the cgroup quota: the smallest of them."""
    environ = os.environ if environ is None else environ
    counts = [os.cpu_count() or 1]
    if hasattr(os, 'sched_getaffinity'):
        counts.append(len(os.sched_getaffinity(0)))
    for name in CPU_VARIABLES:
        counts += _positive_ints(environ.get(name))
    for folder in _cgroups(Path(cgroup_root), Path(proc_cgroup), 'cpu'):
        quota = _read(folder / 'cpu.max').split()  # cgroup v2: "max 100000" or "200000 100000"
        if len(quota) != 2:
            quota = [_read(folder / 'cpu.cfs_quota_us'), _read(folder / 'cpu.cfs_period_us')]
        if quota[0].isdigit() and quota[1].isdigit() and int(quota[1]) > 0:
            counts.append(int(quota[0]) // int(quota[1]) or 1)
    return max(min(counts), 1)


def available_memory_gb(environ=None, cgroup_root='/sys/fs/cgroup', proc_cgroup='/proc/self/cgroup') -> float:
    """Memory this process may use: SLURM's grant and ulimit whole, 95 % of a cgroup, 90 % of a bare machine."""
    import psutil

    environ = os.environ if environ is None else environ
    limits = [0.9 * psutil.virtual_memory().total / 1024**3]
    limits += [mb / 1024 for mb in _positive_ints(environ.get('SLURM_MEM_PER_NODE'))]
    per_cpu = _positive_ints(environ.get('SLURM_MEM_PER_CPU'))
    cpus = [environ.get(name) for name in ('SLURM_CPUS_PER_TASK', 'SLURM_CPUS_ON_NODE')]
    cpus = [n for text in cpus for n in _positive_ints(text)] or [1]
    limits += [per_cpu[0] * cpus[0] / 1024] if per_cpu else []
    for folder in _cgroups(Path(cgroup_root), Path(proc_cgroup), 'memory'):
        for name in ('memory.max', 'memory.high', 'memory.limit_in_bytes'):
            value = _read(folder / name)
            if value.isdigit():  # "max" in v2, a huge number in v1: no limit
                limits.append(0.95 * int(value) / 1024**3)
    limits += [_address_space_gb()]
    return round(min(limits), 2)


def allocation_messages(nprocs: int, memory_gb: float, **where) -> list[str]:
    """Sentences about ``--nprocs`` and ``--mem`` that ask for more than this process was granted."""
    messages = []
    cpus, have_gb = available_cpus(**where), available_memory_gb(**where)
    if nprocs > cpus:
        messages.append(
            f'--nprocs {nprocs} is more than the {cpus} processor(s) granted here: they will wait for each other; '
            'leave it out to take what is granted.'
        )
    if memory_gb > 1.01 * have_gb:
        messages.append(
            f'--mem {memory_gb:.1f} GB is more than the {have_gb:.1f} GB granted here: steps may be killed; leave it '
            'out to take what is granted, or ask the batch system for more.'
        )
    return messages


def _cgroups(root: Path, proc_cgroup: Path, controller: str) -> list[Path]:
    """Folders of the control groups this process is in, from its own (a step of a job) up to the root.

    The limit of a batch job is on a group between the two, and the root has none.
    """
    folders = [root, root / controller]
    for line in _read(proc_cgroup).splitlines():
        _, names, path = [*line.split(':', 2), '', ''][:3]
        if names and controller not in names.split(','):
            continue
        base = root / controller if names else root
        parts = [part for part in path.split('/') if part and part != '..']
        folders += [base.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    return folders


def _address_space_gb() -> float:
    """``ulimit -v``, by which some batch systems limit memory."""
    try:
        import resource
    except ImportError:  # not on Windows
        return float('inf')
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return float('inf') if limit in (resource.RLIM_INFINITY, -1) else limit / 1024**3


def parse_memory_gb(text: str) -> float:
    """``16G``, ``16000M``, ``16000`` (MB, as in fMRIPrep), ``1.5T``, ``16000000K`` in GB."""
    value = text.strip().upper().removesuffix('B').strip()
    scales = {'K': 1 / 1024**2, 'M': 1 / 1024, 'G': 1.0, 'T': 1024.0}
    scale = scales['M']
    if value and value[-1] in scales:
        scale, value = scales[value[-1]], value[:-1]
    try:
        memory_gb = float(value) * scale
    except ValueError:
        raise ValueError(f'{text!r} is not an amount of memory: write for instance 16G or 16000M') from None
    if not 0.01 <= memory_gb < 1e6:
        raise ValueError(f'{text!r} is {memory_gb:g} GB: write for instance 16G or 16000M')
    return memory_gb


def _positive_ints(text) -> list[int]:
    """[n] for a positive number in ``text``, else []: SLURM leaves unset values empty or zero."""
    return [int(text)] if text and text.isdigit() and int(text) > 0 else []


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ''
