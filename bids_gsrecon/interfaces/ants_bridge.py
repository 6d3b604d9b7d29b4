"""The one door to ANTs: repeatable environment, geometry conversion, calls that leave no files behind.

ANTs lives in LPS millimetres (x and y point the other way than in nibabel's RAS) and writes its transforms
as *resampling* maps: from a point of the fixed image to the point of the moving image whose value belongs
there. Everything outside this module is RAS and says in its name which way it maps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_gsrecon.imaging.lattice import Lattice, Volume

if TYPE_CHECKING:
    import ants

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
DEFAULT_SEED = 7


def import_ants():
    """The ``ants`` module, imported into an environment in which its results repeat.

    ITK sums its metrics in an order that depends on the number of threads, so exact repeats (and equal
    results on machines of different size) need one thread, set before the first import of a process;
    parallel work is left to the workflow. The seed in the environment is for programs that take none on
    their command line (unset it would come from the clock); `ants_registration` passes its own.
    """
    os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'] = '1'
    os.environ['ANTS_RANDOM_SEED'] = str(DEFAULT_SEED)
    import ants

    return ants


def to_ants(volume: Volume) -> ants.ANTsImage:
    """An in-memory ANTs image with the same voxel centres (mirrored axes and obliques included)."""
    ants = import_ants()
    affine = RAS_TO_LPS @ volume.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(volume.data),
        origin=tuple(map(float, affine[:3, 3])),
        spacing=tuple(map(float, sizes)),
        direction=_nearest_rotation(affine[:3, :3] / sizes),
    )


def from_ants(image: ants.ANTsImage) -> Volume:
    """The `Volume` of an ANTs image."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    affine[:3, 3] = image.origin
    return Volume(image.numpy(), Lattice(image.shape, RAS_TO_LPS @ affine))


def _nearest_rotation(direction: np.ndarray) -> np.ndarray:
    """Orthonormal matrix nearest to ``direction`` (headers round; ITK refuses what is not orthonormal)."""
    u, _, vt = np.linalg.svd(direction)
    return u @ vt


@contextlib.contextmanager
def ants_scratch() -> Iterator[Path]:
    """A folder for one ANTs call, removed afterwards whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix='gsrecon-ants-'))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pointer(image: ants.ANTsImage) -> str:
    """The name by which the antsRegistration command line refers to an image in memory."""
    from ants.internal import get_pointer_string

    return get_pointer_string(image)


def ants_registration(arguments: list[Any], *, seed: int = 0) -> None:
    """Run antsRegistration in this process with a fixed seed (3D, float32).

    Raises
    ------
    RuntimeError
        antsRegistration failed.
    """
    import_ants()
    from ants.internal import get_lib_fn, process_arguments

    command = ['--dimensionality', '3', *arguments, '--random-seed', str(seed + DEFAULT_SEED), '--float', '1']
    try:
        code = get_lib_fn('antsRegistration')(process_arguments([str(a) for a in command]))
    except Exception as error:  # the binding throws its own types
        raise RuntimeError(f'antsRegistration failed: {error}') from error
    if code != 0:
        raise RuntimeError(f'antsRegistration failed with code {code}')
