"""Attacks that search for inputs, on small networks of torch: what the papers of both searches describe comes back."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import foedus as fd
from foedus.torch import TorchLearner

QUICK: dict[str, Any] = dict(shadows=0, canaries=0)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(torch.tanh(self.a(x)))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, stride=2)
        self.e = nn.Linear(192, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.e(F.relu(self.d(F.relu(self.c(x)))).flatten(1))


def site(seed: int, *shape: int) -> fd.Split:
    rng = np.random.default_rng(seed)
    parts = [(rng.uniform(0, 1, (n, *shape)).astype(np.float32), rng.integers(0, 4, n)) for n in (20, 20, 20)]
    return fd.Split(*parts)


def found(model: Any, shape: tuple[int, ...], steps: int, **how: Any) -> dict[tuple[str, str, str], Any]:
    learner = TorchLearner(model, F.cross_entropy, partial(torch.optim.SGD, lr=0.1), batch_size=32)
    sites = {name: site(i, *shape) for i, name in enumerate("abcd")}
    audit = fd.attack(fd.Job(fd.fedavg(), learner, rounds=1), sites, steps=steps, **QUICK, **how)
    return {(f.defence, f.attack, f.on): f for f in audit.findings}


def test_a_record_is_found_from_its_gradient_and_not_from_masked_words() -> None:
    by = found(Dense, (16,), 200, records=1, against="none,secagg")
    for attack in ("analytic", "DLG", "cosine"):
        assert by["none", attack, "its update"].values["psnr"] > 30
        sealed = by["secagg", attack, "its masked words"]
        assert sealed.outcome == "nothing" and sealed.values["psnr"] < sealed.values["baseline"] + 3
    assert by["none", "labels", "its update"].values["accuracy"] == 1.0


@pytest.mark.long
def test_images_are_found_through_convolutions_by_cosine() -> None:
    by = found(Convolutional, (1, 8, 8), 600, records=2, against="none")
    assert by["none", "cosine", "its update"].values["psnr_median"] > 20
    assert by["none", "analytic", "its update"].outcome == "not tried"
