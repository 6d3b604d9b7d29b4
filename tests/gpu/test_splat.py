"""Every backend against float64: values, gradients, invariances, and the cases that break kernels."""

import pytest
import torch

from bids_gsrecon.gpu import available_backends, compose, get_backend, rasterize, splat_sums
from bids_gsrecon.gpu.reference import reference_sums
from tests.gpu import fields

TOLERANCE = 1e-5
HARD = fields.hard_cases()


def truth_and_gradients(field, shape, grad_sums, cutoff=3.0):
    """float64 sums and gradients by autograd."""
    leaves = [t.double().requires_grad_() for t in field]
    if len(leaves[0]) == 0:
        return torch.zeros(grad_sums.shape).double(), leaves
    sums = reference_sums(*leaves, shape, cutoff)
    gradients = torch.autograd.grad(sums, leaves, grad_sums.double(), materialize_grads=True)
    return sums.detach(), gradients


def random_like_sums(field, shape, cutoff=3.0, seed=1):
    """Random gradients, zero in voxels so close to a cut that float32 may see them on its other side.

    There the weight is continuous but its gradient jumps: one such voxel would hide all other errors.
    """
    generator = torch.Generator().manual_seed(seed)
    grad_sums = torch.randn((1 + field[3].shape[1], *shape), generator=generator)
    at_cut = fields.voxels_at_cut(field, shape, cutoff)
    assert at_cut.sum() <= 0.1 * at_cut.numel() + 1
    return grad_sums * ~at_cut


def check(backend, field, shape, cutoff=3.0, tolerance=TOLERANCE):
    """Values and gradients of a backend against float64; returns the float64 sums."""
    grad_sums = random_like_sums(field, shape, cutoff)
    sums, gradients = truth_and_gradients(field, shape, grad_sums, cutoff)
    if backend.name == 'reference':  # it works in the precision of its inputs
        field = fields.as_double(field)
    computed = backend.forward(*field, shape, cutoff)
    assert computed.shape == sums.shape
    assert fields.relative_error(computed, sums) < tolerance
    for name, value, truth in zip(
        fields.NAMES, backend.backward(*field, shape, cutoff, grad_sums), gradients
    ):
        assert value.shape == truth.shape, name
        assert torch.isfinite(value).all(), name
        assert fields.rms_error(value, truth) < tolerance, name
    check_products(backend, field, shape, cutoff, tolerance)
    return sums


def check_products(backend, field, shape, cutoff, tolerance):
    """One number per Gaussian there and back, against float64."""
    generator = torch.Generator().manual_seed(2)
    values, image = torch.randn(len(field[0]), generator=generator), torch.randn(shape, generator=generator)
    plan = backend.plan(*field[:3], shape, cutoff)
    weighted = (*fields.as_double(field)[:3], values[:, None].double())
    truth = reference_sums(*weighted, shape, cutoff)[1] if len(values) else torch.zeros(shape).double()
    scattered = plan.scatter(values)
    assert scattered.shape == truth.shape
    assert fields.relative_error(scattered, truth) < tolerance
    log_weights = weighted[2].requires_grad_()
    (collected,) = (
        torch.autograd.grad(
            (reference_sums(*weighted[:2], log_weights, weighted[3], shape, cutoff)[0] * image).sum(),
            log_weights,
        )
        if len(values)
        else (values,)
    )
    gathered = plan.gather(image)
    assert gathered.shape == collected.shape
    assert fields.rms_error(gathered, collected) < tolerance
    there, back = (
        torch.vdot(scattered.double().ravel(), image.double().ravel()),
        values.double() @ gathered.double(),
    )
    size = scattered.double().norm() * image.double().norm()
    assert abs(there - back) < tolerance * max(float(size), 1e-30)


@pytest.mark.parametrize('n_channels', [0, 1, 2, 5])
def test_values_and_gradients(backend, n_channels):
    shape = (26, 21, 18)
    sums = check(backend, fields.random_field(120, shape, n_channels=n_channels, seed=n_channels), shape)
    assert sums[0].max() > 1  # Gaussians overlap: the test is about sums


@pytest.mark.parametrize('cutoff', [2.5, 3.0, 4.0])
def test_cutoff(backend, cutoff):
    shape = (20, 19, 18)
    field = fields.random_field(40, shape, seed=3)
    sums = check(backend, field, shape, cutoff)
    assert not torch.allclose(sums, reference_sums(*fields.as_double(field), shape, cutoff * 1.1), rtol=1e-3)


