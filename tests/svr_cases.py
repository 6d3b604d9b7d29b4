"""Small cases of moving stacks on disk, and a stand-in for the method."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bids_gsrecon.fields.gaussians import GaussianField
from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.imaging.resample import resample
from bids_gsrecon.imaging.simulate_stacks import moving_stacks
from bids_gsrecon.interfaces.io import save_volume
from bids_gsrecon.recon.svr.types import SliceTable, SvrResult
from tests.phantoms import folded_head


def write_stacks(folder: Path, **options):
    """stack-N.nii.gz, mask-N.nii.gz and stack-N.json (N from 1) of a head of 36 mm; the simulated stacks."""
    volume, mask = folded_head()
    settings = {
        'in_plane_mm': 1.5,
        'thickness_mm': 3.0,
        'rotation_deg': 2.0,
        'translation_mm': 1.0,
        'noise': 0.0,
    }
    stacks = moving_stacks(volume, mask, **{**settings, **options})
    for number, simulated in enumerate(stacks, 1):
        stack = simulated.stack
        save_volume(folder / f'stack-{number}.nii.gz', stack.data, stack.lattice.affine)
        save_volume(folder / f'mask-{number}.nii.gz', stack.mask, stack.lattice.affine, dtype=np.uint8)
        sidecar = {'SliceThickness': stack.thickness_mm, 'SliceTiming': stack.acquisition_rank().tolist()}
        (folder / f'stack-{number}.json').write_text(json.dumps(sidecar))
    return stacks


def fake_svr(stacks, *, options, progress=None) -> SvrResult:
    """The mean of the stacks as their headers place them, every slice with a known small pose of its own."""
    if progress is not None:
        progress('averaging', 1, 1)
    h = options.resolution_mm
    points = np.concatenate([s.lattice.to_world(np.argwhere(s.mask)) for s in stacks])
    affine = np.diag([h, h, h, 1.0])
    affine[:3, 3] = points.min(0) - 2 * h
    shape = tuple(np.ceil((np.ptp(points, axis=0) + 4 * h) / h).astype(int) + 1)
    lattice = Lattice(shape, affine)
    total, seen = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for stack in stacks:
        matrix = stack.lattice.world_to_voxel @ affine
        total += resample(stack.data * stack.mask, matrix, shape, 1)
        seen += resample(stack.mask.astype(np.float32), matrix, shape, 1)
    mask = seen > 0.5
    image = np.where(mask, total / np.maximum(seen, 0.5), 0).astype(np.float32)
    where = [(n, k) for n, s in enumerate(stacks) for k in np.flatnonzero(s.mask.any((0, 1)))]
    stack_of, index = np.array(where).T
    rank = np.array([stacks[n].acquisition_rank()[k] for n, k in where])
    ones = np.ones(len(where))
    ncc = np.where(index == index.max(), np.nan, 0.9)
    table = SliceTable(stack_of, index, rank, ones, ones, ncc, 0.5 * ones, index == index.min())
    poses = np.array([small_motion(n, k) for n, k in where])
    predicted = [np.where(s.mask, s.data, np.nan).astype(np.float32) for s in stacks]
    voxels = np.argwhere(mask)
    field = GaussianField(
        lattice.to_world(voxels),
        np.full((len(voxels), 3), np.log(0.7 * h)),
        np.tile([1.0, 0, 0, 0], (len(voxels), 1)),
        np.zeros(len(voxels)),
        image[mask][:, None] / (0.7 * np.sqrt(2 * np.pi)) ** 3,
        'sum',
        ('svr',),
    )
    return SvrResult(
        lattice, image, mask, 0.1 * image, seen, field, poses, table, predicted, 0, {'averaging': 0.1}
    )


def small_motion(stack: int, index: int) -> np.ndarray:
    """The pose that `fake_svr` gives to a slice."""
    from scipy.spatial.transform import Rotation

    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler('xyz', [2 + stack, -index, 5.0], degrees=True).as_matrix()
    motion[:3, 3] = [0.5 * index, -1.0, 2.0 + stack]
    return motion


def replace_svr(monkeypatch) -> list[dict]:
    """`fake_svr` in place of the method; what it is called with is appended to the list."""
    import bids_gsrecon.recon.svr.method as module

    calls = []

    def svr(stacks, *, options, progress=None):
        calls.append({'stacks': stacks, 'options': options})
        return fake_svr(stacks, options=options, progress=progress)

    monkeypatch.setattr(module, 'svr', svr)
    return calls
