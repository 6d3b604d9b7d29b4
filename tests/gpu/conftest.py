"""The CUDA kernels through their CPU shim, compiled once a session."""

import pytest

from bids_gsrecon.gpu import cuda_build, get_backend
from bids_gsrecon.gpu.cuda import CudaBackend
from tests.gpu import cuda_shim


@pytest.fixture(scope='session')
def shim_library(tmp_path_factory):
    """The kernels' sources, compiled by g++."""
    if reason := cuda_shim.why_not():
        pytest.skip(f'the CUDA kernels cannot be run on the CPU: {reason}')
    return cuda_shim.build(tmp_path_factory.mktemp('shim'))


@pytest.fixture(scope='session')
def shim_backend(shim_library):
    """The CUDA backend as it is, its kernels run on the CPU."""
    return CudaBackend(cuda_shim.Operators(shim_library), 'cpu')


@pytest.fixture(
    params=['reference', 'cpu', 'cuda kernels on the CPU', pytest.param('cuda', marks=pytest.mark.cuda)]
)
def backend(request):
    """Every backend, the CUDA one also where there is no such device."""
    if request.param == 'cuda kernels on the CPU':
        return request.getfixturevalue('shim_backend')
    if request.param == 'cuda' and (reason := cuda_build.why_not()):
        pytest.skip(reason)
    return get_backend(request.param)
