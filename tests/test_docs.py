"""The documentation builds without a warning, and holds every argument of both programs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / 'docs'


def test_pages_link_only_to_files_that_exist():
    for page in DOCS.glob('*.md'):
        for target in re.findall(r'\]\(([^)#:]+?)(?:#[^)]*)?\)', page.read_text()):
            assert (page.parent / target).exists(), f'{page.name} links to {target}'


def test_every_page_is_in_the_table_of_contents():
    listed = re.search(r'```\{toctree\}\n(?::.*\n)*\n(.*?)```', (DOCS / 'index.md').read_text(), re.DOTALL)
    assert set(listed.group(1).split()) == {p.stem for p in DOCS.glob('*.md')} - {'index'}


def test_builds_without_warnings(tmp_path):
    pytest.importorskip('sphinx', reason="sphinx is not installed (pip install '.[docs]')")
    pytest.importorskip('myst_parser', reason="myst-parser is not installed (pip install '.[docs]')")
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', '-d', tmp_path / 'd']
    done = subprocess.run([*command, DOCS, tmp_path / 'html'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usage = (tmp_path / 'html' / 'usage.html').read_text()
    for argument in ('--participant-label', '--reports-only', '--relax-geometry', '--slice-axis', '--json'):
        assert argument in usage
