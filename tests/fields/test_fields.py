import numpy as np
import pytest
import torch

from bids_gsrecon.errors import InputError
from bids_gsrecon.fields.densify import isotropic_gaussians, pruned, residual_maxima
from bids_gsrecon.fields.gaussians import GaussianField, covariances_from, rotation_matrices
from bids_gsrecon.fields.index_space import to_index_space
from bids_gsrecon.fields.initialize import sample_by_detail
from bids_gsrecon.fields.io import load_field, save_field
from bids_gsrecon.fields.torch_geometry import index_covariances


def random_field(n=12, seed=0, composition='normalized', channels=('a', 'b')):
    rng = np.random.default_rng(seed)
    return GaussianField(
        rng.uniform(-20, 20, (n, 3)),
        rng.uniform(-0.3, 0.8, (n, 3)),
        rng.normal(size=(n, 4)) + [2, 0, 0, 0],
        rng.normal(size=n) * 0.1,
        rng.normal(size=(n, len(channels))),
        composition,
        channels,
        {'note': 'test'},
    )


def test_covariances_have_the_scales_as_their_spectrum():
    field = random_field()
    six = field.covariances_mm2()
    full = six[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvalsh(full)), np.sort(np.exp(2 * field.log_scales.astype(float))), rtol=1e-5
    )


def test_rotations_are_rotations():
    r = rotation_matrices(random_field().quaternions.astype(float))
    np.testing.assert_allclose(r @ r.transpose(0, 2, 1), np.broadcast_to(np.eye(3), r.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(r), 1)


def test_index_covariances_gradients_match_finite_differences():
    torch.manual_seed(0)
    scales = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    quaternions = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    linear = np.random.default_rng(0).normal(size=(3, 3))
    assert torch.autograd.gradcheck(lambda s, q: index_covariances(s, q, linear), (scales, quaternions))


def test_index_space_agrees_with_the_world_covariances():
    field = random_field()
    affine = np.array([[0.8, 0.1, 0, 3], [-0.1, 0.8, 0.2, -4], [0, -0.2, 1.5, 5], [0, 0, 0, 1]])
    means, six = to_index_space(field, affine)
    np.testing.assert_allclose(means, field.means_mm @ affine[:3, :3].T + affine[:3, 3])
    world = covariances_from(field.log_scales.astype(float), field.quaternions.astype(float))
    world = world[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    expected = affine[:3, :3] @ world @ affine[:3, :3].T
    np.testing.assert_allclose(six, expected[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]], rtol=1e-6)


def test_moving_a_field_moves_centres_and_shapes_alike():
    field = random_field()
    angle = 0.4
    rigid = np.eye(4)
    rigid[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    rigid[:3, 3] = 1, 2, 3
    moved = field.moved(rigid)
    _, expected = to_index_space(field, rigid)
    np.testing.assert_allclose(moved.covariances_mm2(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved.means_mm, field.means_mm @ rigid[:3, :3].T + rigid[:3, 3])


def test_file_round_trip(tmp_path):
    layers = [random_field(), random_field(0, channels=('a',)), random_field(3, 1, 'sum', ('a',))]
    path = save_field(tmp_path / 'x_field.h5', layers, {'seed': 3})
    back, metadata = load_field(path)
    assert metadata == {'seed': 3}
    assert [p.name for p in tmp_path.iterdir()] == ['x_field.h5']
    for a, b in zip(layers, back):
        assert (a.composition, a.channels, a.metadata) == (b.composition, b.channels, b.metadata)
        for name in ('means_mm', 'log_scales', 'quaternions', 'log_weights', 'amplitudes'):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize('damage', ['text', 'truncated', 'other'])
def test_a_file_that_is_no_field_is_named(tmp_path, damage):
    import h5py

    path = save_field(tmp_path / 'x_field.h5', [random_field()])
    if damage == 'text':
        path.write_text('hello')
    elif damage == 'truncated':
        path.write_bytes(path.read_bytes()[:600])
    else:
        path.unlink()
        with h5py.File(path, 'w') as file:
            file['x'] = 1
    with pytest.raises(InputError, match=r'x_field\.h5'):
        load_field(path)


def test_arrays_must_agree():
    with pytest.raises(ValueError, match='agree'):
        GaussianField(np.zeros((2, 3)), np.zeros((3, 3)), np.zeros((2, 4)), np.zeros(2), np.zeros((2, 1)))


def test_sampling_is_denser_at_edges_and_repeats():
    image = np.zeros((24, 24, 24), np.float32)
    image[12:] = 1
    region = np.ones(image.shape, bool)
    first, second = (sample_by_detail(image, np.eye(4), region, 3000, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.means_mm, second.means_mm)
    near = np.abs(first.means_mm[:, 0] - 11.5) < 2
    assert near.sum() / len(first) > 2.5 * 4 / 24
    assert 0.9 * 3000 <= len(first) <= 3000
    assert np.exp(first.log_scales[near]).mean() < np.exp(first.log_scales[~near]).mean()


def test_residual_maxima_are_peaks_inside_the_region():
    residual = np.zeros((9, 9, 9), np.float32)
    residual[2, 2, 2], residual[6, 6, 6], residual[6, 6, 5], residual[4, 1, 1] = -3, 2, 1.5, 5
    region = np.ones(residual.shape, bool)
    region[4, 1, 1] = False
    assert residual_maxima(residual, region, 10).tolist() == [[2, 2, 2], [6, 6, 6]]
    assert residual_maxima(residual, region, 1).tolist() == [[2, 2, 2]]
    assert len(residual_maxima(residual, region, 10, threshold=4)) == 0


def test_pruning_keeps_what_contributes():
    field = isotropic_gaussians(np.zeros((3, 3)), 1.0, [[1], [2], [3]], ('a',))
    assert pruned(field, [0.1, 0.5, 0.9], 0.5).amplitudes.ravel().tolist() == [2, 3]