@pytest.mark.parametrize('scale', [0.3, 3.0, 6.0])
def test_narrow_and_wide_gaussians(backend, scale):
    shape = (40, 38, 36)
    check(backend, fields.random_field(20, shape, scale=scale, seed=4), shape)


@pytest.mark.parametrize('name', HARD)
def test_hard_cases(backend, name):
    field, shape = HARD[name]
    check(backend, field, shape)


def test_hard_cases_do_what_they_are_for():
    """Guards the list itself: each kind of walk and schedule must occur in it."""
    from bids_gsrecon.gpu._records import make_records

    kinds = {'box': 0, 'row': 0, 'giant': 0, 'second class': 0, 'culled': 0}
    for field, shape in HARD.values():
        means, covariances, log_weights, _ = (t.numpy() for t in field)
        records = make_records(means, covariances, log_weights, shape, 3.0)
        extent = (records.box[:, 3::2] - records.box[:, 2::2]).max(1, initial=0) + 1
        giants = records.schedule.giants[1] - records.schedule.giants[0]
        kinds['giant'] += giants
        kinds['row'] += len(records.wide) - giants
        kinds['box'] += len(records.narrow) - len(records.wide)
        kinds['second class'] += int(((extent > 16) & (extent <= 32)).sum())
        kinds['culled'] += len(means) - records.schedule.n_used
    assert all(kinds.values()), kinds


def test_finite_differences(backend):
    """Directional derivatives of the float64 reference, which is continuous at the cut."""
    shape = (14, 13, 12)
    field = fields.random_field(25, shape, seed=11)
    grad_sums = random_like_sums(field, shape)
    grads = backend.backward(*field, shape, 3.0, grad_sums)
    generator = torch.Generator().manual_seed(0)

    def loss(values):
        return float((reference_sums(*values, shape) * grad_sums.double()).sum())

    for i, name in enumerate(fields.NAMES):
        # Small steps, so that few voxels cross the cut, where the second derivative is not continuous.
        direction = torch.randn(field[i].shape, generator=generator).double()
        moved = []
        for sign in (1, -1):
            values = list(fields.as_double(field))
            values[i] = values[i] + sign * 1e-6 * direction
            moved.append(loss(values))
        numeric = (moved[0] - moved[1]) / 2e-6
        analytic = float((grads[i].double() * direction).sum())
        norm = float(torch.linalg.vector_norm(grads[i].double()) * torch.linalg.vector_norm(direction))
        assert abs(numeric - analytic) < 1e-5 * norm, name


def test_off_diagonal_covariance_is_one_variable(backend):
    shape = (12, 12, 12)
    field = fields.single((5.6, 6.2, 5.3), (3.0, 0.7, -0.4, 2.0, 0.3, 2.5))
    grad_sums = random_like_sums(field, shape)
    grad = backend.backward(*field, shape, 3.0, grad_sums).covariances[0].double()
    step = 1e-5
    for k in range(6):
        values = []
        for sign in (1, -1):
            moved = list(fields.as_double(field))
            moved[1] = moved[1].clone()
            moved[1][0, k] += sign * step
            values.append(float((reference_sums(*moved, shape) * grad_sums.double()).sum()))
        assert abs((values[0] - values[1]) / (2 * step) - float(grad[k])) < 1e-4 * float(grad.abs().max())


def test_adjoint_in_amplitudes(backend):
    """<S a, r> = <a, S^T r>: the amplitude gradient is the adjoint of a linear map."""
    shape = (22, 17, 15)
    means, covariances, log_weights, _ = fields.random_field(70, shape, seed=12)
    a = torch.randn((70, 3), generator=torch.Generator().manual_seed(3))
    r = random_like_sums((means, covariances, log_weights, a), shape)
    r[0] = 0
    left = (backend.forward(means, covariances, log_weights, a, shape).double() * r.double()).sum()
    adjoint = backend.backward(means, covariances, log_weights, a, shape, 3.0, r).amplitudes
    right = (adjoint.double() * a.double()).sum()
    norm = torch.linalg.vector_norm(adjoint.double()) * torch.linalg.vector_norm(a.double())
    assert abs(float(left - right)) < 1e-6 * float(norm)


