"""Where the brain is: taken from a skull-stripped image, or from a template moved onto the head by ANTs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.foreground import (
    background_value,
    dilated,
    eroded,
    foreground_threshold,
    largest_component,
    skull_stripped_support,
    volume_litres,
)
from bids_gsrecon.imaging.lattice import Lattice, Volume
from bids_gsrecon.imaging.mutual_information import MutualInformation, box_downsampled, rigid_from_parameters
from bids_gsrecon.interfaces.ants_bridge import ants_registration, ants_scratch, import_ants, pointer, to_ants
from bids_gsrecon.interfaces.bias_field import correct_bias_field
from bids_gsrecon.interfaces.io import load_mask, load_volume

WORKING_MM = 2.0
OPENING_MM = 3.0
# How far beyond the template's brain the metric looks: further out its zeros would match the air
# around the head, and the mask would grow over skull and scalp.
RIM_MM = 0.5
# A field of view that cannot hold a head: no template is fitted there.
MIN_HEAD_MM = 110.0
PLAUSIBLE_LITRES = (0.3, 2.3)
# Of the template's inner brain with the image. Seen: heads of any contrast 1.019 to 1.052; a ball 1.009,
# noise 1.002.
MIN_TEMPLATE_NMI = 1.013


@dataclass(frozen=True, eq=False)
class Template:
    """A T1w template with its brain mask on the same grid."""

    image: Volume
    mask: np.ndarray
    name: str


def find_brain_mask(
    volume: Volume, *, template: str | Path = 'auto', seed: int = 0, n_threads: int = 1
) -> tuple[np.ndarray, str]:
    """Brain mask of a head or of a skull-stripped brain, of any contrast.

    Parameters
    ----------
    volume
        The image; thick slices are fine.
    template
        ``auto`` (MNI152 as shipped inside nilearn, no network needed) or a T1w template file with its
        mask beside it (``*_T1w.nii.gz`` and ``*_desc-brain_mask.nii.gz``), for instance TemplateFlow's.
    seed
        Seed of the registration's sampling.
    n_threads
        Kept for symmetry with the workflow: ANTs always runs on one thread, so that results repeat.

    Returns
    -------
    mask : (i, j, k) bool
    how : one sentence for the report.

    Raises
    ------
    ValueError
        No brain could be found (nothing human-sized, or a result that cannot be a brain).
    """
    support = skull_stripped_support(volume)
    if support is not None:
        litres = volume_litres(support, volume.lattice)
        return support, f'support of the skull-stripped image ({litres:.2f} L), holes filled'
    extent = np.array(volume.data.shape) * volume.lattice.voxel_sizes_mm
    if np.sort(extent)[1] < MIN_HEAD_MM:
        return _crop_support(volume)
    mask, how = _template_mask(volume, load_template(template), seed)
    litres = volume_litres(mask, volume.lattice)
    if not PLAUSIBLE_LITRES[0] <= litres <= PLAUSIBLE_LITRES[1]:
        raise ValueError(
            f'no brain was found in it (the best candidate has {litres:.2f} L): give a brain mask through '
            '--derivatives'
        )
    return mask, f'{how} ({litres:.2f} L)'


def _crop_support(volume: Volume) -> tuple[np.ndarray, str]:
    """A field of view smaller than a head (a crop): everything that is not background."""
    value = background_value(volume.data)
    occupied = (
        volume.data > value if np.mean(volume.data == value) > 0.01 else np.ones(volume.data.shape, bool)
    )
    mask = ndimage.binary_fill_holes(largest_component(occupied))
    if mask.sum() < 100:
        raise ValueError('it holds no brain (nearly all of it is background): check the image')
    return mask, 'field of view smaller than a head: everything but the background'


def load_template(template: str | Path = 'auto') -> Template:
    """The template's image and mask on a 2 mm grid.

    Raises
    ------
    InputError, ValueError
        A file is missing or unreadable.
    """
    if str(template) == 'auto':
        from nilearn import datasets

        image = datasets.load_mni152_template(resolution=2)
        mask = datasets.load_mni152_brain_mask(resolution=2, threshold=0.2)
        volume = Volume.from_affine(image.get_fdata(dtype=np.float32), image.affine)
        return Template(volume, np.asarray(mask.dataobj) > 0, 'MNI152NLin2009 (nilearn)')
    path = Path(template)
    volume = load_volume(path)
    mask_path = Path(str(path).replace('_T1w.nii', '_desc-brain_mask.nii'))
    if mask_path == path:
        raise ValueError(f'{path} is not named *_T1w.nii.gz: the brain mask beside it cannot be found')
    brain = load_mask(mask_path, volume.lattice)
    small = box_downsampled(volume, WORKING_MM)
    share = box_downsampled(Volume(brain, volume.lattice), WORKING_MM)
    return Template(
        Volume(np.where(share.data > 0.5, small.data, 0), small.lattice), share.data > 0.5, path.name
    )


def _template_mask(volume: Volume, template: Template, seed: int) -> tuple[np.ndarray, str]:
    head = _working_copy(volume, seed)
    affine = _affine_start(head, template)
    inner = eroded(template.mask, template.image.lattice, 4.0)
    score = MutualInformation(head, template.image, 4.0, moving_mask=inner, max_samples=15_000)(affine)
    if score < MIN_TEMPLATE_NMI:
        raise ValueError(
            f'no brain was recognised in it (mutual information with the template {score:.3f}): give a brain '
            'mask through --derivatives'
        )
    probability = _warped_probability(head, template, affine, seed)
    mask = _refined(head, probability)
    matrix = head.lattice.world_to_voxel @ volume.affine
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 0.7)
    full = ndimage.affine_transform(soft, matrix[:3, :3], matrix[:3, 3], volume.data.shape, order=1) > 0.5
    if not full.any():
        raise ValueError('no brain was found in it: give a brain mask through --derivatives')
    return largest_component(full), f'{template.name} moved onto the head by ANTs (affine, SyN), then refined'


def _working_copy(volume: Volume, seed: int) -> Volume:
    """Bias-corrected copy on an isotropic grid of 2 mm (or the image's own, coarser one), clipped."""
    small = box_downsampled(volume, WORKING_MM)
    small = correct_bias_field(small, seed=seed, iterations=(30, 20))
    lattice = small.lattice.resampled(max(WORKING_MM, float(small.lattice.voxel_sizes_mm.min())))
    matrix = small.lattice.world_to_voxel @ lattice.affine
    data = ndimage.affine_transform(
        small.data, matrix[:3, :3], matrix[:3, 3], lattice.shape, order=1, mode='nearest'
    )
    high = np.percentile(data[data > foreground_threshold(data)], 99.0)
    return Volume(np.clip(data, 0, high), lattice)


def _affine_start(head: Volume, template: Template) -> np.ndarray:
    """Template world to head world (4x4): rigid multi-start on NMI inside the brain, then scales."""
    inside = dilated(template.mask, template.image.lattice, 3.0)
    metric = MutualInformation(head, template.image, 4.0, moving_mask=inside, max_samples=10_000)
    pivot = metric.centre_mm
    threshold = foreground_threshold(head.data)
    points = head.lattice.to_world(np.argwhere(head.data > threshold)[::7])
    # The top 90 mm of a head are brain, skull and scalp: their centre is the brain's, whatever the neck.
    upper = points[points[:, 2] > np.percentile(points[:, 2], 99.5) - 130.0]
    guess = upper.mean(0)
    rough = []
    for lift in (-30.0, -15.0, 0.0, 15.0, 30.0):
        starts = []
        for pitch, ahead, scale in itertools.product((-20, 0, 20), (-20, 0, 20), (0.88, 1.0)):
            start = rigid_from_parameters([np.radians(pitch), 0, 0, 0, 0, 0], pivot)
            start[:3, :3] *= scale
            start[:3, 3] = guess + np.array([0, ahead, lift]) - start[:3, :3] @ pivot
            starts.append(start)
        options = {'n_scales': 1, 'step_mm': 6.0, 'tolerance_mm': 0.5, 'max_evaluations': 400}
        rough.append(metric.optimise(max(starts, key=metric), penalty=_implausibility, **options))
    rough.sort(key=lambda found: found[1] - _implausibility(found[0]), reverse=True)
    options = {'n_scales': 3, 'step_mm': 3.0, 'tolerance_mm': 0.3, 'max_evaluations': 900}
    fine = [metric.optimise(matrix, penalty=_implausibility, **options) for matrix, _ in rough[:2]]
    return max(fine, key=lambda found: found[1] - _implausibility(found[0]))[0]


def _implausibility(affine: np.ndarray) -> float:
    """Penalty, in units of NMI, for brains far from the template's size or of odd proportions.

    MNI152 is larger than most brains (1.9 L): lengths of 0.78 to 1.01 of it cost nothing.
    """
    scales = np.log(np.linalg.svd(affine[:3, :3], compute_uv=False))
    size = max(0.0, abs(scales.mean() + 0.12) - 0.13)
    return 0.03 * ((size / 0.1) ** 2 + (max(0.0, np.ptp(scales) - 0.15) / 0.15) ** 2)


def _warped_probability(head: Volume, template: Template, affine: np.ndarray, seed: int) -> np.ndarray:
    """The template's brain mask (0..1) on the head's grid after ANTs' affine and SyN stages.

    The template is ANTs' fixed image and its brain the domain of the metric: sampled in the head instead,
    the metric would gain by growing the brain until the template's empty surroundings leave the domain.
    """
    ants = import_ants()
    placed = template.image.lattice.moved(affine)
    image = to_ants(Volume(_resampled(template.image.data, placed, head.lattice), head.lattice))
    brain = _resampled(template.mask, placed, head.lattice)
    mask = to_ants(Volume(dilated(brain > 0.5, head.lattice, RIM_MM), head.lattice))
    target = to_ants(head)
    pair = f'{pointer(image)},{pointer(target)}'
    with ants_scratch() as folder:
        arguments = ['--output', folder / 'x', '--masks', f'[{pointer(mask)},NA]']
        arguments += ['--initial-moving-transform', 'Identity']
        arguments += ['--transform', 'SyN[0.1,3,1]', '--metric', f'Mattes[{pair},1,32]']
        arguments += ['--convergence', '[30x20,1e-6,8]']
        arguments += ['--shrink-factors', '3x2', '--smoothing-sigmas', '3x2mm']
        ants_registration(arguments, seed=seed)
        warped = ants.apply_transforms(
            target,
            to_ants(Volume(brain, head.lattice)),
            [str(folder / 'x1InverseWarp.nii.gz')],
        )
        return warped.numpy()


def _resampled(data: np.ndarray, source: Lattice, target: Lattice, order: int = 1) -> np.ndarray:
    matrix = source.world_to_voxel @ target.affine
    return ndimage.affine_transform(
        data.astype(np.float32), matrix[:3, :3], matrix[:3, 3], target.shape, order=order
    )


def _refined(head: Volume, probability: np.ndarray) -> np.ndarray:
    """Cut skull and scalp off the warped mask: what a dark layer (bone, air) parts from the core goes.

    Voxels as bright as tissue are opened by 3 mm; the part that holds the core stays, is closed over sulci
    and grown by one working voxel, so that cortex and a film of CSF are inside.
    """
    lattice = head.lattice
    rough = probability > 0.5
    core = eroded(rough, lattice, 12.0)
    if not core.any():
        return largest_component(rough)
    tissue_level = float(np.median(head.data[core]))
    tissue = (head.data > 0.45 * tissue_level) & dilated(rough, lattice, 2.0)
    opened = largest_component(eroded(tissue, lattice, OPENING_MM) | core)
    brain = dilated(opened, lattice, OPENING_MM) & (tissue | core)
    padded = np.pad(brain, 6)
    wide = Lattice(padded.shape, lattice.affine)
    closed = eroded(dilated(padded, wide, 9.0), wide, 9.0)[6:-6, 6:-6, 6:-6]
    grown = dilated(ndimage.binary_fill_holes(closed), lattice, WORKING_MM)
    return largest_component(grown & dilated(rough, lattice, 2.0))
