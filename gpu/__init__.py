"""Gaussians on lattices, fast: sums, gradients, and frozen-geometry operators.

The names below are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib

_HOMES = {
    'COMPOSITIONS': 'autograd',
    'compose': 'autograd',
    'rasterize': 'autograd',
    'splat_sums': 'autograd',
    'DEFAULT_CUTOFF': 'backend',
    'DEFAULT_EPS': 'backend',
    'FAST_CUTOFF': 'backend',
    'Backend': 'backend',
    'Gradients': 'backend',
    'available_backends': 'backend',
    'get_backend': 'backend',
    'set_num_threads': 'threads',
    'side_by_side': 'threads',
    'thread_limit': 'threads',
    'FrozenWeights': 'frozen',
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__():
    return __all__
