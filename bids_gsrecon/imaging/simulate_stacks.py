"""Stacks of thick slices of an anatomy that moved between the slices, with the true pose of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.profile import FWHM_TO_SIGMA
from bids_gsrecon.imaging.stacks import SliceStack

ORIENTATIONS = ('axial', 'coronal', 'sagittal')
MOTIONS = ('smooth', 'iid', 'jerks')
MOST_STACKS = 6
_AXES = {
    'axial': ([1, 0, 0], [0, 1, 0], [0, 0, 1]),
    'coronal': ([1, 0, 0], [0, 0, 1], [0, -1, 0]),
    'sagittal': ([0, 1, 0], [0, 0, 1], [1, 0, 0]),
}
_TILT_DEG = 20.0  # between repeats of an orientation
_MEMORY = 0.9  # correlation of successive slices in smooth motion
_JERK_RATE = 0.1  # of slices at which the anatomy jumps to another place
_DRIFT = 0.25  # share of the smooth motion that goes on between jerks
_SEEN_PIXELS = 4  # pixels around the anatomy that are imaged


@dataclass(frozen=True, eq=False)
class SimulatedStack:
    """A stack and what happened to it.

    Attributes
    ----------
    stack
        With the header of the scanner, which knows nothing of the motion.
    poses
        (n_slices, 4, 4) world matrices: where the scanner believes a pixel is -> where it is in the anatomy.
    gains
        (n_slices,) factor of every slice, signal voids included.
    voids
        (n_slices,) bool: slices that lost most of their signal.
    """

    stack: SliceStack
    poses: np.ndarray
    gains: np.ndarray
    voids: np.ndarray


def moving_stacks(
    volume: Volume,
    mask,
    *,
    in_plane_mm: float,
    thickness_mm: float,
    rotation_deg: float,
    translation_mm: float,
    gap_mm: float = 0.0,
    orientations=ORIENTATIONS,
    n_stacks: int | None = None,
    motion: Literal['smooth', 'iid', 'jerks'] = 'smooth',
    share_moving: float = 1.0,
    gain: float = 0.03,
    void_share: float = 0.0,
    bias: float = 0.0,
    noise: float = 0.02,
    profile: Literal['gaussian', 'box'] = 'gaussian',
    seed: int = 0,
) -> list[SimulatedStack]:
    """Image ``volume`` in stacks of thick slices, each slice in a pose of its own.

    A pixel is the average of the anatomy over a Gaussian of FWHM 1.2 pixels in plane and over the slice
    profile across it. Pixels farther than four from the anatomy are zero. Slices at the ends of a stack that
    see nothing of the mask are left out.

    Parameters
    ----------
    volume
        The truth.
    mask
        (i, j, k) bool on its grid: the anatomy. Motion turns about its centre; stacks cover it.
    in_plane_mm, thickness_mm, gap_mm
        Pixel size, slice thickness, and the unseen distance between slices (negative: overlap).
    rotation_deg, translation_mm
        Amplitude about and along each world axis: bounds of ``iid``; ``smooth`` has the same root mean square.
    orientations
        Of ``axial``, ``coronal``, ``sagittal`` (world axes), one per stack.
    n_stacks
        1 to 6, default one per orientation; repeats are tilted by 20 degrees each.
    motion
        ``smooth``: correlated (0.9) between slices acquired one after another, every second slice first;
        ``iid``: uniform, slices independent; ``jerks``: slow drift, and at a tenth of the slices a jump to
        another place.
    share_moving
        Share of slices that move at all: one episode in time, or random slices with ``iid``.
    gain
        Slices are multiplied by 1 +- this.
    void_share
        Probability that a slice keeps but 10 to 50 % of its signal.
    bias
        Amplitude (below 1) of a smooth multiplicative field per stack, fixed in the scanner.
    noise
        Standard deviation of Rician noise, fraction of the 99.5th percentile of the truth in the mask.
    profile
        ``gaussian`` (FWHM = thickness) or ``box``, across the slice.
    seed
        Of everything random. Motion, gains, bias and noise are drawn independently, stack by stack.

    Raises
    ------
    ValueError
        Options out of range; an empty mask or one of another shape; motion that leaves nothing to see.
    """
    orientations = tuple(orientations)
    n_stacks = len(orientations) if n_stacks is None else n_stacks
    amplitudes = {'rotation': rotation_deg, 'translation': translation_mm, 'gain': gain, 'noise': noise}
    _check_options(orientations, n_stacks, motion, profile, amplitudes)
    _check_shares({'share of moving slices': share_moving, 'share of voids': void_share})
    if not (0 <= bias < 1 and gain < 1):
        raise ValueError('gain and bias must be at least 0 and below 1')
    mask = np.asarray(mask) > 0
    if mask.shape != volume.data.shape:
        raise ValueError(f'the mask {mask.shape} and the image {volume.data.shape} differ in shape')
    if not mask.any():
        raise ValueError('the mask is empty')
    spacing = thickness_mm + gap_mm
    finest = 0.5 * float(volume.lattice.voxel_sizes_mm.min())
    if not (in_plane_mm >= finest and thickness_mm >= finest and np.isfinite(in_plane_mm + thickness_mm)):
        raise ValueError(
            f'pixels of {in_plane_mm:g} mm in slices of {thickness_mm:g} mm are finer than the image can tell '
            f'(half a voxel: {finest:g} mm)'
        )
    if not (np.isfinite(spacing) and spacing >= finest):
        raise ValueError(f'thickness {thickness_mm:g} mm and gap {gap_mm:g} mm leave no step between slices')
    sigma_noise = noise * max(float(np.percentile(volume.data[mask], 99.5)), 0.0)
    centre = volume.lattice.to_world(np.argwhere(mask).mean(0))
    coefficients = ndimage.spline_filter(volume.data, 3, output=np.float32)

    stacks = []
    for number in range(n_stacks):
        draws = [np.random.default_rng(s) for s in np.random.SeedSequence([seed, number]).spawn(4)]
        repeat, which = divmod(number, len(orientations))
        axes = stack_axes(orientations[which], repeat * _TILT_DEG)
        reach = translation_mm + np.sin(np.radians(min(rotation_deg, 90.0))) * _radius(volume, mask, centre)
        lattice = _covering(volume.lattice, mask, axes, (in_plane_mm, in_plane_mm, spacing), reach)
        order = interleaved(lattice.shape[2])
        poses = slice_poses(
            order,
            rotation_deg,
            translation_mm,
            centre,
            motion=motion,
            share_moving=share_moving,
            rng=draws[0],
        )
        seen = _seen(volume.lattice, mask, lattice, poses)
        visible = np.flatnonzero(seen.any((0, 1)))
        if visible.size < 2:
            raise ValueError('fewer than two slices of a stack see the mask: thinner slices or less motion')
        first, last = visible[0], visible[-1] + 1
        lattice = lattice.cropped((0, 0, first), (*lattice.shape[:2], last))
        poses, seen = poses[first:last], seen[:, :, first:last]
        near = _dilated(seen, _SEEN_PIXELS)
        data = sample_slices(
            volume, lattice, poses, thickness_mm, profile, where=near, coefficients=coefficients
        )
        np.maximum(data, 0, out=data)
        voids = draws[1].random(lattice.shape[2]) < void_share
        gains = 1 + draws[1].uniform(-gain, gain, lattice.shape[2])
        gains *= np.where(voids, draws[1].uniform(0.1, 0.5, lattice.shape[2]), 1.0)
        data *= gains.astype(np.float32)
        if bias:
            data *= 1 + np.float32(bias) * _smooth_pattern(lattice.shape, draws[2])
        if sigma_noise:
            real, imaginary = sigma_noise * draws[3].standard_normal((2, *data.shape), dtype=np.float32)
            data = np.where(near, np.hypot(data + real, imaginary), np.float32(0))
        kept = tuple(int(k - first) for k in order if first <= k < last)
        stack = SliceStack(
            data.astype(np.float32, copy=False), lattice, _dilated(seen, 1), thickness_mm, kept, profile
        )
        stacks.append(SimulatedStack(stack, poses, gains, voids))
    return stacks


def stack_axes(orientation: str, tilt_deg: float = 0.0) -> np.ndarray:
    """World directions (3, 3) of a stack's stored axes, in columns; a tilt turns slices about both in-plane axes."""
    axes = np.array(_AXES[orientation], dtype=np.float64).T
    tilt = Rotation.from_rotvec(np.radians(tilt_deg) * np.array([0.8, 0.6, 0.0])).as_matrix()
    return axes @ tilt


