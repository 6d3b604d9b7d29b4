"""What the outputs of all methods have in common: names that BIDS does not know, and the sinks."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.pipeline import engine as pe

import bids_gsrecon
from bids_gsrecon.config import Config
from bids_gsrecon.interfaces.bids import BidsName, DerivativeSink, FolderSink, PictureSink
from bids_gsrecon.workflows.plan_types import TargetPlan

# No BIDS name exists for these; the patterns go into .bidsignore (no trailing slash: the validator wants none).
BIDSIGNORE = (
    'logs',
    'figures',
    '*.html',
    '*_xfm.*',
    '*_desc-scaffold_*',
    '*_desc-field_*',
    '*_desc-supportasl_mask.*',
    '*_desc-supportm0scan_mask.*',
    '*_desc-slices_*',
    '*_desc-stacks_*',
    'svr',
    'cine',
    'm2asr',
    'group_*',
    '.tmp-*',
)


def generated_by() -> dict:
    """For sidecars."""
    return {'Name': 'bids_gsrecon', 'Version': bids_gsrecon.__version__}


def what_was_used(target: TargetPlan) -> str:
    """``contrast``, or which mean of a series, for descriptions."""
    if target.volumes:
        return 'mean of the b=0 volumes'
    return 'mean over time' if target.average else 'contrast'


def transform_path(target: TargetPlan, space: str) -> Path:
    """``..._from-T2w_to-T1w_mode-image_xfm.txt``; ``from`` is the suffix, the other entities stay."""
    source = target.name
    entities = {'from': source.suffix, 'to': space, 'mode': 'image'}
    return source.replaced(suffix='xfm', **entities).path('.txt')


def recorded_verdict(config: Config, path: Path, name: str) -> list[str]:
    """The verdict that the sidecar of an image at ``path`` (below the output folder) holds, as a sentence on ``name``."""
    sidecar = config.output_dir / path.with_name(path.name.split('.')[0] + '.json')
    try:
        known = json.loads(sidecar.read_text())
        why = f' ({"; ".join(known["Reasons"][:3])})' if known['Reasons'] else ''
        return [f'{name}: {known["Verdict"]}{why}']
    except (OSError, ValueError, KeyError):
        return []


def derivative_sink(config: Config, name: str, path: Path, metadata: dict | None = None, **inputs) -> pe.Node:
    """Node that puts one file at ``path`` below the output folder."""
    interface = DerivativeSink(output_dir=str(config.output_dir), out_path=path.as_posix(), **inputs)
    if metadata is not None:
        interface.inputs.metadata = metadata
    return pe.Node(interface, name=name, run_without_submitting=True, mem_gb=0.1)


def folder_sink(config: Config, name: str, path: Path) -> pe.Node:
    """Node that fills one folder at ``path`` below the output folder."""
    interface = FolderSink(output_dir=str(config.output_dir), out_path=path.as_posix())
    return pe.Node(interface, name=name, run_without_submitting=True, mem_gb=0.1)


def picture_sink(config: Config, name: str, base: BidsName) -> pe.Node:
    """Node that puts the reportlets of one scan in place."""
    interface = PictureSink(output_dir=str(config.output_dir), entities=base.entities, suffix=base.suffix)
    return pe.Node(interface, name=name, run_without_submitting=True, mem_gb=0.1)


def gradient_companions(target: TargetPlan) -> dict:
    """BIDS wants gradients for every ``_dwi``; those of the source's name apply to the mean b=0 beside it."""
    if target.name.datatype != 'dwi':
        return {}
    name = target.name
    return {
        'companions': {
            name.path('.bval').as_posix(): '0\n',
            name.path('.bvec').as_posix(): '0\n0\n0\n',
        }
    }
