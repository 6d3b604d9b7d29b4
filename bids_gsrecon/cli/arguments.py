"""Checked argument types shared by the subcommands of ``gsrecon``."""

from __future__ import annotations

import argparse
import uuid
from pathlib import Path

from bids_gsrecon.errors import InputError

NIFTI_SUFFIXES = ('.nii.gz', '.nii')


def positive_float(text: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = float('nan')
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive number')
    return value


def positive_int(text: str) -> int:
    """A whole number above zero."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive whole number')
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = float('nan')
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0 to 1')
    return value


def seed_number(text: str) -> int:
    """A whole number, zero or above, that every random generator takes."""
    if not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 0 to {2**31 - 1}')
    return int(text)


def add_simulation_arguments(parser: argparse.ArgumentParser, seed_of: str) -> None:
    """``--seed`` and ``--verbose``, which every kind of ``gsrecon simulate`` takes."""
    parser.add_argument('--seed', type=seed_number, default=0, metavar='N', help=f'seed of {seed_of}')
    parser.add_argument('-v', '--verbose', action='store_true', help='show the traceback of an error')


def image_stem(path) -> str:
    """File name without its NIfTI suffix."""
    name = Path(path).name
    for suffix in NIFTI_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return Path(name).stem


def output_image(path, *inputs) -> Path:
    """An image path that can be written and is none of ``inputs``.

    Raises
    ------
    InputError
        No NIfTI suffix, equal to an input, or in a folder that cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(NIFTI_SUFFIXES):
        raise InputError(f'{path} does not end in .nii or .nii.gz: name the output image so.')
    refuse_overwrite(path, *inputs)
    output_folder(path.parent)
    if path.is_dir():
        raise InputError(f'{path} is a folder: name the output image otherwise.')
    return path


def refuse_overwrite(path, *inputs) -> None:
    """Raise `InputError` where ``path`` is one of the inputs."""
    for item in inputs:
        if item is not None and Path(path).resolve() == Path(item).resolve():
            raise InputError(f'{path} is an input and would be overwritten: choose another output.')


def output_folder(path) -> Path:
    """Make sure a folder exists and can be written, before hours of work rather than after."""
    path = Path(path)
    probe = path / f'.write-test-{uuid.uuid4()}'
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'')
        probe.unlink()
    except OSError as error:
        raise InputError(f'{path} cannot be written ({error.strerror}): choose a writable folder.') from error
    return path