def interleaved(n: int) -> np.ndarray:
    """Slices in the order they are acquired: every second one first."""
    return np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)])


def slice_poses(
    order,
    rotation_deg: float,
    translation_mm: float,
    centre_mm,
    *,
    motion: str,
    share_moving: float = 1.0,
    rng: np.random.Generator,
) -> np.ndarray:
    """Poses (n_slices, 4, 4) about ``centre_mm`` of slices acquired in ``order``; see `moving_stacks`."""
    n = len(order)
    if motion == 'iid':
        track = rng.uniform(-1, 1, (n, 6))
    else:
        track = _correlated(n, rng)
        if motion == 'jerks':
            places = np.cumsum(rng.random(n) < _JERK_RATE)
            track = _DRIFT * track + rng.uniform(-1, 1, (n + 1, 6))[places]
    n_moving = round(share_moving * n)
    if motion == 'iid':
        still = rng.permutation(n)[n_moving:]
    else:
        still = (rng.integers(n) + np.arange(n_moving, n)) % n
    track[still] = 0
    parameters = np.empty_like(track)
    parameters[order] = track
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, :3, :3] = Rotation.from_euler('xyz', parameters[:, :3] * rotation_deg, degrees=True).as_matrix()
    poses[:, :3, 3] = parameters[:, 3:] * translation_mm + centre_mm - poses[:, :3, :3] @ centre_mm
    poses[np.isin(np.arange(n), np.asarray(order)[still])] = np.eye(4)
    return poses


