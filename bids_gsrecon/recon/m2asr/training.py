"""The training loop: two stages, running mean of the weights, checkpoints, several processes."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from bids_gsrecon.recon.m2asr.config import NetworkConfig, Schedule
from bids_gsrecon.recon.m2asr.losses import total_loss
from bids_gsrecon.recon.m2asr.network import Network
from bids_gsrecon.recon.m2asr.optimizer import Optimizer
from bids_gsrecon.recon.m2asr.samples import Sampler
from bids_gsrecon.recon.m2asr.types import Checkpoint, TrainingOptions, UnfitCheckpointError

CHECKPOINT_FORMAT = 1
LOSS_MEMORY = 0.98  # of the mean loss that is reported
INTERRUPTIONS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


@dataclass(eq=False)
class Trainer:
    """A network in training.

    Attributes
    ----------
    make
        Builds what is trained; a `Network` but for baselines.
    step, minutes
        Done so far, resumed ones included.
    loss
        Running mean.
    """

    config: NetworkConfig
    schedule: Schedule
    options: TrainingOptions
    sampler: Sampler
    device: torch.device
    make: Callable[[NetworkConfig], torch.nn.Module] = Network
    step: int = 0
    minutes: float = 0.0
    loss: float = math.nan

    def __post_init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            self.network = self.make(self.config)
        self.network.to(self.device, memory_format=torch.channels_last)
        self.parameters = list(self.network.parameters())
        self.mean = [p.detach().clone() for p in self.parameters]
        self.optimizer = Optimizer(self.network, self.schedule)
        self.rank, self.world = _place()

    def run(self, checkpoint: Checkpoint | None, report: Callable[[int, int], None]) -> None:
        """Train to the end; ``report`` is told (done, total) in steps, or in seconds where time ends it."""
        if checkpoint is not None and (state := checkpoint.load()) is not None:
            self.restore(state)
        clock = time.process_time if self.options.clock == 'processor' else time.perf_counter
        before, started, saved = self.minutes, clock(), time.perf_counter()
        try:
            with _deterministic():
                while self._share() < 1:
                    self.train_step()
                    self.minutes = self._agreed(before + (clock() - started) / 60)
                    report(*self._done())
                    if (
                        checkpoint is not None
                        and time.perf_counter() - saved > 60 * self.options.checkpoint_minutes
                    ):
                        self._save(checkpoint)
                        saved = time.perf_counter()
        except KeyboardInterrupt:
            # What has been drawn or computed since the last step has changed nothing: see `train_step`.
            if checkpoint is not None:
                self._save(checkpoint)
            raise
        if checkpoint is not None:
            self._save(checkpoint)

    @property
    def total_steps(self) -> int:
        """Of both stages, where no time ends the training before."""
        limit = self.schedule.first_stage_steps + self.schedule.steps
        return limit if self.options.max_steps is None else self.options.max_steps

    def _share(self) -> float:
        """Of the training that is done, by steps or time, whichever is further."""
        share = self.step / self.total_steps
        if self.options.max_minutes is not None:
            share = max(share, self.minutes / self.options.max_minutes)
        return min(share, 1.0)

    def _done(self) -> tuple[int, int]:
        limit = self.options.max_minutes
        if limit is not None and self.minutes / limit > self.step / self.total_steps:
            return min(round(60 * self.minutes), round(60 * limit)), round(60 * limit)
        return self.step, self.total_steps

    def _stage(self) -> tuple[int, float]:
        """Stage (1 or 2) and the share of it that is done."""
        first = self.schedule.first_stage_steps / (self.schedule.first_stage_steps + self.schedule.steps)
        share = self._share()
        if share < first:
            return 1, share / first
        return 2, (share - first) / (1 - first)

    def rate(self) -> float:
        """Learning rate of the coming step, over the schedule's.

        The warm-up takes a tenth of the training at most. Milestones are places in the published schedule: a shorter
        training halves the rate at the same shares of its length.
        """
        warm_up = min(self.schedule.warm_up_steps, self.total_steps // 10)
        rise = min(1.0, (self.step + 1) / warm_up) if warm_up else 1.0
        stage, share = self._stage()
        if self.schedule.milestones:
            passed = sum(share > m / self.schedule.steps - 1e-9 for m in self.schedule.milestones)
            return rise * 0.5 ** (passed if stage == 2 else 0)
        return rise * 0.5 * (1 + math.cos(math.pi * share))

    def train_step(self) -> None:
        """Draw, predict, render, step, average."""
        stage, _ = self._stage()
        for p in self.network.heads.parameters():
            p.requires_grad_(stage == 1 or not self.schedule.first_stage_steps)
        scales = (1.0, 1.0) if stage == 1 else self.options.scales
        images, scale, weights = self.sampler.draw(self.step, self.rank, scales)
        coarse, reference, target = torch.from_numpy(images).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.precision == 'bfloat16'):
            prediction = self.network(
                coarse, reference, torch.from_numpy(scale).to(self.device),
                decode=self.schedule.reference_loss > 0,
            )  # fmt: skip
        if weights is not None:
            weights = torch.from_numpy(weights).to(self.device)
        loss = total_loss(prediction, target, reference, self.schedule, weights)
        self.optimizer.zero_grad()
        loss.backward()
        self._average_gradients()
        with undisturbed():
            self._move(loss.detach())

    def _move(self, loss: torch.Tensor) -> None:
        """Everything that a step changes."""
        self.optimizer.step(self.rate())
        self.step += 1
        with torch.no_grad():
            # A mean over more steps than there were would remember the start.
            decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - decay)
        value = float(loss)
        if not math.isfinite(value):
            raise ValueError(
                f'the training diverged after {self.step} steps (its loss is {value}): train again with another seed'
            )
        self.loss = value if math.isnan(self.loss) else LOSS_MEMORY * self.loss + (1 - LOSS_MEMORY) * value

    def averaged(self) -> Network:
        """The network with the running mean of the weights, on the CPU."""
        network = copy.deepcopy(self.network).cpu()
        with torch.no_grad():
            for p, mean in zip(network.parameters(), self.mean):
                p.copy_(mean)
        return network.requires_grad_(True).eval()

    def state(self) -> dict:
        """All that the rest of the training depends on."""
        return {
            'format': CHECKPOINT_FORMAT,
            'training': self._fingerprint(),
            'step': self.step,
            'minutes': self.minutes,
            'loss': self.loss,
            'network': self.network.state_dict(),
            'mean': self.mean,
            'optimizer': self.optimizer.state_dict(),
        }

    def restore(self, state: dict) -> None:
        """Continue from `state`.

        Raises
        ------
        UnfitCheckpointError
            It is of another training.
        """
        if state.get('format') != CHECKPOINT_FORMAT:
            raise UnfitCheckpointError('it is a checkpoint of another version: delete it to start over')
        mine, theirs = self._fingerprint(), state['training']
        if different := sorted(k for k in mine if mine[k] != theirs.get(k)):
            raise UnfitCheckpointError(
                f'it is the checkpoint of another training (it differs in {", ".join(different)}): repeat the options'
                ' it was made with, or delete it to start over'
            )
        self.network.load_state_dict(state['network'])
        self.optimizer.load_state_dict(state['optimizer'])
        for mine, saved in zip(self.mean, state['mean']):
            mine.copy_(saved)
        self.step, self.minutes, self.loss = state['step'], state['minutes'], state['loss']

    def _fingerprint(self) -> dict:
        network, schedule = asdict(self.config), asdict(self.schedule)
        return {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in {**network, **schedule}.items()},
            'scales': list(self.options.scales),
            'seed': self.options.seed,
            'synthetic_fraction': self.options.synthetic_fraction,
            'synthetic_weight': self.options.synthetic_weight,
            'subjects': len(self.sampler.subjects),
            'processes': self.world,
        }

    def _save(self, checkpoint: Checkpoint) -> None:
        if self.rank == 0:
            checkpoint.save(self.state())

    def _average_gradients(self) -> None:
        if self.world == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for g, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
            g.copy_(mean.view_as(g))

    def _agreed(self, minutes: float) -> float:
        """The time of rank 0, so that all end at the same step."""
        if self.world == 1 or self.options.max_minutes is None:
            return minutes
        value = torch.tensor([minutes], dtype=torch.float64, device=self.device)
        dist.broadcast(value, 0)
        return float(value)


@contextmanager
def undisturbed():
    """Signals that would interrupt the block (their handlers raise in the main thread) wait for its end."""
    held: list[int] = []
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in INTERRUPTIONS:
                if callable(handler := signal.getsignal(number)):
                    before[number] = handler
                    signal.signal(number, lambda signum, frame: held.append(signum))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(held):
            signal.raise_signal(number)


@contextmanager
def process_group(device: torch.device):
    """The processes that ``torchrun`` started, if it did and nobody has joined them yet."""
    if int(os.environ.get('WORLD_SIZE', '1')) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    try:
        yield
    finally:
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA where there is one, that of this process's ``LOCAL_RANK``.

    Raises
    ------
    ValueError
        ``cuda`` where there is none.
    """
    if name not in ('auto', 'cpu', 'cuda'):
        raise ValueError(f'the device must be auto, cpu or cuda, not {name!r}')
    if name == 'cuda' and not torch.cuda.is_available():
        raise ValueError('there is no CUDA device here: choose the device cpu')
    if name == 'cpu' or not torch.cuda.is_available():
        return torch.device('cpu')
    return torch.device('cuda', int(os.environ.get('LOCAL_RANK', '0')))


def _place() -> tuple[int, int]:
    """Rank and number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def _deterministic():
    """No algorithm whose sums depend on timing, where torch has another."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
