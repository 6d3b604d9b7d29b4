"""One versioned HDF5 format for Gaussian fields: learned once, sampled again on any grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.fields.hdf5 import numbered, opened, written

FORMAT = 'bids_gsrecon.field'
VERSION = 1
_ARRAYS = ('means_mm', 'log_scales', 'quaternions', 'log_weights', 'amplitudes')


def save_field(path, layers: Sequence[GaussianField], metadata: dict | None = None) -> Path:
    """Write layers (their renders add up to the image) and JSON-able ``metadata``; appears atomically.

    World coordinates are scanner RAS millimetres, as everywhere in the package.
    """
    with written(path, FORMAT, VERSION, metadata, world='RAS mm') as file:
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
    return Path(path)


def load_field(path) -> tuple[list[GaussianField], dict]:
    """Layers and metadata of a file that `save_field` wrote.

    Raises
    ------
    InputError
        Not such a file, damaged, or of a newer version.
    """
    with opened(path, FORMAT, VERSION, what='Gaussian field', example='*_field.h5 or *_scaffold.h5') as (
        file,
        metadata,
    ):
        layers = [
            GaussianField(
                **{name: np.asarray(group[name]) for name in _ARRAYS},
                composition=group.attrs['composition'],
                channels=json.loads(group.attrs['channels']),
                metadata=json.loads(group.attrs['metadata']),
            )
            for group in numbered(file['layers'])
        ]
    return layers, metadata
