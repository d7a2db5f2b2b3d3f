"""The models of the problem, in torch: `MLP` 64-64-10, and `CNN` of 1.2 million parameters on 28 x 28 pixels."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        return self.last(self.first(x).relu())


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.wide, self.last = nn.Linear(3136, 369), nn.Linear(369, 10)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(self.one(x.view(-1, 1, 28, 28)).relu(), 2)
        x = F.max_pool2d(self.two(x).relu(), 2)
        return self.last(self.wide(x.flatten(1)).relu())
