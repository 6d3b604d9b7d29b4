"""Rigid registration of a (thick) contrast to the reference, and ITK transform files.

Where accuracy comes from, each point measured on pairs with known truth (see ``docs/faq``):

- the metric is evaluated at the *moving* (thick) voxels: they are the measurements, nothing is interpolated
  through plane, and it costs a third of sampling at the reference's voxels;
- the reference is first averaged over the shape of a moving voxel (slab), so both show the same tissue;
- headers within a session are nearly right, so the search starts there, tries a few other starts on a 4 mm
  normalised mutual information, and the answer is kept only where it beats the header.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_gsrecon.atomic import write_atomically
from bids_gsrecon.errors import InputError
from bids_gsrecon.imaging.foreground import dilated, foreground_threshold, skull_stripped_support
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.mutual_information import (
    MutualInformation,
    rigid_from_parameters,
)
from bids_gsrecon.interfaces.ants_bridge import (
    RAS_TO_LPS,
    ants_registration,
    ants_scratch,
    pointer,
    to_ants,
)

MIN_OVERLAP = 0.05
GOOD_OVERLAP = 0.6
# The measured error on pairs of known truth: a smaller correction of a header is not worth believing.
HEADER_TRUST_MM = 0.2
N_SAMPLES = 60_000


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """Where the moving image lies.

    Attributes
    ----------
    moving_to_fixed
        4x4 rigid, RAS mm: maps a point of the moving image's world into the fixed image's world. A
        header corrected by it has the affine ``moving_to_fixed @ moving.affine``.
    metric, initial_metric
        Normalised mutual information (1: independent) at the answer and at the header's alignment.
    moved_mm, moved_deg
        By how much the answer differs from the headers: mean displacement over the moving foreground,
        and rotation angle.
    overlap
        Share of the smaller foreground that lies in the other image's field of view, by the headers.
    how
        One sentence for the report.
    """

    moving_to_fixed: np.ndarray = field(repr=False)
    metric: float
    initial_metric: float
    moved_mm: float
    moved_deg: float
    overlap: float
    how: str


def register_rigid(
    fixed: Volume,
    moving: Volume,
    *,
    fixed_mask: np.ndarray | None = None,
    seed: int = 0,
    n_threads: int = 1,
) -> RegistrationResult:
    """Rigidly align ``moving`` (any contrast, thick slices, other field of view) with ``fixed``.

    Parameters
    ----------
    fixed
        The reference, isotropic or nearly so.
    moving
        The contrast to align.
    fixed_mask
        (i, j, k) bool on ``fixed``: brain. The last stage then looks only there (and a rim of 6 mm), so
        that jaw, neck and eyes, which move on their own, do not count.
    seed
        Seed of the metric's sampling. Same input and seed: bit-identical answer.
    n_threads
        Threads of the multi-start search; the answer does not depend on it (ANTs always runs on one).

    Raises
    ------
    ValueError
        The headers put the images apart (no overlap), or one of them is empty.
    """
    overlap = header_overlap(fixed, moving)
    if overlap < MIN_OVERLAP:
        gap = np.linalg.norm(_foreground_centre(fixed) - _foreground_centre(moving))
        raise ValueError(
            f'it does not overlap the reference (by the headers {overlap:.0%} of the smaller image lies in '
            f'the other, their centres are {gap:.0f} mm apart): repair its affine, or leave the image out'
        )
    focus, moving_focus = _focus_masks(fixed, moving, fixed_mask)
    header = np.eye(4)
    start, kind = _best_start(fixed, moving, focus, moving_focus, overlap, n_threads)
    slabbed = averaged_over_voxel(fixed, moving, start)
    if focus is not None:
        focus = _mask_on(focus, fixed.lattice, slabbed.lattice)
    refined = _ants_rigid(slabbed, moving, start, focus, moving_focus, seed)
    judge = MutualInformation(slabbed, moving, 0.0, moving_focus, focus, max_samples=100_000)
    initial = judge(header)
    candidates = [(judge(refined), refined), (judge(start), start), (initial, header)]
    matrix, best = judge.optimise(max(candidates, key=lambda c: c[0])[1], step_mm=0.5, tolerance_mm=0.02)
    points = _points(moving)
    moved_mm = float(np.linalg.norm((matrix @ points - points)[:3], axis=0).mean())
    angle = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
    if best <= initial or moved_mm < HEADER_TRUST_MM:
        how = f'headers kept: registration agrees with them within {max(moved_mm, 0.01):.2f} mm'
        return RegistrationResult(header, initial, initial, 0.0, 0.0, overlap, how)
    how = (
        f'rigid (ANTs, then normalised mutual information at the thick voxels; start: {kind}): moved '
        f'{moved_mm:.2f} mm and {angle:.2f} degrees from the headers'
    )
    return RegistrationResult(matrix, best, initial, moved_mm, float(angle), overlap, how)


def header_overlap(fixed: Volume, moving: Volume) -> float:
    """Share of the smaller foreground that lies in the other image's field of view, by the headers."""
    shares = []
    for a, b in ((fixed, moving), (moving, fixed)):
        points = _points(a)[:3].T
        index = b.lattice.to_index(points)
        inside = ((index > -0.5) & (index < np.array(b.data.shape) - 0.5)).all(1)
        shares.append(float(inside.mean()) if len(inside) else 0.0)
    return max(shares)


