"""The CUDA sources compile for every architecture without spills; the torch operators; what is said without CUDA."""

import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from bids_gsrecon.gpu import available_backends, backend, cuda, cuda_build, get_backend
from bids_gsrecon.gpu.cuda_build import SOURCES
from tests.gpu import cuda_shim

ROOT = Path(__file__).resolve().parents[2]
needs_nvcc = pytest.mark.skipif(cuda_build.find_nvcc() is None, reason='no nvcc')
needs_gpp = pytest.mark.skipif(bool(cuda_shim.why_not()), reason=cuda_shim.why_not() or 'g++ is here')


@needs_nvcc
@pytest.mark.parametrize('source', sorted(SOURCES.glob('*.cu')), ids=lambda p: p.stem)
def test_kernels_compile_without_spills(source, tmp_path):
    """For all architectures in one go; stack and spills cost local memory, and many registers occupancy."""
    nvcc = cuda_build.find_nvcc()
    architectures = cuda_build.nvcc_architectures(nvcc)
    assert {80, 90} <= set(architectures)
    result = subprocess.run(
        [nvcc, *cuda_build.kernel_options(), *cuda_build.code_options(architectures), '-Werror', 'all-warnings',
         '--resource-usage', '-c', source, '-o', tmp_path / 'kernels.o'],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    compiled = set(re.findall(r"for 'sm_(\d+)'", said))
    assert compiled == {str(a) for a in architectures}
    memory = re.findall(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads', said)
    assert len(memory) >= 2 * len(architectures)
    assert set(memory) == {('0', '0', '0')}, said
    assert max(map(int, re.findall(r'Used (\d+) registers', said))) <= 96


@pytest.fixture(scope='module')
def operators_library(shim_library, tmp_path_factory):
    """The torch operators on this torch, their kernels run by the shim."""
    folder = tmp_path_factory.mktemp('operators')
    lib = Path(torch.__file__).parent / 'lib'
    subprocess.run(
        ['g++', '-std=c++17', '-O1', '-fPIC', '-shared', '-Wall', '-Werror', '-DGSRECON_DEVICE=CPU',
         *cuda_build.torch_options(), SOURCES / 'binding.cpp', shim_library, f'-Wl,-rpath,{shim_library.parent}',
         f'-L{lib}', '-lc10', '-ltorch_cpu', '-ltorch', '-o', folder / 'operators.so'],
        check=True,
    )  # fmt: skip
    return folder / 'operators.so'


@needs_gpp
def test_torch_operators(operators_library, shim_library):
    """Every operator as the backend calls it: same bits as without torch between, true schemas, fakes."""
    script = """
import sys, torch
from bids_gsrecon.gpu.cuda import CudaBackend
from tests.gpu import cuda_shim, fields
from tests.gpu.test_splat2d import some_gaussians
torch.ops.load_library(sys.argv[1])
operators = torch.ops.bids_gsrecon_splat
checked = set()

class Checked:
    def __getattr__(self, name):
        def call(*arguments):
            operator = getattr(operators, name).default
            if name not in checked:
                # On copies: a check runs the operator several times.
                copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
                torch.library.opcheck(operator, copies, test_utils=('test_schema', 'test_faketensor'))
                checked.add(name)
            operator(*arguments)
        return call

shape = (40, 38, 36)
field = fields.concatenated(
    fields.random_field(30, shape, n_channels=5, seed=36), fields.random_field(2, shape, n_channels=5, scale=20.0)
)
grad_sums = torch.randn((6, *shape), generator=torch.Generator().manual_seed(1))
results = []
for these in (Checked(), cuda_shim.Operators(sys.argv[2])):
    backend = CudaBackend(these, 'cpu')
    plan = backend.plan(*field[:3], shape)
    moving = torch.tensor(some_gaussians())
    frames = backend.splat2d(moving, (23, 31))
    flat = frames, backend.splat2d_gradient(moving, frames)
    results.append((plan.forward(field[3]), *plan.backward(field[3], grad_sums), *flat))
for a, b in zip(*results):
    assert torch.equal(a, b)
names = {s.name.split('::')[1] for s in torch._C._jit_get_all_schemas() if 'bids_gsrecon_splat' in s.name}
assert checked == names, names - checked
try:
    operators.sort_count(torch.zeros(4, 2, dtype=torch.int32).T, torch.zeros(256, dtype=torch.int32), 8, 0, 0)
except RuntimeError as error:
    assert 'contiguous' in str(error)
else:
    raise AssertionError('a strided tensor was taken')
try:
    operators.sort_count(torch.zeros(4), torch.zeros(256), 0, 0, 0)
except RuntimeError as error:
    assert 'out of range' in str(error)
else:
    raise AssertionError('a wrong size was taken')
"""
    subprocess.run([sys.executable, '-c', script, operators_library, shim_library], check=True, cwd=ROOT)


@needs_nvcc
def test_build_of_the_library(tmp_path):
    """What is built on first use: kernels and operators in one library that torch can load."""
    library = tmp_path / 'folder' / 'splat.so'
    cuda_build.build(library, (90,))
    assert [p.name for p in library.parent.iterdir()] == ['splat.so']
    script = (
        'import sys, torch; torch.ops.load_library(sys.argv[1]); print(torch.ops.bids_gsrecon_splat.forward)'
    )
    subprocess.run([sys.executable, '-c', script, library], check=True)


@needs_nvcc
def test_failed_build_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / 'csrc').mkdir()
    (tmp_path / 'csrc' / 'forward.cu').write_text('int main() { return nonsense; }\n')
    (tmp_path / 'csrc' / 'binding.cpp').write_text('')
    monkeypatch.setattr(cuda_build, 'SOURCES', tmp_path / 'csrc')
    with pytest.raises(
        RuntimeError, match=r'Building the CUDA kernels failed \(.*nonsense.*cpu backend'
    ) as error:
        cuda_build.build(tmp_path / 'out' / 'splat.so', (90,))
    assert '\n' not in str(error.value)
    assert not list((tmp_path / 'out').iterdir())


def test_name_of_the_library_follows_the_sources(tmp_path, monkeypatch):
    before = cuda_build.library_path('all')
    shutil.copytree(SOURCES, tmp_path / 'csrc')
    monkeypatch.setattr(cuda_build, 'SOURCES', tmp_path / 'csrc')
    assert cuda_build.library_path('all') == before
    assert cuda_build.library_path((80, 90)).name.endswith('-sm80_90.so')
    with (tmp_path / 'csrc' / 'forward.cu').open('a') as file:
        file.write('// another line\n')
    assert cuda_build.library_path('all') != before
    monkeypatch.setenv('GSRECON_CUDA_CACHE', str(tmp_path))
    assert cuda_build.library_path('all').parent == tmp_path


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """A machine with a CUDA torch, a device and nvcc, as far as anyone asks."""
    monkeypatch.setattr(backend, '_has_driver', lambda: True)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(cuda_build, 'device_architectures', lambda: (90,))
    monkeypatch.setattr(cuda_build, 'find_nvcc', lambda: '/no/such/nvcc')
    monkeypatch.setenv('GSRECON_CUDA_CACHE', str(tmp_path))
    monkeypatch.setattr(cuda, '_failure', '')
    cuda._checked_backend.cache_clear()
    yield monkeypatch
    cuda._checked_backend.cache_clear()


@pytest.mark.parametrize(
    ('missing', 'words'),
    [
        ('torch', 'install a CUDA build'),
        ('device', 'No CUDA device is visible'),
        ('nvcc', 'CUDA toolkit 13.0'),
    ],
)
def test_each_reason_has_its_remedy(pretend, missing, words):
    assert cuda_build.why_not() == ''
    assert available_backends() == ('reference', 'cpu', 'cuda')
    if missing == 'torch':
        pretend.setattr(torch.version, 'cuda', None)
    elif missing == 'device':
        pretend.setattr(torch.cuda, 'is_available', lambda: False)
    else:
        pretend.setattr(cuda_build, 'find_nvcc', lambda: None)
    assert available_backends() == ('reference', 'cpu')
    with pytest.raises(RuntimeError, match=words) as error:
        get_backend('cuda')
    assert 'use the cpu backend' in str(error.value) and '\n' not in str(error.value)
    assert get_backend('auto').name == 'cpu'  # and no warning: nothing went wrong


def test_a_library_built_earlier_needs_no_compiler(pretend):
    pretend.setattr(cuda_build, 'find_nvcc', lambda: None)
    path = cuda_build.library_path('all')
    path.write_bytes(b'')
    assert cuda_build.why_not() == '' and cuda_build.built_library() == path


def test_auto_falls_back_with_one_warning(pretend):
    """Here nvcc is a name that leads nowhere; the second call neither tries nor warns again."""
    with pytest.warns(RuntimeWarning, match='Using the cpu backend'):
        assert get_backend('auto').name == 'cpu'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert get_backend('auto').name == 'cpu'
    assert available_backends() == ('reference', 'cpu')
    with pytest.raises(RuntimeError, match='use the cpu backend'):
        get_backend('cuda')


def test_without_a_driver_nobody_loads_torch(pretend):
    pretend.setattr(backend, '_has_driver', lambda: False)
    assert get_backend('auto').name == 'cpu'
    code = (
        'import sys\n'
        'from bids_gsrecon.gpu import backend, get_backend\n'
        'from bids_gsrecon.imaging import render\n'
        'from bids_gsrecon.recon.svr import method\n'
        'backend._has_driver = lambda: False\n'
        "print(get_backend('auto').name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['cpu', 'False']


def test_sources_are_packaged(tmp_path):
    """An sdist, and with it every wheel, carries what the first use on a GPU machine compiles."""
    pytest.importorskip('setuptools')
    source = tmp_path / 'source'
    source.mkdir()
    for item in ('bids_gsrecon', 'gpu', 'workflows', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        path = ROOT / item
        if path.is_dir():
            shutil.copytree(path, source / item, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(path, source / item)
    for kind in ('sdist', 'wheel'):
        subprocess.run(
            [sys.executable, '-c',
             f'from setuptools import build_meta; import sys; build_meta.build_{kind}(sys.argv[1])', tmp_path],
            cwd=source, check=True, capture_output=True,
        )  # fmt: skip
    (sdist,), (wheel,) = tmp_path.glob('*.tar.gz'), tmp_path.glob('*.whl')
    with tarfile.open(sdist) as tar, zipfile.ZipFile(wheel) as archive:
        listings = tar.getnames(), archive.namelist()
    for names in listings:
        assert {Path(n).name for n in names if '/csrc/' in n} == {p.name for p in SOURCES.iterdir()}