def sample_slices(
    volume: Volume,
    lattice: Lattice,
    poses,
    thickness_mm: float,
    profile: str = 'gaussian',
    *,
    where=None,
    coefficients=None,
) -> np.ndarray:
    """What slices in given poses see of ``volume`` (i, j, slice), without noise.

    Cubic spline interpolation on a fine regular grid of every slice, weighted by the point spread.

    Parameters
    ----------
    volume
        The anatomy; zero beyond its grid.
    lattice
        Pixels as the scanner believes them to be, slices along the third axis.
    poses
        (n_slices, 4, 4), from there to the anatomy.
    thickness_mm, profile
        Across the slice; in plane it is a Gaussian of 1.2 pixels FWHM.
    where
        (i, j, slice) bool: other pixels are zero, and not computed where a whole margin is free.
    coefficients
        Cubic spline coefficients of ``volume``, if known.
    """
    if coefficients is None:
        coefficients = ndimage.spline_filter(volume.data, 3, output=np.float32)
    where = np.ones(lattice.shape, bool) if where is None else where
    voxel = float(volume.lattice.voxel_sizes_mm.min())
    sizes = lattice.voxel_sizes_mm
    # Nodes half a pixel (about one sigma) apart, closer where voxels are smaller: neighbours share them.
    cells = np.maximum(2, np.ceil(sizes[:2] / voxel).astype(int))
    in_plane = [_gaussian_weights(1.2 * FWHM_TO_SIGMA * n) for n in cells]
    step, across = _across(thickness_mm, profile, voxel)
    reach = [len(w) // 2 for w in in_plane] + [(len(across) - 1) / 2]
    fine_to_pixel = np.diag([1 / cells[0], 1 / cells[1], step / sizes[2], 1.0])
    data = np.zeros(lattice.shape, np.float32)
    for k in range(lattice.shape[2]):
        if not where[:, :, k].any():
            continue
        rows, columns = (np.flatnonzero(where[:, :, k].any(a)) for a in (1, 0))
        start, stop = (rows[0], columns[0]), (rows[-1] + 1, columns[-1] + 1)
        shape = [(b - a - 1) * n + 1 + 2 * r for a, b, n, r in zip(start, stop, cells, reach)]
        fine_to_pixel[:3, 3] = [*start, k] - np.array(reach) * np.diag(fine_to_pixel)[:3]
        matrix = volume.lattice.world_to_voxel @ poses[k] @ lattice.affine @ fine_to_pixel
        fine = ndimage.affine_transform(
            coefficients,
            matrix[:3, :3],
            matrix[:3, 3],
            (*shape, len(across)),
            output=np.float32,
            prefilter=False,
        )
        plane = fine @ across
        for axis in (0, 1):
            plane = ndimage.correlate1d(plane, in_plane[axis], axis=axis, mode='constant')
        plane = plane[tuple(slice(r, n - r, c) for r, n, c in zip(reach, shape, cells))]
        block = (slice(start[0], stop[0]), slice(start[1], stop[1]), k)
        data[block] = np.where(where[block], plane, 0)
    return data


def _gaussian_weights(sigma: float) -> np.ndarray:
    """Normalized weights of a Gaussian at the whole numbers within three sigma."""
    reach = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def _across(thickness_mm: float, profile: str, voxel_mm: float) -> tuple[float, np.ndarray]:
    """Distance of the nodes across a slice, mm, and their weights, centred on it."""
    if profile == 'gaussian':
        sigma = thickness_mm * FWHM_TO_SIGMA
        step = min(0.5 * sigma, 0.75 * voxel_mm)
        return step, _gaussian_weights(sigma / step)
    n = max(9, int(np.ceil(2 * thickness_mm / voxel_mm)))
    return thickness_mm / n, np.full(n, 1 / n, np.float32)


def _correlated(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 6) autoregressive track with the root mean square of the uniform law on [-1, 1]."""
    steps = rng.standard_normal((n, 6))
    steps[1:] *= np.sqrt(1 - _MEMORY**2)
    track = steps.copy()
    for i in range(1, n):
        track[i] += _MEMORY * track[i - 1]
    return track / np.sqrt(3)


def _radius(volume: Volume, mask, centre) -> float:
    corners = volume.lattice.to_world(np.argwhere(_shell(mask)))
    return float(np.linalg.norm(corners - centre, axis=1).max())


def _shell(mask) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def _covering(truth: Lattice, mask, axes, sizes, reach_mm: float) -> Lattice:
    """A grid along ``axes`` around the mask, with room for motion (its own size at most) and for edges."""
    points = truth.to_world(np.argwhere(_shell(mask))) @ axes
    low, high = points.min(0), points.max(0)
    pad = 0.5 * truth.voxel_sizes_mm.max() + min(reach_mm, 0.5 * float((high - low).max()))
    extent = high - low + 2 * pad + 2 * np.array([_SEEN_PIXELS, _SEEN_PIXELS, 0]) * sizes
    shape = np.ceil(extent / sizes).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = axes * sizes
    affine[:3, 3] = axes @ ((low + high) / 2) - affine[:3, :3] @ ((shape - 1) / 2)
    return Lattice(tuple(shape), affine)


def _seen(truth: Lattice, mask, lattice: Lattice, poses) -> np.ndarray:
    """(i, j, slice) bool: pixels whose centre lies in the mask."""
    values = mask.astype(np.float32)
    seen = np.zeros(lattice.shape, bool)
    for k, pose in enumerate(poses):
        matrix = truth.world_to_voxel @ pose @ lattice.affine
        offset = matrix[:3, 3] + k * matrix[:3, 2]
        plane = ndimage.affine_transform(values, matrix[:3, :3], offset, (*lattice.shape[:2], 1), order=1)
        seen[:, :, k] = plane[..., 0] > 0.5
    return seen


def _dilated(mask, iterations: int) -> np.ndarray:
    """Every slice dilated by some pixels, in plane."""
    cross = ndimage.generate_binary_structure(2, 1)[:, :, None]
    return ndimage.binary_dilation(mask, cross, iterations=iterations)


def _smooth_pattern(shape, rng: np.random.Generator) -> np.ndarray:
    """A random polynomial of second order over the grid, its largest magnitude one."""
    x, y, z = np.meshgrid(
        *[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing='ij', sparse=True
    )
    terms = (x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)
    pattern = sum(np.float32(c) * t for c, t in zip(rng.standard_normal(len(terms)), terms))
    pattern = pattern - (pattern.max() + pattern.min()) / 2
    return pattern / np.abs(pattern).max()


def _check_options(orientations, n_stacks, motion, profile, amplitudes) -> None:
    unknown = [o for o in orientations if o not in ORIENTATIONS]
    if unknown or not orientations:
        raise ValueError(f'unknown orientation {unknown[0] if unknown else ""!r}: {", ".join(ORIENTATIONS)}')
    if not 1 <= n_stacks <= MOST_STACKS:
        raise ValueError(f'the number of stacks must be 1 to {MOST_STACKS}, not {n_stacks}')
    if motion not in MOTIONS:
        raise ValueError(f'unknown motion {motion!r}: {", ".join(MOTIONS)}')
    if profile not in ('gaussian', 'box'):
        raise ValueError(f'unknown slice profile {profile!r}: gaussian or box')
    for name, value in amplitudes.items():
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f'{name} must be a number of at least 0, not {value}')


def _check_shares(shares: dict) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f'the {name} must lie between 0 and 1, not {value}')