def test_permuting_gaussians(backend):
    shape = (22, 17, 15)
    field = fields.random_field(90, shape, seed=13)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(4))
    grad_sums = random_like_sums(field, shape)
    permuted = tuple(t[order] for t in field)
    assert (
        fields.relative_error(backend.forward(*permuted, shape), backend.forward(*field, shape).double())
        < 1e-6
    )
    here = backend.backward(*field, shape, 3.0, grad_sums)
    there = backend.backward(*permuted, shape, 3.0, grad_sums)
    for a, b in zip(here, there):
        assert fields.rms_error(b, a[order].double()) < 1e-6


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_flipping_an_axis(backend, axis):
    shape = (22, 17, 15)
    means, covariances, log_weights, amplitudes = fields.random_field(60, shape, seed=14)
    flipped_means, flipped_covariances = means.clone(), covariances.clone()
    flipped_means[:, axis] = shape[axis] - 1 - means[:, axis]
    for k in {0: (1, 2), 1: (1, 4), 2: (2, 4)}[axis]:
        flipped_covariances[:, k] *= -1
    one = backend.forward(means, covariances, log_weights, amplitudes, shape)
    other = backend.forward(flipped_means, flipped_covariances, log_weights, amplitudes, shape)
    assert fields.relative_error(other.flip(axis + 1), one.double()) < TOLERANCE


@pytest.mark.parametrize('axes', [(1, 0, 2), (2, 1, 0), (2, 0, 1)])
def test_transposing_axes(backend, axes):
    shape = (22, 17, 15)
    means, covariances, log_weights, amplitudes = fields.random_field(60, shape, seed=15)
    index = torch.tensor([[0, 1, 2], [1, 3, 4], [2, 4, 5]])
    six = [int(index[axes[r], axes[c]]) for r, c in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
    one = backend.forward(means, covariances, log_weights, amplitudes, shape)
    other = backend.forward(
        means[:, axes], covariances[:, six], log_weights, amplitudes, tuple(shape[a] for a in axes)
    )
    assert fields.relative_error(other, one.permute(0, *[1 + a for a in axes]).double()) < TOLERANCE


@pytest.mark.parametrize('composition', ['sum', 'normalized'])
def test_images_and_their_gradients(backend, composition):
    shape = (18, 17, 13)
    field = fields.random_field(50, shape, n_channels=2, seed=16)
    weights = torch.randn((2, *shape), generator=torch.Generator().manual_seed(5))
    results = []
    for dtype, engine in ((torch.float64, 'reference'), (torch.float32, backend)):
        leaves = [t.to(dtype).requires_grad_() for t in field]
        # A large eps: where S0 is tiny, 1 / (S0 + eps) would amplify float32's rounding.
        image = rasterize(*leaves, shape, composition=composition, eps=1e-2, backend=engine)
        loss = (image * weights.to(dtype)).sum()
        results.append((image.detach(), torch.autograd.grad(loss, leaves)))
    (truth, true_grads), (image, grads) = results
    assert image.shape == (2, *shape)
    assert fields.relative_error(image, truth) < TOLERANCE
    for value, expected in zip(grads, true_grads):
        assert fields.rms_error(value, expected) < TOLERANCE


@pytest.mark.parametrize('shape', [(7, 5, 6), (9, 1, 1), (1, 4, 3)])
@pytest.mark.parametrize('order', ['x fastest', 'z fastest'])
@pytest.mark.parametrize('n_channels', [1, 3])
def test_fused_composition(shape, order, n_channels):
    """float32 sums with x fastest take a fused path; float64 is composed by torch itself."""
    generator = torch.Generator().manual_seed(6)
    nx, ny, nz = shape
    sums = torch.rand((1 + n_channels, nz, ny, nx), generator=generator).permute(0, 3, 2, 1)
    sums[0, 0, 0, 0] = 0
    weights = torch.randn((n_channels, *shape), generator=generator)
    if order == 'x fastest':
        weights = weights.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    results = []
    for leaf in (sums.clone(), sums.double()):
        leaf.requires_grad_()
        image = compose(leaf, 'normalized', 1e-3)
        results.append((image.detach(), *torch.autograd.grad((image * weights.to(leaf.dtype)).sum(), leaf)))
    for value, truth in zip(*results):
        assert value.shape == truth.shape
        assert fields.relative_error(value, truth) < 1e-6


def test_composition_without_channels():
    assert compose(torch.ones(1, 3, 4, 5).permute(0, 3, 2, 1), 'normalized').shape == (0, 5, 4, 3)


def test_normalized_is_zero_where_nothing_reaches_and_the_mean_elsewhere():
    field = fields.single((4.0, 4.0, 4.0), (1.0, 0, 0, 1.0, 0, 1.0), amplitude=7.0)
    image = rasterize(*field, (20, 9, 9), composition='normalized', backend='cpu')[0]
    assert float(image[4, 4, 4]) == pytest.approx(7.0, rel=1e-5)
    assert float(image[15, 4, 4]) == 0.0
    with pytest.raises(ValueError, match='unknown composition'):
        compose(torch.zeros(2, 1, 1, 1), 'mean')


def test_float64_geometry_keeps_its_precision():
    """A shift of 1e-6 voxels at index 200 is below float32's spacing there."""
    field = [t.double() for t in fields.single((200.0, 3.0, 3.0), (1.0, 0, 0, 1.0, 0, 1.0))]
    field[0][0, 0] += 1e-6
    leaves = [t.clone().requires_grad_() for t in field]
    sums = splat_sums(*leaves, (210, 7, 7), backend='cpu')
    assert sums.dtype == torch.float32
    left, right = sums[0, 199, 3, 3].item(), sums[0, 201, 3, 3].item()
    assert right > left
    sums.sum().backward()
    assert all(t.grad.dtype == torch.float64 for t in leaves)


@pytest.mark.parametrize('layout', ['C', 'F', 'expanded', 'double'])
def test_gradients_of_any_memory_layout(layout):
    shape = (19, 17, 40)
    field = fields.random_field(40, shape, seed=17)
    grad_sums = random_like_sums(field, shape)
    if layout == 'expanded':
        grad_sums = torch.ones(()).expand(2, *shape)
    _, truth = truth_and_gradients(field, shape, grad_sums)
    if layout == 'F':
        grad_sums = grad_sums.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    elif layout == 'double':
        grad_sums = grad_sums.double()
    for value, expected in zip(get_backend('cpu').backward(*field, shape, 3.0, grad_sums), truth):
        assert fields.rms_error(value, expected) < TOLERANCE


@pytest.mark.parametrize('name', ['means', 'covariances', 'log_weights'])
def test_bad_geometry_is_refused(backend, name):
    field = list(fields.random_field(5, (9, 9, 9), seed=18))
    field[fields.NAMES.index(name)].view(-1)[-1] = float('nan')
    with pytest.raises(ValueError, match='not finite'):
        backend.forward(*field, (9, 9, 9))
    field = list(fields.random_field(5, (9, 9, 9), seed=18))
    field[1][2] = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match='positive definite'):
        backend.forward(*field, (9, 9, 9))


