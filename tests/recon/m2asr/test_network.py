"""Every module of the network against its equation, and the network as a whole."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bids_gsrecon.recon.m2asr import interpolant
from bids_gsrecon.recon.m2asr.attention import DualAttention, ScaleAttention, WindowAttention, neighbours
from bids_gsrecon.recon.m2asr.config import SIZES, NetworkConfig
from bids_gsrecon.recon.m2asr.encoder import ChannelAttention, Encoder, EncoderBlock
from bids_gsrecon.recon.m2asr.fusion import Fusion
from bids_gsrecon.recon.m2asr.gaussians import KEPT, EdgeAttention, GaussianHeads, sobel
from bids_gsrecon.recon.m2asr.layers import from_windows, shifted, to_windows
from bids_gsrecon.recon.m2asr.losses import frequency_loss
from bids_gsrecon.recon.m2asr.network import Network, n_parameters
from bids_gsrecon.recon.m2asr.transformer import CrossAttention, Layer, log_spectrum

SMALL = NetworkConfig(
    features=8, encoder_blocks=2, channels=12, heads=3, window=4, cross_layers=2, stages=1, stage_layers=2,
    head_hidden=(12,),
)  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def maps(*shape):
    return torch.randn(*shape)


def test_published_number_of_parameters():
    network = Network(SIZES['paper'].network)
    assert n_parameters(network) == 17_497_413
    assert n_parameters(network.heads) == 1_082_177


def test_sizes_grow_from_less_than_a_million():
    counts = [n_parameters(Network(size.network)) for size in SIZES.values()]
    assert next(iter(SIZES)) == 'tiny' and list(SIZES)[-1] == 'paper'
    assert counts[0] < 1e6 and counts == sorted(counts)


def test_channel_attention():
    g, module = maps(2, 8, 5, 6), ChannelAttention(8)
    first, second = module.weigh[0], module.weigh[2]
    mean = g.mean((2, 3))
    expected = torch.sigmoid(
        F.relu(mean @ first.weight[..., 0, 0].T + first.bias) @ second.weight[..., 0, 0].T + second.bias
    )
    torch.testing.assert_close(module(g)[..., 0, 0], expected)


def test_encoder_block():
    x, g, block = maps(2, 8, 6, 6), maps(2, 8, 6, 6), EncoderBlock(8)
    with torch.no_grad():
        block.a.fill_(0.3), block.b.fill_(-0.7)
    new_x, new_g = block(x, g)
    torch.testing.assert_close(new_x, x + 0.3 * block.attention(g) * block.target(x))
    torch.testing.assert_close(new_g, g - 0.7 * block.reference(g))


def test_scale_token_scales_and_shifts_the_target_alone():
    encoder = Encoder(SMALL)
    seen = {}
    encoder.blocks[0].register_forward_pre_hook(lambda module, args: seen.update(x=args[0], g=args[1]))
    target, reference, scale = maps(2, 1, 8, 8), maps(2, 1, 8, 8), torch.tensor([2.0, 3.3])
    _, _, e = encoder(target, reference, scale)
    torch.testing.assert_close(e, encoder.token(torch.tensor([[1 / 2.0], [1 / 3.3]])))
    gamma, beta = e[:, :8, None, None], e[:, 8:, None, None]
    torch.testing.assert_close(seen['x'], encoder.first_target(target) * (1 + gamma) + beta)
    torch.testing.assert_close(seen['g'], encoder.first_reference(reference))


def test_fusion():
    x, g, module = maps(2, 12, 6, 6), maps(2, 12, 6, 6), Fusion(12)
    gamma, beta = module.modulation(g.mean((2, 3), keepdim=True)).chunk(2, 1)
    xf = (1 + gamma) * x + beta
    m = module.gate(torch.cat([xf, g], 1))
    assert m.shape == (2, 1, 6, 6) and m.min() > 0 and m.max() < 1
    torch.testing.assert_close(module(x, g), module.merge(m * xf + (1 - m) * g) + x)


def test_shortcut_of_the_scale_attention_is_exact():
    module = ScaleAttention(12, 3).double()
    tokens, embedding = maps(4, 16, 12).double(), maps(4, 12).double()
    full = module.full(tokens, embedding)
    torch.testing.assert_close(module(embedding)[:, None].expand_as(full), full, rtol=1e-12, atol=1e-12)


def test_windows_round_trip():
    x = maps(2, 8, 12, 3)
    windows = to_windows(x, 4)
    assert windows.shape == (2, 6, 16, 3)
    torch.testing.assert_close(windows[0, 4].reshape(4, 4, 3), x[0, 4:8, 4:8])
    assert torch.equal(from_windows(windows, (8, 12), 4), x)
    assert torch.equal(shifted(shifted(x, 2), -2), x)


def explicit(q, k, v, heads, bias):
    """Attention of (N, C) one head at a time."""
    d = q.shape[1] // heads
    parts = []
    for h in range(heads):
        some = slice(h * d, (h + 1) * d)
        scores = q[:, some] @ k[:, some].T / math.sqrt(d) + bias[h]
        parts.append(torch.softmax(scores, -1) @ v[:, some])
    return torch.cat(parts, 1)


def relative(table, window, heads):
    n = window * window
    bias = torch.empty(heads, n, n)
    for a in range(n):
        for b in range(n):
            dy, dx = a // window - b // window, a % window - b % window
            bias[:, a, b] = table[(dy + window - 1) * (2 * window - 1) + dx + window - 1]
    return bias


def test_window_attention():
    module, tokens = WindowAttention(12, 3, 4), maps(1, 2, 16, 12)
    bias = relative(module.bias.table, 4, 3)
    for n in range(2):
        q, k, v = module.qkv(tokens[0, n]).chunk(3, -1)
        expected = module.out(explicit(q, k, v, 3, bias))
        torch.testing.assert_close(module(tokens, None)[0, n], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('frequency', [True, False])
def test_dual_attention(frequency):
    module = DualAttention(12, 3, 4, frequency)
    tokens = maps(1, 1, 16, 12)
    x, g, fx, fg = (maps(1, 1, 16, 12) for _ in range(4))
    bias = relative(module.bias.table, 4, 3)
    q = module.query(tokens[0, 0])
    seen = []
    for name, source, key in (('space', x, g), ('frequency', fx, fg))[: 1 + frequency]:
        k, v = module.key[name](key[0, 0]), module.value[name](source[0, 0])
        seen.append(module.out[name](explicit(q, k, v, 3, bias)))
    weights = torch.softmax(module.gate(tokens[0, 0].mean(0)), -1) if frequency else torch.ones(1)
    expected = sum(w * s for w, s in zip(weights, seen))
    out = module(tokens, {'space': x, 'frequency': fx}, {'space': g, 'frequency': fg}, None)
    torch.testing.assert_close(out[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_shifted_windows_see_true_neighbours_only():
    """A change at one edge of the map does not reach tokens at the opposite edge through the roll."""
    layer = Layer(SMALL, WindowAttention(12, 3, 4), 2)
    tokens, embedding = maps(1, 8, 8, 12), maps(1, 12)
    changed = tokens.clone()
    changed[:, 0] += torch.randn(1, 8, 12)
    moved = (layer(changed, embedding) - layer(tokens, embedding)).abs().amax((0, 2, 3)) > 1e-6
    assert moved[:2].all() and not moved[2:].any()
    allowed = neighbours((8, 8), 4, 2)
    assert allowed.shape == (4, 16, 16) and allowed[0].all() and not allowed[3].all()


def test_layer():
    layer = Layer(SMALL, WindowAttention(12, 3, 4), 0)
    tokens, embedding = maps(2, 4, 8, 12), maps(2, 12)
    t = tokens + layer.scale.full(layer.norms[0](tokens).flatten(1, 2), embedding).unflatten(1, (4, 8))
    t = t + layer.mlps[0](layer.norms[1](t))
    t = t + from_windows(layer.attention(to_windows(layer.norms[2](t), 4), None), (4, 8), 4)
    t = t + layer.mlps[1](layer.norms[3](t))
    torch.testing.assert_close(layer(tokens, embedding), t, rtol=1e-4, atol=1e-5)


def test_prompts_are_the_same_in_every_window():
    module = CrossAttention(SMALL)
    same = maps(1, 12, 1, 1).expand(1, 12, 8, 8)
    seen = {}
    module.block.register_forward_pre_hook(lambda m, args: seen.update(tokens=args[0]))
    module(same, same, maps(1, 12))
    windows = to_windows(seen['tokens'], 4)
    torch.testing.assert_close(windows[0, 1:], windows[0, :1].expand(3, -1, -1))
    torch.testing.assert_close(windows[0, 0], module.prompts + module.positions)


def test_spectrum():
    t = maps(2, 3, 8, 6)
    expected = np.log1p(np.abs(np.fft.fft2(t.numpy(), norm='ortho')))
    np.testing.assert_allclose(log_spectrum(t).numpy(), expected, atol=1e-5)


def test_edge_attention_keeps_the_strongest_channels():
    """One head and one image at a time, from the words of the docstring."""
    module = EdgeAttention(SMALL)
    with torch.no_grad():
        module.temperature.copy_(torch.rand(4, 1, 1) * 3), module.levels.copy_(torch.rand(4))
    tokens, edges = maps(1, 4, 4, 12), maps(1, 4, 4, 1).abs()
    q, k, v = (
        t[0].flatten(0, 1)
        for t in (module.query(module.edge(edges)), module.key(tokens), module.value(tokens))
    )
    seen = torch.empty(16, 12)
    for head in range(4):
        some = slice(3 * head, 3 * head + 3)
        qn, kn = (t[:, some] / t[:, some].norm(dim=0) for t in (q, k))
        scores = qn.T @ kn * module.temperature[head]
        mixed = torch.zeros(3, 3)
        for level, share in zip(module.levels, KEPT):
            for row in range(3):
                top = scores[row].topk(max(1, int(3 * share))).indices
                mixed[row, top] += level * torch.softmax(scores[row, top], -1)
        seen[:, some] = v[:, some] @ mixed.T
    expected = tokens + module.out(seen).reshape(1, 4, 4, 12)
    expected = expected + module.mlp(module.norm(expected))
    torch.testing.assert_close(module(tokens, edges), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('top_t', ['channel', 'spatial', 'none'])
def test_every_reading_of_top_t_runs(top_t):
    module = EdgeAttention(dataclasses.replace(SMALL, top_t=top_t))
    assert module(maps(2, 8, 8, 12), maps(2, 8, 8, 1)).shape == (2, 8, 8, 12)


def test_sobel():
    ramp = torch.arange(6.0).repeat(1, 5, 1)
    magnitude = sobel(ramp)
    torch.testing.assert_close(magnitude[0, :, 1:-1], torch.ones(5, 4))
    assert sobel(torch.zeros(1, 5, 5)).abs().max() == 0


def test_published_heads():
    config = dataclasses.replace(SMALL, start='published')
    heads = GaussianHeads(config)
    tokens, image, scale = maps(1, 4, 8, 12), torch.rand(1, 4, 8), torch.tensor([3.0])
    x, y, sx, sy, rho, w = heads(tokens, image, image, scale)[0].unflatten(0, (4, 8)).unbind(-1)
    raw = {k: head(tokens)[0] for k, head in heads.heads.items() if k != 'centre'}
    torch.testing.assert_close(sx, (0.99999 * torch.sigmoid(raw['sigma'][..., 0]) + 1e-6) * 3 / 1.2)
    torch.testing.assert_close(sy, (0.99999 * torch.sigmoid(raw['sigma'][..., 1]) + 1e-6) * 3 / 1.2)
    torch.testing.assert_close(rho, 0.999999 * torch.tanh(raw['rho'][..., 0]))
    expected = torch.sigmoid(raw['alpha'][..., 0]) * torch.sigmoid(raw['intensity']).mean(-1)
    torch.testing.assert_close(w, expected)
    offset = heads.heads['centre'](heads.edges(tokens, sobel(image)[..., None]))[0]
    torch.testing.assert_close(x, torch.arange(4.0)[:, None] + offset[..., 0])
    torch.testing.assert_close(y, torch.arange(8.0) + offset[..., 1])


@pytest.mark.parametrize('size', [(16, 16), (5, 31), (64, 80)])
def test_interpolant_reproduces_the_image(size):
    image = torch.rand(2, *size)
    w = interpolant.weights(image)
    kernel = interpolant.sampled(interpolant.WIDTH, interpolant.CUTOFF)
    rendered = F.conv2d(w[:, None], kernel[None, None], padding=len(kernel) // 2)[:, 0]
    assert (rendered - image).abs().max() < 3e-5


@pytest.mark.parametrize('name', ['tiny', 'small', 'medium'])
def test_exact_start_renders_its_input(name):
    config = SIZES[name].network
    image = torch.rand(1, 32, 48)
    with torch.no_grad():
        out = Network(config)(image, torch.rand(1, 32, 48), torch.tensor([2.7])).render()
    assert (out - image).abs().max() < 5e-5


def test_whole_network_uses_everything_that_it_says():
    """Every parameter matters but the queries and keys of the scale attention and its norm, which cancel exactly."""
    network = Network(SMALL)
    prediction = network(torch.rand(1, 8, 12), torch.rand(1, 8, 12), torch.tensor([2.0]), decode=True)
    (prediction.render().square().sum() + prediction.reference.square().sum()).backward()
    unused = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert all(
        '.scale.query' in n or '.scale.key' in n or '.norms.0.' in n or n.endswith('key.bias') for n in unused
    )


@pytest.mark.parametrize(
    'change',
    [
        {'spmf': False},
        {'frequency': False},
        {'top_t': 'spatial'},
        {'centres': 'absolute'},
        {'reference': False},
    ],
)
def test_ablations_change_the_network(change):
    images = torch.rand(2, 1, 8, 8)
    torch.manual_seed(1)
    full = Network(SMALL)(*images, torch.tensor([2.0])).gaussians
    torch.manual_seed(1)
    less = Network(dataclasses.replace(SMALL, **change))(*images, torch.tensor([2.0])).gaussians
    assert less.shape == full.shape and not torch.allclose(less, full)


def test_without_a_reference_nothing_is_taken_from_it():
    network = Network(dataclasses.replace(SMALL, reference=False))
    image, scale = torch.rand(1, 8, 8), torch.tensor([2.0])
    a, b = (network(image, torch.rand(1, 8, 8), scale).gaussians for _ in range(2))
    assert torch.equal(a, b)


def test_translation_by_whole_windows():
    """A network without means over the image moves its Gaussians as its input moves (in the middle of the image)."""
    config = dataclasses.replace(
        SIZES['tiny'].network, encoder_blocks=0, spmf=False, frequency=False, cross_layers=0
    )
    network = Network(config)
    torch.manual_seed(3)
    for head in network.heads.heads.values():
        torch.nn.init.normal_(head[-1].weight, std=0.1)
    images = torch.zeros(2, 1, 96, 96)
    images[:, :, 32:64, 32:64] = torch.rand(2, 1, 32, 32)
    moved = torch.roll(images, (2, 4), (2, 3))
    with torch.no_grad():
        a, b = (network(*i, torch.tensor([2.0])).gaussians.reshape(96, 96, 6) for i in (images, moved))
    inner = slice(40, 56)
    # Centres come from channel attention over the whole image, whose sums do not change when it moves.
    np.testing.assert_allclose(b[42:58, 44:60, 5].numpy(), a[inner, inner, 5].numpy(), atol=2e-3)
    np.testing.assert_allclose(b[42:58, 44:60, 2:5].numpy(), a[inner, inner, 2:5].numpy(), atol=2e-3)


def test_frequency_loss():
    a, b = torch.rand(2, 6, 5), torch.rand(2, 6, 5)
    expected = np.abs(np.fft.fft2(a.double().numpy()) - np.fft.fft2(b.double().numpy())).mean()
    assert float(frequency_loss(a, b)) == pytest.approx(expected, rel=1e-5)
