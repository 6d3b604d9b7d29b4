"""Tiny BIDS datasets made on the spot, healthy or broken in one way."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_gsrecon.interfaces.bids import DerivativeSink

FINE_MM = 4.0


def affine(sizes_mm, shift_mm=(0.0, 0.0, 0.0), normal_axis=2):
    """Diagonal affine centred on the world origin for the phantom's box; ``normal_axis`` swaps k with it."""
    matrix = np.diag([*map(float, sizes_mm), 1.0])
    matrix[:3, 3] = np.asarray(shift_mm) - 40.0
    if normal_axis != 2:
        matrix[:3, [2, normal_axis]] = matrix[:3, [normal_axis, 2]]
    return matrix


def brain(shape, sizes_mm, contrast=1.0, shift_mm=(0.0, 0.0, 0.0)):
    """A skull-stripped ellipsoid with inner structure, (i, j, k) float32, exactly zero outside."""
    index = np.indices(shape).reshape(3, -1).T * np.asarray(sizes_mm) - 40.0 + np.asarray(shift_mm)
    x, y, z = index.T
    inside = (x / 34) ** 2 + (y / 38) ** 2 + (z / 34) ** 2 < 1
    tissue = 500 + 200 * contrast * np.sin(x / 7) * np.cos(y / 9) + 150 * np.cos(z / 8 + contrast)
    return np.where(inside, tissue, 0).reshape(shape).astype(np.float32)


def write_image(path, data, matrix, metadata=None) -> Path:
    """An image and its sidecar."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, matrix)
    image.header.set_xyzt_units('mm', 'sec')
    nib.save(image, path)
    if metadata is not None:
        path.with_name(path.name.split('.')[0] + '.json').write_text(json.dumps(metadata))
    return path


def write_description(root) -> Path:
    """``dataset_description.json`` of a raw dataset."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / 'dataset_description.json').write_text(json.dumps({'Name': 'tiny', 'BIDSVersion': '1.10.0'}))
    (root / 'README').write_text('A tiny dataset made by the tests.\n')
    return root


def anat(root, label, session=None):
    """``sub-<label>[/ses-<session>]/anat`` and the start of its file names."""
    folder = Path(root) / f'sub-{label}'
    folder = folder / f'ses-{session}' / 'anat' if session else folder / 'anat'
    return folder, f'sub-{label}_ses-{session}' if session else f'sub-{label}'


def write_t1w(root, label, session=None, sizes=(FINE_MM,) * 3, entities='', **kwargs) -> Path:
    """An isotropic (by default) skull-stripped T1w."""
    folder, stem = anat(root, label, session)
    shape = tuple(round(80 / size) for size in sizes)
    return write_image(folder / f'{stem}{entities}_T1w.nii.gz', brain(shape, sizes), affine(sizes), **kwargs)


def write_thick(
    root, label, suffix='T2w', session=None, thickness=8.0, axis=2, entities='', **kwargs
) -> Path:
    """A thick contrast, slab means of a finer one; the origin is the centre of the first slab."""
    folder, stem = anat(root, label, session)
    fine = brain((20, 20, 20), (FINE_MM,) * 3, contrast=-1.0)
    factor = int(thickness / FINE_MM)
    slabs = ndimage.uniform_filter1d(fine, factor, axis=axis, origin=0)
    keep = [slice(None)] * 3
    keep[axis] = slice(factor // 2, None, factor)
    sizes = [FINE_MM] * 3
    sizes[axis] = thickness
    matrix = np.diag([*sizes, 1.0])
    matrix[:3, 3] = -40.0
    matrix[axis, 3] += (factor // 2 - (0.5 if factor % 2 == 0 else 0.0)) * FINE_MM
    return write_image(folder / f'{stem}{entities}_{suffix}.nii.gz', slabs[tuple(keep)], matrix, **kwargs)


def healthy(root, labels=('01',)) -> Path:
    """Participants with an isotropic T1w and thick T2w and FLAIR."""
    write_description(root)
    for label in labels:
        write_t1w(root, label)
        write_thick(root, label, 'T2w', metadata={'SliceThickness': 8.0})
        write_thick(root, label, 'FLAIR', axis=1)
    return Path(root)


def sink_paths(workflow):
    """Where a graph writes, below the output folder."""
    nodes = [workflow.get_node(name) for name in workflow.list_node_names()]
    return sorted(n.interface.inputs.out_path for n in nodes if isinstance(n.interface, DerivativeSink))
