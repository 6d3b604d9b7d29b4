"""Cine from undersampled k-space with dynamic 2D Gaussians."""

from bids_gsrecon.recon.cine.method import reconstruct_cine
from bids_gsrecon.recon.cine.types import CineOptions, CineResult

__all__ = ['CineOptions', 'CineResult', 'reconstruct_cine']
