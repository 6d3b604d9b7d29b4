"""What a run will take of disks and memory, against what there is, before it begins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bids_gsrecon.config import Config
from bids_gsrecon.errors import InputError
from bids_gsrecon.workflows.names import participant_of

if TYPE_CHECKING:
    from bids_gsrecon.workflows.plan_types import ParticipantPlan

# Images, maps and the field of Gaussians of a target, compressed: 25 to 30 seen, in each of the two folders.
BYTES_PER_VOXEL = 40
PARTICIPANT_BYTES = 20e6  # pictures, report, what nipype keeps


def needed_bytes(plans: list[ParticipantPlan]) -> float:
    """What a run writes into its output folder, and about as much into its work folder."""
    voxels = sum(session.output_voxels for plan in plans for session in plan.sessions)
    return BYTES_PER_VOXEL * voxels + PARTICIPANT_BYTES * sum(bool(plan.sessions) for plan in plans)


def check_free_space(config: Config, plans: list[ParticipantPlan]) -> None:
    """Refuse to begin what the disks cannot hold.

    Raises
    ------
    InputError
        Which folder, how much is needed and how much is free.
    """
    need = dict.fromkeys((config.output_dir, config.work_dir), needed_bytes(plans))
    by_disk: dict[int, list[Path]] = {}
    for folder in need:
        by_disk.setdefault(os.stat(folder).st_dev, []).append(folder)
    for folders in by_disk.values():
        total, free = sum(need[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        if total > free:
            what = ' and '.join(f'{_role(config, folder)} {folder}' for folder in folders)
            raise InputError(
                f'the {what} need about {total / 1e9:.2f} GB and {free / 1e9:.2f} GB are free: free space, choose '
                'another folder, or process fewer participants at a time (--participant-label, --clean-workdir).'
            )


def _role(config: Config, folder: Path) -> str:
    return 'output folder' if folder == config.output_dir else 'work folder'


def memory_messages(config: Config, workflow, participant: str) -> list[str]:
    """What the plan of memory means for a participant: how many reconstructions run at a time, which may not fit.

    Estimates are of whole images; the steps themselves count what lies in the mask, and refuse what does not fit.
    """
    limit_gb = config.resources.memory_gb
    nodes = {
        name: workflow.get_node(name).mem_gb
        for name in workflow.list_node_names()
        if participant_of(name) == participant and hasattr(workflow.get_node(name).inputs, 'memory_limit_gb')
    }
    if not nodes or limit_gb <= 0:
        return []
    name, need_gb = max(nodes.items(), key=lambda item: item[1])
    if need_gb > limit_gb:
        return [
            f'{name} may need up to {need_gb:.1f} GB of memory and the limit here is {limit_gb:.1f} '
            'GB: it runs alone, and ends with a message if what lies in its mask needs more (--mem)'
        ]
    by_processors = max(1, config.resources.nprocs // config.resources.omp_nthreads)
    by_memory = int(limit_gb // need_gb)
    if by_memory < min(by_processors, len(nodes)) and not config.execution.low_mem:
        return [
            f'a reconstruction needs about {need_gb:.1f} GB of {limit_gb:.1f} GB of memory: {by_memory} at a time, '
            f'although there are processors for {by_processors}'
        ]
    return []
