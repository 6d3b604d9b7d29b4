"""List the templates that workflows use, and fetch those that are named, for nodes that have no network.

A run never fetches anything. With --brain-template auto, the default, it needs nothing: that template ships with the
dependencies. Others come from TemplateFlow, into TEMPLATEFLOW_HOME (default: ~/.cache/templateflow):

  gsrecon fetch-templates                          # what is there
  gsrecon fetch-templates MNI152NLin2009cAsym      # fetch it; bids_gsrecon --brain-template MNI152NLin2009cAsym
  gsrecon fetch-templates MNIPediatricAsym:cohort-2
"""

from __future__ import annotations

import argparse

SUMMARY = 'list the templates that workflows use, and fetch others for nodes without network'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``gsrecon fetch-templates``."""
    parser.add_argument('names', nargs='*', metavar='NAME', help='templates of TemplateFlow; none: only list')


def run(args: argparse.Namespace) -> str:
    """List, or fetch."""
    from bids_gsrecon.interfaces.templates import (
        SUGGESTED,
        fetch_template,
        find_template,
        templateflow_home,
    )

    if args.names:
        files = [fetch_template(name) for name in args.names]
        return '\n'.join(
            f'gsrecon fetch-templates: ok, {name}: {file}' for name, file in zip(args.names, files)
        )
    lines = ['auto                 here: ships with nilearn (MNI152, 1 mm); the default of --brain-template']
    for name in SUGGESTED:
        where = find_template(name)
        state = f'here: {where}' if where else f'not here: gsrecon fetch-templates {name}'
        lines.append(f'{name:20} {state}')
    lines.append(f'gsrecon fetch-templates: ok, TemplateFlow is looked for in {templateflow_home()}')
    return '\n'.join(lines)
