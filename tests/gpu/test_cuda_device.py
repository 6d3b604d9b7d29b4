"""What only a CUDA device can show: devices, streams, memory, repeatability, the special function unit."""

import pytest
import torch

from bids_gsrecon.gpu import cuda_build, get_backend, rasterize
from tests.gpu import fields

REASON = cuda_build.why_not()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(REASON), reason=REASON or 'there is one')]
SHAPE = (60, 55, 50)


@pytest.fixture(scope='module')
def backend():
    return get_backend('cuda')


def everything(backend, field, grad_sums):
    plan = backend.plan(*field[:3], SHAPE)
    return (plan.forward(field[3]), *plan.backward(field[3], grad_sums))


@pytest.fixture(scope='module')
def field():
    return fields.concatenated(
        fields.random_field(4000, SHAPE, n_channels=2, seed=51),
        fields.random_field(5, SHAPE, n_channels=2, scale=12.0, seed=52),
    )


@pytest.fixture(scope='module')
def grad_sums():
    return torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(53))


def test_results_are_where_the_inputs_are(backend, field, grad_sums):
    here = everything(backend, field, grad_sums)
    there = everything(backend, tuple(t.cuda() for t in field), grad_sums.cuda())
    for a, b in zip(here, there):
        assert a.device.type == 'cpu' and b.device.type == 'cuda'
        assert torch.equal(a, b.cpu())
    leaves = [t.cuda().requires_grad_() for t in field]
    image = rasterize(*leaves, SHAPE, backend='auto')
    image.sum().backward()
    assert image.is_cuda and all(t.grad.is_cuda for t in leaves)


def test_same_bits_every_time(backend, field, grad_sums):
    first = everything(backend, field, grad_sums)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(backend, field, grad_sums)))


def test_agrees_with_the_same_sources_on_the_cpu(backend, shim_backend, field, grad_sums):
    """The device's own exp2 and its order of work, against the shim: rounding is all that differs."""
    device, host = (everything(b, field, grad_sums) for b in (backend, shim_backend))
    assert fields.relative_error(device[0], host[0].double()) < 2e-6
    for a, b in zip(device[1:], host[1:]):
        assert fields.rms_error(a, b.double()) < 1e-3  # a voxel at the cut may fall on either side


def test_current_stream_is_used(backend, field, grad_sums):
    """Work queued behind a long one on a side stream must wait for it, and so must its inputs."""
    inputs = tuple(t.cuda() for t in field)
    expected = everything(backend, inputs, grad_sums.cuda())
    late = [torch.zeros_like(t) for t in inputs[3:]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        late[0].copy_(inputs[3])
        found = everything(backend, (*inputs[:3], late[0]), grad_sums.cuda())
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, found))


def test_memory_is_torchs_and_given_back(backend, field, grad_sums):
    inputs, source = tuple(t.cuda() for t in field), grad_sums.cuda()
    everything(backend, inputs, source)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    plan = backend.plan(*inputs[:3], SHAPE)
    assert torch.cuda.memory_allocated() > before
    del plan
    assert torch.cuda.memory_allocated() == before


def test_too_large_a_volume_is_one_sentence(backend):
    field = fields.random_field(5, (9, 9, 9))
    side = 4000  # half a terabyte of sums
    plan = backend.plan(*field[:3], (side, side, side))
    with pytest.raises(RuntimeError, match='too little free memory for sums'):
        plan.forward(field[3])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='one CUDA device or none')
def test_a_device_that_is_not_the_current_one(backend, field, grad_sums):
    expected = everything(backend, field, grad_sums)
    found = everything(backend, tuple(t.to('cuda:1') for t in field), grad_sums.to('cuda:1'))
    assert found[0].device.index == 1
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, found))
