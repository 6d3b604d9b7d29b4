"""The package as it is installed: complete, importable, and layered as the architecture says."""

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_folder_of_code_is_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    listed = set(config['options']['packages'].split())
    found = set()
    for top in ('bids_gsrecon', 'workflows', 'gpu'):
        for file in (ROOT / top).rglob('*.py'):
            name = '.'.join(file.parent.relative_to(ROOT).parts)
            found.add(name if top == 'bids_gsrecon' else f'bids_gsrecon.{name}')
    assert found == listed


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The wheel's content in a folder: import-linter cannot see through an editable install."""
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('site')
    for item in ('bids_gsrecon', 'gpu', 'workflows', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        path = ROOT / item
        if path.is_dir():
            shutil.copytree(path, source / item, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(path, source / item)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', target, source],
        check=True,
    )
    return target


def test_data_files_are_installed(installed):
    for top in ('bids_gsrecon', 'workflows', 'gpu'):
        home = installed / 'bids_gsrecon' / ('' if top == 'bids_gsrecon' else top)
        for file in (ROOT / top).rglob('*'):
            if file.is_file() and '__pycache__' not in file.parts:
                assert (home / file.relative_to(ROOT / top)).is_file(), f'{file} is not in the wheel'


def test_layers(installed):
    result = subprocess.run(
        [sys.executable, '-c', 'from importlinter.cli import lint_imports_command; lint_imports_command()',
         '--config', str(ROOT / 'pyproject.toml'), '--no-cache'],
        cwd=installed,
        env={**os.environ, 'PYTHONPATH': str(installed)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
