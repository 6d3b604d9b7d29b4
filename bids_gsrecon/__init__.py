"""MRI reconstruction with explicit Gaussians, as a Nipype-based BIDS-App."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version('bids_gsrecon')
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = '0+unknown'
