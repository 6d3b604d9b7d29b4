"""Turning a reconstruction into the standard space of a template, by a rigid motion and never a reflection.

The anatomy may lie in any direction (a fetus does): each of the 24 ways to lay the axes of a cube on
themselves is a start, about the centres of mass, climbed on blurred images. The best are compared at a finer
level under affine motions, so that another size or age does not decide, by their outlines and by what lies
within; the answer is the rigid part of the best. How far the best that is turned otherwise stays behind tells
whether to believe it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from bids_gsrecon.imaging.correlation import Correlation, nearest_rotation
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.resample import resample
from bids_gsrecon.imaging.support import find_support
from bids_gsrecon.recon.progress import Progress
from bids_gsrecon.recon.svr.types import SvrResult

# Of the size of the anatomy (cube root of its volume): sample distance and blur of the levels.
COARSE, MIDDLE, FINE = 0.075, 0.04, 0.025
KEPT = 8
OTHERWISE_DEG = 25.0  # from which two answers are different
MIN_MARGIN = 0.1  # correlation by which a sure answer is ahead; right ones between subjects have 0.2 to 0.6
MARGIN_MM = 5.0  # around the anatomy in the output grid


@dataclass(frozen=True, eq=False)
class Orientation:
    """Where a reconstruction lies in the space of a template.

    Attributes
    ----------
    motion
        (4, 4) rigid, determinant +1: world of the reconstruction to that of the template, RAS mm.
    score
        Squared correlation of the whole plus correlation within, at most 2.
    margin
        By how much the score of the best answer that is turned otherwise is lower.
    """

    motion: np.ndarray
    score: float
    margin: float

    @property
    def is_sure(self) -> bool:
        return self.margin >= MIN_MARGIN


def find_orientation(
    image: Volume, mask: np.ndarray, template: Volume, *, progress: Progress | None = None
) -> Orientation:
    """The rigid motion that lays ``image`` on ``template``, from any start.

    Parameters
    ----------
    image, mask
        The reconstruction, and the anatomy in it: (i, j, k) bool.
    template
        Another subject or an average, of the same contrast; its background is empty or dark.

    Raises
    ------
    ValueError
        An empty mask.
    """
    if not mask.any():
        raise ValueError('it shows no anatomy')
    report = progress or (lambda stage, done, total: None)
    support = find_support(template)[0]
    size_mm = float(np.cbrt(mask.sum() * np.prod(image.lattice.voxel_sizes_mm)))

    def level(share: float) -> Correlation:
        mm = share * size_mm
        return Correlation(template, support, image, mask, voxel_mm=mm, blur_mm=mm)

    coarse, middle = level(COARSE), level(MIDDLE)
    template_centre = template.lattice.to_world(np.argwhere(support).mean(0))
    found = []
    starts = Rotation.create_group('O').as_matrix()
    for number, rotation in enumerate(starts):
        report('turning to the template', number, len(starts) + KEPT)
        start = np.eye(4)
        start[:3, :3] = rotation
        start[:3, 3] = template_centre - rotation @ coarse.centre_mm
        motion, score = coarse.optimise(start, n_steps=15)
        found.append((score, motion))
    compared = []
    for number, (_, motion) in enumerate(_distinct(found)[:KEPT]):
        report('turning to the template', len(starts) + number, len(starts) + KEPT)
        stretched, _ = coarse.optimise(motion, affine=True)
        stretched, score = middle.optimise(stretched, affine=True)
        compared.append((score + middle.inner(stretched), stretched))
    compared = _distinct(compared)
    score, motion = compared[0]
    margin = score - compared[1][0] if len(compared) > 1 else score
    fine = level(FINE)
    motion, _ = fine.optimise(motion, affine=True, tolerance_mm=0.02)
    return Orientation(fine.rigid_part(motion), score, margin)


def turned_to(
    result: SvrResult, template: Volume, *, progress: Progress | None = None
) -> tuple[SvrResult, Orientation]:
    """The reconstruction in the space of a template (see `turned`), and how that was found."""
    volume = Volume(result.image, result.lattice)
    orientation = find_orientation(volume, result.mask, template, progress=progress)
    return turned(result, orientation.motion, template.lattice), orientation


def turned(result: SvrResult, motion: np.ndarray, template: Lattice) -> SvrResult:
    """The reconstruction after a motion (4, 4) into the template's world, on a grid along the template's axes.

    The voxel size stays. The image is sampled from its Gaussians once more; the maps are interpolated. Poses
    lead from the slices to the new world.
    """
    from bids_gsrecon.imaging.render import render

    lattice = aligned_lattice(result.mask, result.lattice, motion, template)
    field = result.field.moved(motion)
    matrix = result.lattice.moved(motion).world_to_voxel @ lattice.affine

    def interpolated(data):
        return resample(data.astype(np.float32), matrix, lattice.shape, 1)

    mask = interpolated(result.mask) > 0.5
    return replace(
        result,
        lattice=lattice,
        image=np.where(mask, render([field], lattice), np.float32(0)),
        mask=mask,
        uncertainty=np.where(mask, interpolated(result.uncertainty), np.float32(0)),
        coverage=interpolated(result.coverage),
        field=field,
        poses=motion @ result.poses,
    )


def aligned_lattice(mask: np.ndarray, lattice: Lattice, motion: np.ndarray, template: Lattice) -> Lattice:
    """An isotropic grid around a moved mask: along the axes of ``template``, ordered and directed towards RAS."""
    directions = nearest_to_ras(template.affine[:3, :3] / template.voxel_sizes_mm)
    points = lattice.moved(motion).to_world(np.argwhere(mask)) @ directions
    size = float(lattice.voxel_sizes_mm.min())
    low, high = points.min(0) - MARGIN_MM, points.max(0) + MARGIN_MM
    shape = np.ceil((high - low) / size).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = directions * size
    affine[:3, 3] = directions @ ((low + high) / 2) - affine[:3, :3] @ ((shape - 1) / 2)
    return Lattice(tuple(shape), affine)


def nearest_to_ras(directions: np.ndarray) -> np.ndarray:
    """The columns of (3, 3) unit directions in the order and with the signs nearest to right, anterior, superior."""
    from scipy.optimize import linear_sum_assignment

    order = linear_sum_assignment(-np.abs(directions))[1]
    columns = directions[:, order]
    return columns * np.where(np.diag(columns) < 0, -1.0, 1.0)


def _distinct(found: list[tuple[float, np.ndarray]]) -> list[tuple[float, np.ndarray]]:
    """Best first; of those that are turned alike only the best."""
    kept: list[tuple[float, np.ndarray]] = []
    for score, motion in sorted(found, key=lambda item: -item[0]):
        rotation = nearest_rotation(motion)
        relative = [rotation @ nearest_rotation(other).T for _, other in kept]
        angles = [np.degrees(np.arccos(np.clip((np.trace(r) - 1) / 2, -1, 1))) for r in relative]
        if all(angle > OTHERWISE_DEG for angle in angles):
            kept.append((score, motion))
    return kept
