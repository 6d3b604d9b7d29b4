"""Images of Gaussian fields on any lattice, as points or through a slice profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.fields.index_space import to_index_space
from bids_gsrecon.gpu import DEFAULT_EPS, get_backend
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.profile import SliceProfile


def render(
    layers: Sequence[GaussianField],
    lattice: Lattice,
    *,
    channel: str | None = None,
    profile: SliceProfile | None = None,
    backend: str = 'auto',
) -> np.ndarray:
    """Sum of the layers' images, sampled at the voxel centres of ``lattice``.

    Parameters
    ----------
    layers
        Fields whose images add up; a layer without ``channel`` adds nothing.
    channel
        Name of the channel to show; may be left out where the first layer has only one.
    profile
        Average through this slice profile along its axis: each slice is the weighted mean of planes no
        thicker than the finest voxel size.

    Returns
    -------
    np.ndarray
        (i, j, k) float32.
    """
    channel = _channel(layers, channel)
    if profile is None or profile.kind == 'point':
        return _sample(layers, lattice, channel, backend)
    axis, sizes = profile.axis, lattice.voxel_sizes_mm
    factor = max(1, round(sizes[axis] / sizes.min()))
    cell = sizes[axis] / factor
    margin = max(0, int(np.ceil((profile.half_width_mm - sizes[axis] / 2) / cell)))
    factors = np.ones(3, int)
    factors[axis] = factor
    start, stop = np.zeros(3, int), np.array(lattice.shape) * factors
    start[axis] -= margin
    stop[axis] += margin
    fine = _sample(layers, lattice.refined(factors).cropped(start, stop), channel, backend)
    weights = profile.cell_weights(lattice.shape[axis], sizes[axis], factor, margin).astype(np.float32)
    return np.moveaxis(np.moveaxis(fine, axis, -1) @ weights.T, -1, axis)


def _channel(layers, channel) -> str:
    names = list(dict.fromkeys(name for layer in layers for name in layer.channels))
    if channel is None and len(names) == 1:
        return names[0]
    if channel not in names:
        raise ValueError(f'no channel {channel!r}: the field has {", ".join(names) or "none"}')
    return channel


def _sample(layers, lattice, channel, backend) -> np.ndarray:
    backend = get_backend(backend)
    image = np.zeros(lattice.shape, np.float32)
    for layer in layers:
        if channel not in layer.channels or len(layer) == 0:
            continue
        means, covariances = to_index_space(layer, lattice.world_to_voxel)
        amplitudes = layer.amplitudes[:, [layer.channels.index(channel)]]
        plan = backend.array_plan(means, covariances, layer.log_weights, lattice.shape)
        image += _composed(plan.forward(amplitudes), layer.composition)
    return image


def _composed(sums: np.ndarray, composition: str) -> np.ndarray:
    """Image (nx, ny, nz) of one channel from its sums (2, nx, ny, nz)."""
    if composition == 'sum':
        return sums[1]
    return sums[1] / (sums[0] + np.float32(DEFAULT_EPS))
