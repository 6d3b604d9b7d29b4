"""AtlasGS: thick-slice contrasts on the Gaussian scaffold of an isotropic reference (arXiv 2606.02961)."""

from bids_gsrecon.recon.harmonize.method import estimate_memory_gb, harmonize
from bids_gsrecon.recon.harmonize.scaffold import check_reference, learn_scaffold
from bids_gsrecon.recon.harmonize.types import (
    ContrastResult,
    HarmonizeOptions,
    HarmonizeResult,
    Target,
)

__all__ = [
    'ContrastResult',
    'HarmonizeOptions',
    'HarmonizeResult',
    'Target',
    'check_reference',
    'estimate_memory_gb',
    'harmonize',
    'learn_scaffold',
]
