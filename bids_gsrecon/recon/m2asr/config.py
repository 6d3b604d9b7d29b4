"""Sizes of the network, from one that trains in minutes on a laptop to the published one, and their schedules."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

STARTS = ('exact', 'published')
TOP_T = ('channel', 'spatial', 'none')
CENTRES = ('offset', 'absolute')


@dataclass(frozen=True)
class NetworkConfig:
    """What the network is made of; the defaults are the published network.

    Attributes
    ----------
    features
        Channels of the encoder.
    encoder_blocks
        Of the encoder (CSMF).
    channels
        Of a token, C.
    heads
        Of the window attentions.
    window
        Tokens along a side of an attention window.
    cross_layers
        Of the dual-domain cross attention (AG-DDCA); 0: tokens are the fused features.
    stages, stage_layers
        Blocks, and layers in each, of the Gaussian Transformer.
    shuffle
        Pixels along a side that share a token: 1 as published; 2: the encoder works on pixels folded into channels
        at half resolution, and a token owns 2 x 2 Gaussians.
    start
        ``published``: heads that begin at random, positive weights. ``exact`` (ours): before the first step the
        Gaussians reproduce the zero-filled image, and the heads change them.
    carry
        Tokens of the cross attention begin as prompt + fused feature (ours), not as the prompt alone.
    conv_blocks
        Residual convolutions between the fusion and the tokens (ours: at small sizes they do the Transformer's work at
        a fraction of its cost).
    head_hidden
        Hidden widths of the heads that read the parameters of Gaussians from a token.
    joint_heads
        One head for all parameters but the centre (ours: half the time of a small network went into the others).
    patch
        Side in pixels of the pieces that the network sees, in training and in use: its means and spectra over the image
        then mean the same in both. 0: whole slices.
    spmf, frequency, reference
        Without: features are not fused by it (plain sum); without the frequency branch; without the reference image.
    edge_guided
        Centres are read from tokens that the reference's edges have attended to (AGGP); without: from the tokens.
    top_t
        Sparsity of the edge-guided attention that places the centres: of ``channel`` as released, ``spatial`` as the
        paper's words say, or ``none``.
    centres
        ``offset`` from the pixel, or ``absolute`` position in the image.
    """

    features: int = 64
    encoder_blocks: int = 16
    channels: int = 180
    heads: int = 6
    window: int = 8
    cross_layers: int = 3
    stages: int = 5
    stage_layers: int = 5
    shuffle: int = 1
    start: str = 'published'
    carry: bool = False
    conv_blocks: int = 0
    head_hidden: tuple[int, ...] = (180, 720)
    joint_heads: bool = False
    patch: int = 0
    spmf: bool = True
    frequency: bool = True
    reference: bool = True
    edge_guided: bool = True
    top_t: str = 'channel'
    centres: str = 'offset'

    def __post_init__(self):
        for name, allowed in (('start', STARTS), ('top_t', TOP_T), ('centres', CENTRES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f'{name} must be one of {", ".join(allowed)}, not {getattr(self, name)!r}')
        object.__setattr__(self, 'head_hidden', tuple(self.head_hidden))
        if self.patch % self.multiple:
            raise ValueError(f'the patch {self.patch} is not a multiple of {self.multiple}')
        if self.channels % self.heads:
            raise ValueError(f'{self.heads} heads do not divide {self.channels} channels')

    @property
    def multiple(self) -> int:
        """Image sides must be multiples of it."""
        return self.window * self.shuffle

    def to_dict(self) -> dict:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> NetworkConfig:
        """Of `to_dict`.

        Raises
        ------
        ValueError
            Names that this version does not know, or lacks.
        """
        names = {f.name for f in fields(cls)}
        if set(values) != names:
            different = ', '.join(sorted(names ^ set(values)))
            raise ValueError(f'the configuration is of another version (it differs in {different})')
        return cls(**values)


@dataclass(frozen=True)
class Schedule:
    """How the network is trained; the defaults are the published ones.

    Attributes
    ----------
    first_stage_steps, steps
        At scale 1 with everything trained, then at random scales with the centre and shape heads (AGGP) frozen.
    optimizer
        ``adam`` as published, or ``muon`` for the matrices inside the network (see `optimizer`).
    learning_rate, betas, warm_up_steps
        Of Adam.
    matrix_rate
        Learning rate of the matrices with ``muon``.
    milestones
        Steps of the second stage at which the rate is halved; none: cosine to zero.
    batch
        Patches a step.
    ema
        Decay of the running mean of the weights that is kept.
    frequency_loss, reference_loss
        Weights beside the L1 loss of the image.
    precision
        ``float32``, or ``bfloat16`` for the convolutions and attentions.
    """

    first_stage_steps: int = 40_000
    steps: int = 500_000
    optimizer: str = 'adam'
    learning_rate: float = 2e-4
    matrix_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warm_up_steps: int = 2000
    milestones: tuple[int, ...] = (250_000, 400_000, 450_000, 475_000)
    batch: int = 8
    ema: float = 0.999
    frequency_loss: float = 0.01
    reference_loss: float = 0.3
    precision: str = 'float32'


@dataclass(frozen=True)
class Size:
    """A network and its schedule."""

    network: NetworkConfig
    schedule: Schedule


SIZES = {
    'tiny': Size(
        NetworkConfig(
            features=32, encoder_blocks=0, channels=32, heads=2, cross_layers=0, stages=0, stage_layers=0,
            shuffle=2, start='exact', carry=True, conv_blocks=6, head_hidden=(64,), joint_heads=True, edge_guided=False,
            patch=64,
        ),
        Schedule(
            first_stage_steps=0, steps=12_000, learning_rate=2e-3, warm_up_steps=60, milestones=(), optimizer='muon', batch=4,
            precision='bfloat16', reference_loss=0.0, frequency_loss=0.0,
        ),
    ),
    'small': Size(
        NetworkConfig(
            features=32, encoder_blocks=2, channels=60, cross_layers=1, stages=1, stage_layers=2, shuffle=2,
            start='exact', carry=True, conv_blocks=6, head_hidden=(120,), joint_heads=True, patch=64,
        ),
        Schedule(
            first_stage_steps=0, steps=40_000, learning_rate=1e-3, warm_up_steps=200, milestones=(), optimizer='muon', batch=4,
            precision='bfloat16', frequency_loss=0.0, reference_loss=0.0,
        ),
    ),
    'medium': Size(
        NetworkConfig(
            features=64, encoder_blocks=8, channels=96, cross_layers=3, stages=3, stage_layers=3, start='exact',
            carry=True, head_hidden=(96, 384), joint_heads=True, patch=96,
        ),
        Schedule(
            first_stage_steps=0, steps=200_000, learning_rate=5e-4, warm_up_steps=500, milestones=(), optimizer='muon', batch=8,
            precision='bfloat16',
        ),
    ),
    'paper': Size(NetworkConfig(), Schedule()),
}  # fmt: skip
