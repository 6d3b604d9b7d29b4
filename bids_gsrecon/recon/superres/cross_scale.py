"""Learning across scales: what voxels add to their own mean, finer voxels add to them, in kind.

The image is made coarser by the very factor that is asked for, through its own voxel profile; the published
model (and self-similarity) brings it back; a small network learns what that misses, where the truth is known, and is applied one
scale up. The idea is that of zero-shot super-resolution (Shocher et al., CVPR 2018), here on top of Gaussians.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.render import render
from bids_gsrecon.imaging.sampling import make_sampling
from bids_gsrecon.recon.progress import Progress
from bids_gsrecon.recon.superres.patches import (
    PatchShape,
    TrainingOptions,
    apply_detail,
    gather_cells,
    mirrored_problems,
    train_detail,
)
from bids_gsrecon.recon.superres.physics import fit_physics
from bids_gsrecon.recon.superres.similarity import self_similar

# Of the gain on held-out patches. Finer detail is fainter than the coarser, far fainter where an image is
# band-limited, which its own voxels cannot tell: half of it keeps most of what is won elsewhere.
DETAIL_WEIGHT = 0.5
FEW_PATCHES = 20_000  # fewer than this: the coarser grid is laid at further offsets
MAX_OFFSETS = 8
MIN_PATCHES = 1000
HELD_OUT_BLOCK = 8  # coarse voxels


def coarser_lattice(lattice: Lattice, factors) -> Lattice:
    """Whole blocks of ``factors`` (3,) voxels of ``lattice``."""
    factors = np.asarray(factors)
    scale = np.diag([*factors.astype(float), 1.0])
    scale[:3, 3] = (factors - 1) / 2.0
    return Lattice(tuple(np.array(lattice.shape) // factors), lattice.affine @ scale)


def add_learned_detail(
    base: np.ndarray,
    image: np.ndarray,
    lattice: Lattice,
    region: np.ndarray,
    profiles,
    factors: tuple[int, int, int],
    *,
    similar: bool,
    n_iterations: int,
    seed: int,
    device: str,
    progress: Progress,
) -> dict[str, float]:
    """In place: add to ``base`` the detail learned from ``image``.

    Parameters
    ----------
    base
        (k, j, i) the published model's image on ``lattice.refined(factors)``.
    image, region
        (k, j, i) the acquired image, about 1, and where it counts.
    profiles
        Voxel profiles along the stored axes (i, j, k) of ``lattice``.
    factors
        Cells per voxel along (i, j, k).
    similar
        Whether ``base`` went through `self_similar`.

    Returns
    -------
    dict
        ``detail_gain`` on held-out patches and the number of patches.
    """
    rng = np.random.default_rng(seed)
    array_factors = tuple(factors[::-1])
    margin = tuple(0 if f == 1 else 2 if f == 2 else 1 for f in array_factors)
    shape = PatchShape(array_factors, tuple(max(m, 1) for m in margin))
    flips = mirrored_problems(shape, array_factors)
    features, targets, held = [], [], []
    n_offsets, offset = 1, np.zeros(3, int)
    while len(features) < n_offsets:
        problem = _coarser_problem(
            image,
            lattice,
            region,
            profiles,
            factors,
            offset,
            similar=similar,
            n_iterations=n_iterations,
            device=device,
        )
        if problem is None:
            break
        coarse, estimate, centres, truth = problem
        if not features:
            n_offsets = int(np.clip(round(FEW_PATCHES / max(len(centres), 1)), 1, MAX_OFFSETS))
            n_offsets = min(n_offsets, int(np.prod(factors)))
        progress('learning across scales', len(features), n_offsets)
        keep = TrainingOptions().n_samples // n_offsets
        if len(centres) > keep:
            centres = centres[np.sort(rng.permutation(len(centres))[:keep])]
        features.append(shape.gather(estimate, coarse, centres))
        targets.append(
            gather_cells(truth, centres, array_factors) - gather_cells(estimate, centres, array_factors)
        )
        blocks = (centres * np.array(array_factors) + offset[::-1]) // (
            HELD_OUT_BLOCK * np.array(array_factors)
        )
        held.append((blocks @ np.array([73, 179, 283])) % 10 == 0)
        offset = rng.integers(0, factors)
    if sum(len(f) for f in features) < MIN_PATCHES:
        return {'detail_gain': 0.0, 'n_patches': float(sum(len(f) for f in features))}
    features, targets, held = np.concatenate(features), np.concatenate(targets), np.concatenate(held)
    order = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
    network = train_detail(
        features[order], targets[order], flips, seed=seed, progress=progress, stage='learning across scales'
    )
    centres = np.argwhere(region)
    some = [flips[0], flips[7], flips[1], flips[6]]
    apply_detail(
        network, shape, base.copy(), image, centres, some, array_factors, base, DETAIL_WEIGHT * network.gain
    )
    return {'detail_gain': network.gain, 'n_patches': float(len(features))}


def _coarser_problem(image, lattice, region, profiles, factors, offset, *, similar, n_iterations, device):
    """The image made coarser and brought back: (coarse, estimate, centres, truth), arrays (k, j, i)."""
    factors = np.asarray(factors)
    n = (np.array(lattice.shape) - offset) // factors * factors
    if (n < 2 * factors).any():
        return None
    lattice = lattice.cropped(offset, offset + n)
    box = tuple(slice(o, o + m) for o, m in zip(offset[::-1], n[::-1]))
    truth, region = np.ascontiguousarray(image[box]), region[box].astype(np.float32)
    coarse_lattice = coarser_lattice(lattice, factors)
    scaled = [replace(p, thickness_mm=p.thickness_mm * f) for p, f in zip(profiles, factors)]
    sampling = make_sampling(lattice, coarse_lattice, scaled).reversed()
    coarse = sampling.forward(truth)
    coarse_region = sampling.forward(region) > 0.5
    if not coarse_region.any():
        return None
    field = fit_physics(
        coarse.transpose(2, 1, 0),
        coarse_lattice,
        ndimage.binary_dilation(coarse_region).transpose(2, 1, 0),
        lattice,
        sampling,
        n_iterations=n_iterations,
        device=device,
    )
    estimate = np.ascontiguousarray(render([field], lattice, backend=device).transpose(2, 1, 0))
    if similar:
        estimate = self_similar(estimate, sampling, coarse, coarse_region)
    return coarse, estimate, np.argwhere(coarse_region), truth