def averaged_over_voxel(fixed: Volume, moving: Volume, moving_to_fixed: np.ndarray) -> Volume:
    """``fixed`` averaged over the box of a moving voxel wherever that box is larger than its own voxels.

    Resampled (cubic) to a grid along the moving image's axes, so the average is a plain box filter with
    fractional ends. Returned in the fixed world, with the fixed image's field of view.
    """
    own = float(fixed.lattice.voxel_sizes_mm.min())
    sizes = moving.lattice.voxel_sizes_mm
    if sizes.max() <= 1.4 * fixed.lattice.voxel_sizes_mm.max():
        return fixed
    directions = moving_to_fixed[:3, :3] @ (moving.affine[:3, :3] / sizes)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in fixed.data.shape])).reshape(3, -1).T
    along = fixed.lattice.to_world(corners) @ directions
    shape = np.ceil((along.max(0) - along.min(0)) / own).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = directions * own
    affine[:3, 3] = directions @ along.min(0)
    lattice = Lattice(tuple(shape), affine)
    matrix = fixed.lattice.world_to_voxel @ affine
    data = ndimage.affine_transform(
        fixed.data,
        matrix[:3, :3],
        matrix[:3, 3],
        lattice.shape,
        order=1,
        mode='constant',
        cval=float(fixed.data.min()),
    )
    for axis in range(3):
        width = sizes[axis] / own
        if width > 1.4:
            data = ndimage.correlate1d(data, _box(width), axis=axis, mode='nearest')
    return Volume(data, lattice)


def _box(width: float) -> np.ndarray:
    """Weights of a box ``width`` samples wide (fractional ends), unit sum, odd length."""
    half = int(np.ceil((width - 1) / 2))
    edges = np.arange(2 * half + 2) - half - 0.5
    weights = np.diff(np.clip(edges, -width / 2, width / 2))
    return weights / weights.sum()


