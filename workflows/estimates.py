"""What a participant takes of a machine, estimated from headers before anything runs.

Every method estimates its own sessions (``estimate`` beside its planner); here they become those of a participant,
and of the job that shall process it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bids_gsrecon.workflows.registry import session_estimator

if TYPE_CHECKING:
    from bids_gsrecon.config import Config
    from bids_gsrecon.workflows.plan_types import ParticipantPlan

# Chosen so that no job asks for less than was seen (benchmarks/resources.py).
PROGRAM_GB = 0.6  # the program itself, beside the process that computes
WORKER_GB = 0.35  # every further process that waits
MEMORY_MARGIN = 1.2
PARALLEL_SHARE = 0.7  # of the work that further processors make shorter
TIME_MARGIN = 3.0  # slower and shared nodes, file systems under load


@dataclass(frozen=True)
class Estimate:
    """What something takes.

    Attributes
    ----------
    memory_gb
        Peak of its largest step.
    cpu_seconds
        Of one core of a server of 2024, all steps together.
    """

    memory_gb: float
    cpu_seconds: float


def estimate_participant(config: Config, plan: ParticipantPlan) -> Estimate:
    """What the steps of a participant take: the largest in memory, the sum in time.

    Raises
    ------
    ValueError
        The plan has no session.
    """
    if not plan.sessions:
        raise ValueError(f'sub-{plan.participant} has nothing to run')
    estimator = session_estimator(plan.recon)
    parts = [estimator(config, session) for session in plan.sessions]
    return Estimate(max(part.memory_gb for part in parts), sum(part.cpu_seconds for part in parts))


def job_memory_gb(estimate: Estimate, n_cpus: int) -> int:
    """Whole GB to ask for where one participant is processed with ``n_cpus`` processors.

    Steps run side by side only where their sum fits, so that the largest decides.
    """
    need = PROGRAM_GB + WORKER_GB * (n_cpus - 1) + MEMORY_MARGIN * estimate.memory_gb
    return max(2, math.ceil(need))


def job_minutes(estimate: Estimate, n_cpus: int) -> int:
    """Minutes to ask for, in quarters of an hour."""
    seconds = estimate.cpu_seconds * (1 - PARALLEL_SHARE + PARALLEL_SHARE / n_cpus)
    return 15 * max(1, math.ceil(TIME_MARGIN * seconds / (15 * 60)))
