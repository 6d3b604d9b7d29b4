"""Adam as published; and, for short trainings, orthogonalised steps for the matrices inside the network (Muon).

Muon (Jordan et al. 2024): the momentum of a weight matrix (a convolution is one of outputs by inputs x 9) is replaced
by the nearest matrix with equal singular values, by five Newton-Schulz steps, so that rare directions move as much as
common ones. The first and last layers, biases, norms and tables stay with Adam.
"""

from __future__ import annotations

import torch
from torch import nn

from bids_gsrecon.recon.m2asr.config import Schedule

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
MOMENTUM = 0.95
NOT_INSIDE = ('first', 'token', 'heads.heads', 'prompts', 'positions', 'table')
SMALLEST = 512  # numbers in a matrix that is worth the time


class Optimizer:
    """One step for all parameters of a network.

    `rate` of `step` is the share of the schedule's learning rates.
    """

    def __init__(self, network: nn.Module, schedule: Schedule):
        inside = []
        if schedule.optimizer == 'muon':
            inside = [p for name, p in network.named_parameters() if _is_inside(name, p)]
        chosen = {id(p) for p in inside}
        rest = [p for p in network.parameters() if id(p) not in chosen]
        self.schedule = schedule
        self.adam = torch.optim.Adam(rest, schedule.learning_rate, betas=schedule.betas, foreach=True)
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for p in inside:
            self.groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self.momenta = [
            torch.zeros(len(ps), *shape, device=ps[0].device) for shape, ps in self.groups.items()
        ]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.adam.zero_grad()
        for group in self.groups.values():
            for p in group:
                p.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter that has a gradient."""
        for group in self.adam.param_groups:
            group['lr'] = self.schedule.learning_rate * rate
        self.adam.step()
        for (rows, columns), group, momentum in zip(self.groups, self.groups.values(), self.momenta):
            has = torch.tensor([p.grad is not None for p in group])
            matrices = [(torch.zeros_like(p) if p.grad is None else p.grad) for p in group]
            gradient = torch.stack([matrix.reshape(rows, columns) for matrix in matrices])
            momentum.mul_(MOMENTUM).add_(gradient)
            step = orthogonal(gradient + MOMENTUM * momentum)
            size = self.schedule.matrix_rate * rate * max(1.0, rows / columns) ** 0.5
            for p, one, moves in zip(group, step, has):
                if moves:
                    p.sub_(one.reshape(p.shape), alpha=size)

    def state_dict(self) -> dict:
        """What `load_state_dict` needs."""
        return {'adam': self.adam.state_dict(), 'momenta': self.momenta}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`."""
        self.adam.load_state_dict(state['adam'])
        for mine, saved in zip(self.momenta, state['momenta']):
            mine.copy_(saved)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(n, r, c): each with the same singular vectors and singular values near one.

    Every Newton-Schulz step multiplies by a polynomial of the Gram matrix; these commute, so all steps are taken on
    the small Gram matrices and their product is applied once.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    gram = x.mT @ x if tall else x @ x.mT
    eye = torch.eye(gram.shape[-1], device=x.device)
    product = eye
    for _ in range(ROUNDS):
        factor = a * eye + gram @ (b * eye + c * gram)
        product = factor @ product
        gram = factor @ gram @ factor
    return x @ product if tall else product @ x


def _is_inside(name: str, p: nn.Parameter) -> bool:
    return p.ndim >= 2 and p.numel() >= SMALLEST and not any(part in name for part in NOT_INSIDE)