def _points(volume: Volume, n: int = 20_000) -> np.ndarray:
    """World positions (4, n) of foreground voxels, thinned regularly."""
    index = np.argwhere(volume.data > foreground_threshold(volume.data))
    index = index[:: max(1, len(index) // n)]
    return np.concatenate([volume.lattice.to_world(index).T, np.ones((1, len(index)))])


def _foreground_centre(volume: Volume) -> np.ndarray:
    points = _points(volume)
    return points[:3].mean(1) if points.shape[1] else volume.lattice.centre_mm


def _focus_masks(fixed, moving, fixed_mask):
    """Where samples count: (on fixed, on moving), None for everywhere.

    A brain mask narrows the look to the brain. Where only one image is skull-stripped its edge is not an
    edge of the other, so only what lies inside the stripped one can be compared.
    """
    fixed_brain, moving_brain = skull_stripped_support(fixed), skull_stripped_support(moving)
    alike = (fixed_brain is None) == (moving_brain is None)
    focus = None
    if fixed_mask is not None and fixed_mask.any():
        focus = dilated(fixed_mask.astype(bool), fixed.lattice, 10.0 if fixed_brain is not None else 6.0)
    if alike:
        return focus, None
    if moving_brain is not None:
        return focus, moving_brain
    return (fixed_brain if focus is None else focus & fixed_brain), None


def _best_start(fixed, moving, focus, moving_focus, overlap, n_threads) -> tuple[np.ndarray, str]:
    """The motion with the best coarse NMI after a local search from several starts."""
    coarse = MutualInformation(fixed, moving, 4.0, moving_focus, focus, max_samples=20_000)
    pivot = coarse.centre_mm
    header = np.eye(4)
    starts = [(header, 'header')]
    for axis in range(3):
        for sign in (-1.0, 1.0):
            turn, shift = np.zeros(6), np.zeros(6)
            turn[axis], shift[3 + axis] = np.radians(10.0) * sign, 10.0 * sign
            starts.append((rigid_from_parameters(turn, pivot), 'header turned'))
            starts.append((rigid_from_parameters(shift, pivot), 'header shifted'))
    centred = np.eye(4)
    centred[:3, 3] = _foreground_centre(fixed) - _foreground_centre(moving)
    if overlap < GOOD_OVERLAP or np.linalg.norm(centred[:3, 3]) > 15.0:
        starts.append((centred, 'centres of mass'))
    scores = [coarse(matrix) for matrix, _ in starts]
    order = np.argsort(scores)[::-1]
    chosen = list(dict.fromkeys([0, *map(int, order[:3]), *([len(starts) - 1] if len(starts) > 13 else [])]))
    with ThreadPoolExecutor(max(1, n_threads)) as pool:
        found = list(pool.map(lambda i: coarse.optimise(starts[i][0], max_evaluations=400), chosen))
    winner = int(np.argmax([score for _, score in found]))
    return found[winner][0], starts[chosen[winner]][1]


def _ants_rigid(slabbed, moving, start, focus, moving_focus, seed) -> np.ndarray:
    """Refine ``start`` by antsRegistration with the thick image as its fixed one; returns moving_to_fixed.

    ``focus`` is on the grid of ``slabbed``, ``moving_focus`` on that of ``moving``.
    """
    # ANTs samples at its fixed image's voxels: that is our moving image, put into place by the start.
    placed = Volume(moving.data, moving.lattice.moved(start))
    images = [to_ants(_standardised(placed)), to_ants(_standardised(slabbed))]
    inside = dilated(moving.data > foreground_threshold(moving.data), moving.lattice, 6.0)
    if moving_focus is not None:
        inside &= moving_focus
    if focus is not None:
        inside &= _mask_on(focus, slabbed.lattice, placed.lattice)
    mask = to_ants(Volume(inside.astype(np.float32), placed.lattice))
    rates = ','.join(['Regular', f'{min(1.0, N_SAMPLES / max(1, inside.sum())):.4f}'])
    with ants_scratch() as folder:
        arguments = ['--output', folder / 'x', '--masks', f'[{pointer(mask)},NA]']
        arguments += ['--initial-moving-transform', 'Identity', '--transform', 'Rigid[0.1]']
        arguments += ['--metric', f'Mattes[{pointer(images[0])},{pointer(images[1])},1,32,{rates}]']
        arguments += ['--convergence', '[100x100x100,1e-6,10]']
        arguments += ['--shrink-factors', '4x2x1', '--smoothing-sigmas', '4x2x0mm']
        ants_registration(arguments, seed=seed)
        placed_to_slabbed = np.linalg.inv(load_itk_transform(folder / 'x0GenericAffine.mat'))
    return placed_to_slabbed @ start


def _standardised(volume: Volume) -> Volume:
    """Intensities clipped to the 99.8th percentile of the foreground: outliers would empty the histogram."""
    high = float(np.percentile(volume.data[volume.data > volume.data.min()], 99.8))
    return Volume(np.minimum(volume.data, high), volume.lattice)


def _mask_on(mask: np.ndarray, source: Lattice, target: Lattice) -> np.ndarray:
    matrix = source.world_to_voxel @ target.affine
    values = ndimage.affine_transform(
        mask.astype(np.uint8), matrix[:3, :3], matrix[:3, 3], target.shape, order=0
    )
    return values > 0


def save_itk_transform(path, moving_to_fixed: np.ndarray, *, rigid: bool = False) -> Path:
    """Write a rigid or affine map as an ITK text file, for resampling the moving image on the fixed grid.

    ``antsApplyTransforms -r FIXED -i MOVING -t path`` (and nitransforms) then move the moving image into
    the fixed image's space. By ITK's convention the numbers in the file map the other way than the image
    moves: from points of the fixed world to points of the moving world, in LPS mm.

    Parameters
    ----------
    moving_to_fixed
        4x4, RAS mm, maps a point of the moving world into the fixed world.
    rigid
        Write a rigid map as three angles and a translation (Euler3DTransform), not as a matrix.
    """
    path = Path(path)
    fixed_to_moving = RAS_TO_LPS @ np.linalg.inv(np.asarray(moving_to_fixed, dtype=np.float64)) @ RAS_TO_LPS
    kind, linear = 'AffineTransform', fixed_to_moving[:3, :3].ravel()
    if rigid:
        kind, linear = 'Euler3DTransform', _euler_angles(fixed_to_moving[:3, :3])
    numbers = [*linear, *fixed_to_moving[:3, 3]]
    text = (
        f'#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}_double_3_3\n'
        f'Parameters: {" ".join(repr(float(n)) for n in numbers)}\nFixedParameters: 0 0 0\n'
    )
    write_atomically(path, lambda temporary: Path(temporary).write_text(text))
    return path


def load_itk_transform(path) -> np.ndarray:
    """Read what `save_itk_transform` or ANTs wrote (.txt, .tfm, .mat; one matrix transform).

    Returns
    -------
    moving_to_fixed : (4, 4), RAS mm.

    Raises
    ------
    InputError
        Missing or unreadable file, or not a single 3D matrix transform.
    """
    path = Path(path)
    try:
        kind, numbers, centre = _read_mat(path) if path.suffix == '.mat' else _read_text(path)
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error.strerror}): check the path.') from error
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        message = f'{path} is not an ITK transform of one 3D matrix: give a rigid or affine file.'
        raise InputError(message) from error
    if kind.startswith('Euler3DTransform') and len(numbers) == 6:
        numbers = np.r_[_euler_matrix(numbers[:3]).ravel(), numbers[3:]]
    elif not kind.startswith(('AffineTransform', 'MatrixOffsetTransformBase')) or len(numbers) != 12:
        raise InputError(
            f'{path} holds a {kind}, not a 3D matrix transform: convert it to an ITK affine first.'
        )
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:] + centre - matrix[:3, :3] @ centre
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise InputError(f'{path} holds a singular or non-finite matrix: compute the transform again.')
    return np.linalg.inv(RAS_TO_LPS @ matrix @ RAS_TO_LPS)


