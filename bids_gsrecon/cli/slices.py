"""What the .json beside a single file says, and how thick its slices are."""

from __future__ import annotations

import json
from pathlib import Path

from bids_gsrecon.cli.arguments import image_stem
from bids_gsrecon.interfaces.headers import slice_thickness_mm


def thickness_of(path, spacing_mm: float) -> tuple[float, str]:
    """``SliceThickness`` of the .json beside an image where it is credible, and what to say about it.

    Returns
    -------
    thickness_mm, remark
        The spacing where there is no sidecar; the remark is empty where thickness and spacing agree.
    """
    return slice_thickness_mm(spacing_mm, sidecar_metadata(path))


def sidecar_metadata(path) -> dict:
    """Content of the .json beside an image; empty where there is none or it cannot be read."""
    sidecar = Path(path).with_name(image_stem(path) + '.json')
    try:
        metadata = json.loads(sidecar.read_text())
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
