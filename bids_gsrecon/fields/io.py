"""One versioned HDF5 format for Gaussian fields: learned once, sampled again on any grid."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_gsrecon.errors import InputError
from bids_gsrecon.fields.gaussians import GaussianField

FORMAT = 'bids_gsrecon.field'
VERSION = 1
_ARRAYS = ('means_mm', 'log_scales', 'quaternions', 'log_weights', 'amplitudes')


def save_field(path, layers: Sequence[GaussianField], metadata: dict | None = None) -> Path:
    """Write layers (their renders add up to the image) and JSON-able ``metadata``; appears atomically.

    World coordinates are scanner RAS millimetres, as everywhere in the package.
    """
    import h5py

    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix='.tmp-', suffix='.h5', dir=path.parent)
    os.close(handle)
    try:
        with h5py.File(temporary, 'w', track_order=True) as file:
            file.attrs.update(
                format=FORMAT, version=VERSION, world='RAS mm', metadata=json.dumps(metadata or {})
            )
            for i, layer in enumerate(layers):
                group = file.create_group(f'layers/{i}')
                group.attrs['composition'] = layer.composition
                group.attrs['channels'] = json.dumps(list(layer.channels))
                group.attrs['metadata'] = json.dumps(layer.metadata)
                for name in _ARRAYS:
                    array = getattr(layer, name)
                    group.create_dataset(
                        name, data=array, compression='lzf' if array.size else None, shuffle=True
                    )
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return path


def load_field(path) -> tuple[list[GaussianField], dict]:
    """Layers and metadata of a file that `save_field` wrote.

    Raises
    ------
    InputError
        Not such a file, damaged, or of a newer version.
    """
    import h5py

    try:
        with h5py.File(path, 'r') as file:
            if file.attrs.get('format') != FORMAT:
                raise InputError(
                    f'{path} is not a Gaussian field of this package: give a *_field.h5 or *_scaffold.h5.'
                )
            if int(file.attrs['version']) > VERSION:
                raise InputError(f'{path} was written by a newer version: update bids_gsrecon to read it.')
            layers = [
                GaussianField(
                    **{name: np.asarray(group[name]) for name in _ARRAYS},
                    composition=group.attrs['composition'],
                    channels=json.loads(group.attrs['channels']),
                    metadata=json.loads(group.attrs['metadata']),
                )
                for _, group in sorted(file['layers'].items(), key=lambda item: int(item[0]))
            ]
            return layers, json.loads(file.attrs['metadata'])
    except (OSError, KeyError) as error:
        raise InputError(f'{path} cannot be read as a Gaussian field ({error}): make it again.') from error
