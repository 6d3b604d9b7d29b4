"""Names that tell where in the work and log folders something lies; imports nothing."""

from __future__ import annotations

from pathlib import Path

ROOT_NAME = 'bids_gsrecon_wf'


def participant_name(participant: str) -> str:
    """The workflow, and folder, of one participant."""
    return f'sub_{participant}_wf'


def participant_of(step: str) -> str:
    """The participant of a node by its full name; empty: none."""
    for part in step.split('.'):
        if part.startswith('sub_') and part.endswith('_wf'):
            return part.removeprefix('sub_').removesuffix('_wf')
    return ''


def crash_folder(log_dir: Path, participant: str) -> Path:
    """Where nipype writes the crash files of one participant."""
    return log_dir / f'sub-{participant}'