def test_bad_shapes_are_refused(backend):
    means, covariances, log_weights, amplitudes = fields.random_field(5, (9, 9, 9))
    with pytest.raises(ValueError, match='means'):
        backend.forward(means[:, :2], covariances, log_weights, amplitudes, (9, 9, 9))
    with pytest.raises(ValueError, match='covariances'):
        backend.forward(means, covariances[:4], log_weights, amplitudes, (9, 9, 9))
    with pytest.raises(ValueError, match='amplitudes'):
        backend.forward(means, covariances, log_weights, amplitudes[:, 0], (9, 9, 9))
    with pytest.raises(ValueError, match='three positive sizes'):
        backend.forward(means, covariances, log_weights, amplitudes, (9, 0, 9))
    with pytest.raises(ValueError, match='cutoff'):
        backend.forward(means, covariances, log_weights, amplitudes, (9, 9, 9), -1.0)
    with pytest.raises(ValueError, match='grad_sums'):
        backend.backward(means, covariances, log_weights, amplitudes, (9, 9, 9), 3.0, torch.zeros(1, 9, 9, 9))


def test_backends_by_name():
    assert get_backend('auto').name == available_backends()[-1]
    assert get_backend('cpu', n_threads=1).name == 'cpu'
    with pytest.raises(ValueError, match='unknown backend'):
        get_backend('tpu')
    if 'cuda' not in available_backends():
        with pytest.raises(RuntimeError, match='cpu backend'):
            get_backend('cuda')
