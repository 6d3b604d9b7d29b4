"""GaussM2ASR: a network trained to super-resolve one contrast by any factor with the help of another."""

from bids_gsrecon.recon.m2asr.config import SIZES, NetworkConfig, Schedule
from bids_gsrecon.recon.m2asr.method import apply, train
from bids_gsrecon.recon.m2asr.synthetic import LabelMap
from bids_gsrecon.recon.m2asr.types import Applied, Checkpoint, Model, Pair, TrainingOptions

__all__ = [
    'SIZES',
    'Applied',
    'Checkpoint',
    'LabelMap',
    'Model',
    'NetworkConfig',
    'Pair',
    'Schedule',
    'TrainingOptions',
    'apply',
    'train',
]