def _euler_angles(rotation: np.ndarray) -> np.ndarray:
    """(3,) radians about x, y, z of ITK's Euler3DTransform: R = Rz Rx Ry."""
    # At a right angle about x two of the three angles are one: any split is right.
    x = np.arctan2(rotation[2, 1], np.hypot(rotation[2, 0], rotation[2, 2]))
    if abs(rotation[2, 1]) > 1 - 1e-12:
        return np.array([x, 0.0, np.arctan2(rotation[1, 0], rotation[0, 0])])
    y = np.arctan2(-rotation[2, 0], rotation[2, 2])
    return np.array([x, y, np.arctan2(-rotation[0, 1], rotation[1, 1])])


def _euler_matrix(angles: np.ndarray) -> np.ndarray:
    """The inverse of `_euler_angles`."""
    from scipy.spatial.transform import Rotation

    x, y, z = angles
    return Rotation.from_euler('ZXY', [z, x, y]).as_matrix()


def _read_text(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    text = path.read_text()
    if not text.startswith('#Insight Transform File') or text.count('\nTransform:') != 1:
        raise ValueError('not one ITK transform')
    fields = dict(re.findall(r'^(Transform|Parameters|FixedParameters): *(.*)$', text, re.MULTILINE))
    return (
        fields['Transform'].strip(),
        np.array(fields['Parameters'].split(), dtype=np.float64),
        np.array(fields['FixedParameters'].split(), dtype=np.float64)[:3],
    )


def _read_mat(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    from scipy.io import loadmat

    content = {k: np.ravel(v).astype(np.float64) for k, v in loadmat(path).items() if not k.startswith('__')}
    kind = next(k for k in content if k != 'fixed')
    return kind, content[kind], content['fixed'][:3]
