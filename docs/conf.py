"""Sphinx: ``sphinx-build -W -b html docs docs/_build/html`` (needs the ``docs`` extra)."""

import sys
from pathlib import Path

import bids_gsrecon

sys.path.insert(0, str(Path(__file__).parent / '_ext'))

project = 'bids_gsrecon'
author = 'The bids_gsrecon developers'
release = version = bids_gsrecon.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'arguments']
exclude_patterns = ['_build']
source_suffix = {'.md': 'markdown'}
myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
smartquotes = False  # arguments are spelled with two hyphens
# Docstrings are numpydoc-like prose; signatures carry the types.
napoleon_google_docstring = False
napoleon_use_ivar = True
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
html_theme = 'alabaster'
html_theme_options = {'description': 'MRI reconstruction with explicit Gaussians', 'page_width': '1100px'}
