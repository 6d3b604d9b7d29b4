"""The CUDA kernels' own sources, compiled by g++ through a shim: what runs on a device, run on the CPU."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

SOURCES = Path(__file__).resolve().parents[2] / 'gpu' / 'csrc'
SHIM = Path(__file__).parent / 'shim'


def why_not() -> str:
    """Why the shim cannot run here; empty if it can."""
    if shutil.which('g++') is None:
        return 'no g++'
    if platform.system() != 'Linux':
        return 'the shim needs ucontext'
    version = subprocess.run(['g++', '-dumpversion'], capture_output=True, text=True, check=True).stdout
    return '' if int(version.split('.')[0]) >= 10 else 'g++ is older than C++20'


def build(folder: Path, extra: tuple[str, ...] = ()) -> Path:
    """Compile every .cu into one shared library, with ``extra`` options of g++."""
    objects = []
    fma = ['-mfma'] if platform.machine() == 'x86_64' and ' fma ' in Path('/proc/cpuinfo').read_text() else []
    for source in sorted(SOURCES.glob('*.cu')):
        objects.append(folder / f'{source.stem}.o')
        subprocess.run(
            ['g++', '-std=c++20', '-O2', *fma, '-fPIC', '-Wall', '-Werror', '-Wno-unknown-pragmas', *extra,
             '-DGSRECON_SHIM', f'-I{SHIM}', '-x', 'c++', '-c', source, '-o', objects[-1]],
            check=True,
        )  # fmt: skip
    library = folder / 'libshim.so'
    subprocess.run(['g++', '-shared', *extra, *objects, '-o', library], check=True)
    return library


class Operators:
    """The entry points with the signatures of the torch operators."""

    def __init__(self, library: Path):
        self._library = ctypes.CDLL(str(library))
        self._library.gsrecon_error.restype = ctypes.c_char_p

    def __getattr__(self, name):
        function = getattr(self._library, f'gsrecon_{name}')
        function.restype = ctypes.c_int64

        def call(*arguments):
            converted = []
            for value in arguments:
                if isinstance(value, torch.Tensor):
                    assert value.is_contiguous() and value.device.type == 'cpu'
                    converted.append(ctypes.c_void_p(value.data_ptr()))
                else:
                    converted.append((ctypes.c_double if isinstance(value, float) else ctypes.c_int64)(value))
            code = function(*converted)
            if code:
                raise RuntimeError(self._library.gsrecon_error(ctypes.c_int64(code)).decode())

        return call


def reversed_order() -> dict[str, str]:
    """The environment in which the shim runs the threads of a block from the last to the first."""
    return {**os.environ, 'SHIM_REVERSED': '1'}
