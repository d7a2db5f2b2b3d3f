"""Small models and data for the tests of TorchLearner."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD

import foedus as fd
from foedus.torch import TorchLearner

KEY = fd.key(0, 0, 0, "north", "train")


class Rich(nn.Module):
    """Convolution, batch statistics, dropout, tied, frozen, boolean and unsent arrays: what a state_dict may hold."""

    remembers = True  # from one step to the next

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("seen", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.norm(self.conv(x)).relu()).mean((2, 3))
        x = self.b(self.a(x).tanh()) * self.mask + self.frozen
        out: torch.Tensor = self.head(x) + self.remembers * self.seen
        self.seen += 1
        return out


def linear(columns: int = 3, classes: int = 2) -> partial[nn.Module]:
    return partial(nn.Linear, columns, classes)


def images(n: int = 24, seed: int = 0, size: int = 6) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return rng.normal(size=(n, 1, size, size)).astype(np.float32) + y[:, None, None, None], y


def table(n: int = 20, columns: int = 3, classes: int = 2, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, columns)).astype(np.float32)
    return x, (x @ rng.normal(size=(columns, classes))).argmax(1)


def learner(model: Any = None, loss: Any = None, lr: float = 0.1, optimizer: Any = None, **rest: Any) -> TorchLearner:
    return TorchLearner(model or linear(), loss or nn.CrossEntropyLoss(), optimizer or partial(SGD, lr=lr), **rest)


def rich_sites(size: int = 6) -> dict[str, fd.Split]:
    return {f"s{i}": fd.Split(images(20 + 8 * i, i, size), test=images(16, i + 9, size)) for i in range(3)}


def rich_job(**rest: Any) -> fd.Job:
    made = learner(Rich, batch_size=8, metrics=["accuracy", "auc"], optimizer=partial(SGD, lr=0.1, momentum=0.9))
    return fd.Job(fd.fedavg(), made, **{"rounds": 2, **rest})
