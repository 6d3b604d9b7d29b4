"""How many processors and how much memory this process may use: not the whole node."""

from __future__ import annotations

import os
from pathlib import Path


def available_cpus(environ=None, cgroup_root='/sys/fs/cgroup') -> int:
    """Processors granted by SLURM, the affinity mask and the cgroup quota: the smallest of them."""
    environ = os.environ if environ is None else environ
    counts = [os.cpu_count() or 1]
    if hasattr(os, 'sched_getaffinity'):
        counts.append(len(os.sched_getaffinity(0)))
    counts += _positive_ints(environ.get('SLURM_CPUS_PER_TASK'))
    root = Path(cgroup_root)
    quota = _read(root / 'cpu.max').split()  # cgroup v2: "max 100000" or "200000 100000"
    if len(quota) != 2:
        quota = [_read(root / 'cpu/cpu.cfs_quota_us'), _read(root / 'cpu/cpu.cfs_period_us')]
    if quota[0].isdigit() and quota[1].isdigit() and int(quota[1]) > 0:
        counts.append(int(quota[0]) // int(quota[1]) or 1)
    return max(min(counts), 1)


def available_memory_gb(environ=None, cgroup_root='/sys/fs/cgroup') -> float:
    """Memory this process may use: SLURM's grant and the cgroup limit whole, of a bare machine 90 %."""
    import psutil

    environ = os.environ if environ is None else environ
    limits = [0.9 * psutil.virtual_memory().total / 1024**3]
    limits += [mb / 1024 for mb in _positive_ints(environ.get('SLURM_MEM_PER_NODE'))]
    per_cpu = _positive_ints(environ.get('SLURM_MEM_PER_CPU'))
    cpus = _positive_ints(environ.get('SLURM_CPUS_PER_TASK')) or [1]
    limits += [per_cpu[0] * cpus[0] / 1024] if per_cpu else []
    root = Path(cgroup_root)
    for name in ('memory.max', 'memory/memory.limit_in_bytes'):
        value = _read(root / name)
        if value.isdigit():  # "max" in v2, a huge number in v1: no limit
            limits.append(0.95 * int(value) / 1024**3)
    return round(min(limits), 2)


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
