"""Building and loading the CUDA kernels.

``python -m bids_gsrecon.gpu.cuda_build`` builds them ahead of time, for every architecture the installed nvcc
knows of those below; without that they are built on first use for the device at hand. Either way the library
is kept in a folder (`cache_folder`) under a name that changes with the sources and with torch.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_LOG = logging.getLogger(__name__)
SOURCES = Path(__file__).parent / 'csrc'
# Volta to Blackwell. CUDA 13 dropped 70 (Volta): it is built where an older nvcc is found. The PTX of each
# serves the devices between them and those to come.
ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
OTHERWISE = 'use the cpu backend (or auto, which picks it).'


def find_nvcc() -> str | None:
    """The compiler of $CUDA_HOME, of the path, or of the usual folder."""
    for home in (os.environ.get('CUDA_HOME'), os.environ.get('CUDA_PATH')):
        if home and (Path(home) / 'bin' / 'nvcc').is_file():
            return str(Path(home) / 'bin' / 'nvcc')
    usual = '/usr/local/cuda/bin/nvcc'
    return shutil.which('nvcc') or (usual if os.path.isfile(usual) else None)


@functools.cache
def nvcc_architectures(nvcc: str) -> tuple[int, ...]:
    """Those of `ARCHITECTURES` that this nvcc compiles for."""
    listed = subprocess.run([nvcc, '--list-gpu-code'], capture_output=True, text=True, check=True).stdout
    known = {int(n) for n in re.findall(r'sm_(\d+)\b', listed)}
    return tuple(a for a in ARCHITECTURES if a in known)


def code_options(architectures) -> list[str]:
    """Options of nvcc: machine code and PTX for each."""
    return [f'-gencode=arch=compute_{a},code=[sm_{a},compute_{a}]' for a in architectures]


def kernel_options() -> list[str]:
    """What the kernels are compiled with, architectures aside."""
    return ['-std=c++17', '-O3', '-Xcompiler', '-fPIC']


def torch_options() -> list[str]:
    """Include folders and definitions for code that uses torch's C++ headers."""
    from torch.utils.cpp_extension import include_paths

    folders = [option for folder in include_paths() for option in ('-isystem', folder)]
    return [f'-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}', *folders]


def cache_folder() -> Path:
    """$GSRECON_CUDA_CACHE, else below the user's cache folder."""
    if folder := os.environ.get('GSRECON_CUDA_CACHE'):
        return Path(folder)
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'bids_gsrecon'


def library_path(architectures) -> Path:
    """Where the library for these architectures is, or would be."""
    digest = hashlib.sha256(f'{torch.__version__} {torch.version.cuda}'.encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    name = 'all' if architectures == 'all' else 'sm' + '_'.join(map(str, architectures))
    return cache_folder() / f'splat-{digest.hexdigest()[:16]}-{name}.so'


def device_architectures() -> tuple[int, ...]:
    """Compute capabilities of the visible devices."""
    devices = range(torch.cuda.device_count())
    return tuple(
        sorted({10 * major + minor for major, minor in map(torch.cuda.get_device_capability, devices)})
    )


def built_library() -> Path | None:
    """A library built earlier that serves the devices here."""
    paths = (library_path('all'), library_path(device_architectures()))
    return next((path for path in paths if path.is_file()), None)


def why_not() -> str:
    """One sentence on why there can be no CUDA backend here, and the remedy; empty if there can be one."""
    if torch.version.cuda is None:
        return (
            f'This PyTorch ({torch.__version__}) has no CUDA: install a CUDA build of it '
            f'(pip install torch --index-url https://download.pytorch.org/whl/cu130), or {OTHERWISE}'
        )
    if not torch.cuda.is_available():
        return f'No CUDA device is visible (see nvidia-smi and CUDA_VISIBLE_DEVICES): {OTHERWISE}'
    if built_library() is None and find_nvcc() is None:
        return (
            'The CUDA kernels are not built and there is no nvcc to build them: install the CUDA toolkit '
            f'{torch.version.cuda} (or set CUDA_HOME to it), or {OTHERWISE}'
        )
    return ''


def build(target: Path, architectures) -> None:
    """Compile kernels and binding into one library; RuntimeError in one sentence if that fails."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError(
            f'There is no nvcc: install the CUDA toolkit (or set CUDA_HOME to it), or {OTHERWISE}'
        )
    release = re.search(
        r'release (\d+)',
        subprocess.run([nvcc, '--version'], capture_output=True, text=True, check=True).stdout,
    )
    # torch's own runtime library where it is of the same release, else one of our own within the library.
    same = torch.version.cuda and release and torch.version.cuda.split('.')[0] == release[1]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / target.name
        command = [
            nvcc, '-shared', *kernel_options(), *code_options(architectures), *torch_options(),
            '--threads', os.environ.get('MAX_JOBS', str(min(8, os.cpu_count() or 1))),
            '-cudart', 'shared' if same else 'static',
            *map(str, sorted(SOURCES.glob('*.cu'))), str(SOURCES / 'binding.cpp'),
            f'-L{Path(torch.__file__).parent / "lib"}', '-lc10', '-ltorch_cpu', '-ltorch', '-o', str(partial),
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = (result.stderr + result.stdout).strip().splitlines() or ['nvcc said nothing']
            said = next((line for line in lines if 'error' in line.lower()), lines[-1])
            raise RuntimeError(f'Building the CUDA kernels failed ({said.strip()}): {OTHERWISE}')
        os.replace(partial, target)  # several processes may build at once


def load_operators():
    """The operators ``torch.ops.bids_gsrecon_splat``, built if need be."""
    if reason := why_not():
        raise RuntimeError(reason)
    library = built_library()
    if library is None:
        wanted, known = device_architectures(), nvcc_architectures(find_nvcc())
        # The nearest that is not above the device: its code or its PTX runs there.
        architectures = sorted({max((a for a in known if a <= w), default=known[0]) for w in wanted})
        library = library_path(wanted)
        _LOG.warning(
            'Building the CUDA kernels for %s, once (a minute or so), in %s',
            ', '.join(f'sm_{a}' for a in architectures), library.parent,
        )  # fmt: skip
        try:
            build(library, architectures)
        except OSError as error:
            raise RuntimeError(
                f'The CUDA kernels cannot be built in {library.parent} ({error}): set GSRECON_CUDA_CACHE to a '
                f'writable folder, or {OTHERWISE}'
            ) from error
    torch.ops.load_library(str(library))
    return torch.ops.bids_gsrecon_splat


def main() -> None:
    """Build ahead of time."""
    parser = argparse.ArgumentParser(description='Build the CUDA kernels ahead of time.')
    parser.add_argument('--folder', type=Path, help='instead of $GSRECON_CUDA_CACHE or the user cache')
    args = parser.parse_args()
    if args.folder:
        os.environ['GSRECON_CUDA_CACHE'] = str(args.folder)
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit('There is no nvcc: install the CUDA toolkit, or set CUDA_HOME to it.')
    if torch.version.cuda is None:
        raise SystemExit(f'This PyTorch ({torch.__version__}) has no CUDA: nothing to build.')
    build(library_path('all'), nvcc_architectures(nvcc))
    print(library_path('all'))


if __name__ == '__main__':
    main()
