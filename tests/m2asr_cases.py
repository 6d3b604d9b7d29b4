"""Small pairs with edges that both images share, and a network that trains on them in a second."""

import dataclasses

import numpy as np
from scipy import ndimage

from bids_gsrecon.imaging.lattice import Lattice
from bids_gsrecon.recon.m2asr import NetworkConfig, Pair, Schedule, TrainingOptions

NETWORK = NetworkConfig(
    features=8, encoder_blocks=1, channels=8, heads=2, window=4, cross_layers=1, stages=0, stage_layers=0,
    shuffle=2, start='exact', carry=True, conv_blocks=1, head_hidden=(8,), patch=24,
)  # fmt: skip
SCHEDULE = Schedule(
    first_stage_steps=0, steps=6, learning_rate=2e-3, warm_up_steps=2, milestones=(), optimizer='muon', batch=2,
    reference_loss=0.1,
)  # fmt: skip


def make_pair(subject='01', shape=(40, 37, 30), seed=0, contrast='T2w', slice_axis=2, voxel_mm=1.0):
    """Cells of different brightness in the two images; a frame of background."""
    rng = np.random.default_rng(seed)
    cells = ndimage.zoom(rng.integers(1, 9, [n // 4 + 1 for n in shape]), 4, order=0)
    cells = cells[tuple(slice(0, n) for n in shape)]
    mask = np.zeros(shape, bool)
    mask[3:-3, 3:-3, 3:-3] = True
    images = []
    for _ in range(2):
        table = rng.uniform(0.2, 1, 9)
        images.append(ndimage.gaussian_filter(table[cells] * mask, 0.6) * 700)
    lattice = Lattice(shape, np.diag([voxel_mm, voxel_mm, voxel_mm, 1]))
    return Pair(subject, contrast, *(i.astype(np.float32) for i in images), lattice, slice_axis, mask)


def options(**changes):
    """A training of six steps."""
    base = TrainingOptions(max_steps=6, n_threads=1, device='cpu', network=NETWORK, schedule=SCHEDULE)
    return dataclasses.replace(base, **changes)


class Memory:
    """A checkpoint in memory that keeps every state; ``resume`` is the one to go on from."""

    def __init__(self, resume=None):
        self.states, self.resume = [], resume

    def load(self):
        return self.resume

    def save(self, state):
        import copy

        self.states.append(copy.deepcopy(state))
