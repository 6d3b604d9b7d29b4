"""Physics-driven zero-shot super-resolution of one volume (arXiv 2603.09621), with a true forward model."""

from bids_gsrecon.recon.superres.grids import PROFILES, cell_factors, output_lattice, voxel_profiles
from bids_gsrecon.recon.superres.method import estimate_memory_gb, superres
from bids_gsrecon.recon.superres.types import MODELS, SuperresOptions, SuperresResult

__all__ = [
    'MODELS',
    'PROFILES',
    'SuperresOptions',
    'SuperresResult',
    'cell_factors',
    'estimate_memory_gb',
    'output_lattice',
    'superres',
    'voxel_profiles',
]
