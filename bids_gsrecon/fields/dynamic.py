"""2D Gaussians that move: complex, with few temporal modes for every parameter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bids_gsrecon.fields.hdf5 import is_format, numbered, opened, written
from bids_gsrecon.gpu.splat2d import PARAMETERS, splat

FORMAT = 'bids_gsrecon.cine'
VERSION = 1
_ARRAYS = ('base', 'modes', 'basis')


@dataclass(eq=False)
class DynamicField2D:
    """M Gaussians on one slice, the first D of which move: ``P_t = base + sum_k basis[t, k] modes[k]``.

    Attributes
    ----------
    base
        (M, 7) float32: centre, factor of the covariance and complex amplitude, in pixels of the acquired slice
        (order: `bids_gsrecon.gpu.splat2d.PARAMETERS`).
    modes
        (K, D, 7) float32; D <= M.
    basis
        (T, K) float32: the time courses at the T frames.
    min_width
        Widths (l11, l22) below this are raised to it, in every frame.
    periodic
        Whether frame T would be frame 0 again (a heart beat).
    metadata
        Anything JSON can hold; travels with the file.
    """

    base: np.ndarray
    modes: np.ndarray
    basis: np.ndarray
    min_width: float = 0.35
    periodic: bool = True
    metadata: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in _ARRAYS:
            setattr(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        n_modes, n_dynamic, n_parameters = self.modes.shape
        if (
            self.base.shape[1:] != (len(PARAMETERS),)
            or n_parameters != len(PARAMETERS)
            or n_dynamic > len(self.base)
            or self.basis.shape[1:] != (n_modes,)
        ):
            raise ValueError(
                f'base {self.base.shape}, modes {self.modes.shape} and basis {self.basis.shape} do not fit together'
            )

    @property
    def n_gaussians(self) -> int:
        return len(self.base)

    @property
    def n_dynamic(self) -> int:
        return self.modes.shape[1]

    @property
    def n_frames(self) -> int:
        return len(self.basis)

    def static_parameters(self) -> np.ndarray:
        """(1, M - D, 7) of the Gaussians that rest."""
        return self.clipped(self.base[None, self.n_dynamic :].copy())

    def dynamic_parameters(self, rows=None) -> np.ndarray:
        """(T, D, 7) at rows (T, K) of the basis (default: the frames)."""
        rows = self.basis if rows is None else np.asarray(rows, np.float32)
        n_modes, n_dynamic, n_parameters = self.modes.shape
        moving = rows @ self.modes.reshape(n_modes, n_dynamic * n_parameters)
        return self.clipped(self.base[None, :n_dynamic] + moving.reshape(len(rows), n_dynamic, n_parameters))

    def clipped(self, parameters: np.ndarray) -> np.ndarray:
        """In place: widths of Gaussians (..., 7) not below `min_width`."""
        for width in (2, 4):
            np.maximum(parameters[..., width], self.min_width, out=parameters[..., width])
        return parameters

    def basis_at(self, times) -> np.ndarray:
        """(N, K) time courses at times in frames (0 is the first frame, 0.5 half way to the second): cubic."""
        from scipy.interpolate import CubicSpline

        times = np.asarray(times, dtype=np.float64)
        if self.n_frames < 3:
            return self.basis[np.clip(np.rint(times).astype(int), 0, self.n_frames - 1)]
        if self.periodic:
            knots = np.arange(self.n_frames + 1)
            curve = CubicSpline(knots, np.concatenate([self.basis, self.basis[:1]]), bc_type='periodic')
            return curve(np.mod(times, self.n_frames)).astype(np.float32)
        curve = CubicSpline(np.arange(self.n_frames), self.basis)
        return curve(np.clip(times, 0, self.n_frames - 1)).astype(np.float32)

    def render(self, shape, *, times=None, matrix=None, offset=(0.0, 0.0)) -> np.ndarray:
        """Complex images (N, nx, ny) on any grid at any times.

        Parameters
        ----------
        shape
            (nx, ny) of the output.
        times
            (N,) in frames; default: the T frames.
        matrix, offset
            Pixels of the acquired slice to pixels of the output: ``matrix @ (x, y) + offset`` (2 x 2; default:
            the acquired grid). Values do not change with the size of the pixels.
        """
        rows = self.basis if times is None else self.basis_at(times)
        moving, resting = self.dynamic_parameters(rows), self.static_parameters()
        if matrix is not None:
            moving, resting = (transformed(p, matrix, offset) for p in (moving, resting))
        planes = splat(moving, shape)
        planes += splat(resting, shape)
        return planes[:, 0] + np.complex64(1j) * planes[:, 1]


def transformed(parameters: np.ndarray, matrix, offset) -> np.ndarray:
    """Gaussians (..., 7) after the affine map ``x -> matrix @ x + offset`` of the plane."""
    matrix = np.asarray(matrix, dtype=np.float64)
    out = np.array(parameters, dtype=np.float64)
    factor = np.zeros((*out.shape[:-1], 2, 2))
    factor[..., 0, 0], factor[..., 1, 0], factor[..., 1, 1] = out[..., 2], out[..., 3], out[..., 4]
    factor = matrix @ factor
    lower = np.linalg.cholesky(factor @ np.swapaxes(factor, -1, -2))
    out[..., :2] = out[..., :2] @ matrix.T + np.asarray(offset, dtype=np.float64)
    out[..., 2], out[..., 3], out[..., 4] = lower[..., 0, 0], lower[..., 1, 0], lower[..., 1, 1]
    return out.astype(np.float32)


def save_cine(path, slices: list[DynamicField2D], metadata: dict | None = None) -> Path:
    """Write the fields of all slices; appears atomically."""
    with written(path, FORMAT, VERSION, metadata) as file:
        for i, one in enumerate(slices):
            group = file.create_group(f'slices/{i}')
            group.attrs.update(
                min_width=one.min_width, periodic=one.periodic, metadata=json.dumps(one.metadata)
            )
            for name in _ARRAYS:
                group.create_dataset(name, data=getattr(one, name))
    return Path(path)


def is_cine(path) -> bool:
    """Whether the file is one that `save_cine` wrote."""
    return is_format(path, FORMAT)


def load_cine(path) -> tuple[list[DynamicField2D], dict]:
    """Fields and metadata of a file that `save_cine` wrote.

    Raises
    ------
    InputError
        Not such a file, damaged, or of a newer version.
    """
    with opened(path, FORMAT, VERSION, what='cine model', example='*_model.h5') as (file, metadata):
        slices = [
            DynamicField2D(
                **{name: np.asarray(group[name]) for name in _ARRAYS},
                min_width=float(group.attrs['min_width']),
                periodic=bool(group.attrs['periodic']),
                metadata=json.loads(group.attrs['metadata']),
            )
            for group in numbered(file['slices'])
        ]
    return slices, metadata
