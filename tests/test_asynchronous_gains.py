"""What asynchronous training and a choice of sites gain on digits: simulated seconds, and rounds, to an accuracy.

`python tests/test_asynchronous_gains.py` prints the figures of docs/algorithms.md.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import foedus as fd
from foedus import build
from foedus.backends.simulation import Simulation
from foedus.backends.vectorized import Many
from foedus.clock import Watch
from foedus.core import Algorithm
from foedus.journal import Journal, Memory
from foedus.participation import power_of_choice
from foedus.run import Checkpoints, execute
from foedus.torch import TorchLearner
from test_algorithms_gains import SEEDS, STUDENT, digits, hidden

pytestmark = pytest.mark.long
MOST_ROUNDS, TARGET = 1000, 0.85
DEVICES = fd.clock(  # the slowest of 30 takes some ten times as long as the middle one
    work=10.0, speed=fd.clock.lognormal(1.0, 1.0), bandwidth=fd.clock.lognormal(2e4, 0.5)
)
TEN = {"cohort": 10}
OVER = {"cohort": 10, "over_select": 1.3, "quorum": 10}
WAYS: dict[str, tuple[Algorithm, dict[str, Any]]] = {  # ten at work at a time
    "synchronous": (fd.fedavg(), TEN),
    "over-selected": (fd.fedavg(), OVER),
    "fedbuff": (fd.fedbuff(5, busy=10), {}),
    "fedasync": (fd.fedasync(0.6, busy=10), {"evaluate": 5}),
}
CHOICES: dict[str, Any] = {"uniform": 3, "power of choice": power_of_choice(12, 3)}


def reached(algorithm: Algorithm, seed: int, alpha: float, clock: fd.clock.Clock | None, **more: Any) -> Any:
    """The line of the history in which the accuracy on the sites' validation parts first was TARGET."""
    sites, kept = fd.partition.dirichlet(*digits(), sites=30, alpha=alpha, seed=seed), Journal(Memory())
    learner = TorchLearner(hidden, nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.1), 1, 16, metrics=["accuracy"])
    made = fd.Job(algorithm, learner, rounds=MOST_ROUNDS, stop=fd.target("accuracy", TARGET), **more)
    watch = Watch(clock, seed, clock is not None)
    with build.exactly():
        crew = Many(made, sites, seed, lambda why: None)
        runner = Simulation(crew, sorted(sites), kept, seed, made.least, watch=watch)
        ended = execute(made.plan(seed), runner, kept, Checkpoints(None), watch=watch)
    assert ended.history[-1]["accuracy"] >= TARGET
    return ended.history[-1]


@cache
def clocks(way: str) -> list[tuple[float, int]]:
    """For each seed the simulated seconds and the updates that it took."""
    algorithm, more = WAYS[way]
    lines = [reached(algorithm, seed, 1.0, DEVICES, **more) for seed in SEEDS]
    return [(line["clock"], (line["round"] + 1) * {"fedbuff": 5, "fedasync": 1}.get(way, 10)) for line in lines]


@cache
def rounds_of(choice: str) -> list[int]:
    return [reached(fd.fedavg(), seed, 0.1, None, cohort=CHOICES[choice])["round"] + 1 for seed in SEEDS]


def interval(x: Any) -> tuple[float, float]:
    """The 95 % interval of the mean of `x`, one for each seed."""
    half = STUDENT * np.std(x, ddof=1) / np.sqrt(len(x))
    return float(np.mean(x) - half), float(np.mean(x) + half)


def faster(ours: Any, theirs: Any) -> tuple[float, float]:
    """The 95 % interval of the mean ratio theirs / ours, in pairs (geometric)."""
    low, high = interval(np.log(np.array(theirs) / np.array(ours)))
    return float(np.exp(low)), float(np.exp(high))


@pytest.mark.parametrize("way", ["fedbuff", "fedasync"])
def test_asynchronous_training_is_there_sooner(way: str) -> None:
    seconds = {each: [clock for clock, _ in clocks(each)] for each in ("synchronous", way)}
    assert faster(seconds[way], seconds["synchronous"])[0] > 1


def test_power_of_choice_needs_fewer_rounds() -> None:
    assert faster(rounds_of("power of choice"), rounds_of("uniform"))[0] > 1


if __name__ == "__main__":
    base = [clock for clock, _ in clocks("synchronous")]
    for each in WAYS:
        seconds, updates = zip(*clocks(each), strict=True)
        low, high = faster(seconds, base)
        print(f"{each}: {np.mean(seconds):.0f} s, {np.mean(updates):.0f} updates, {low:.1f} to {high:.1f}", flush=True)
    for each in CHOICES:
        low, high = faster(rounds_of(each), rounds_of("uniform"))
        print(f"{each}: {np.mean(rounds_of(each)):.0f} rounds, {low:.2f} to {high:.2f}", flush=True)
