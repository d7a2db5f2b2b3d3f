"""FedAvgM: Measuring the Effects of Non-Identical Data Distribution, Hsu et al. 2019, section 4.3.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.fedopt import ServerOptimizer, fedopt
from foedus.algorithms.rounds import Rate
from foedus.core import Algorithm, State
from foedus.params import Params


def momentum(beta: float = 0.9) -> ServerOptimizer:
    """v = beta v + d, and the way is v."""

    def step(state: State, mean: Params, model: Params | None = None) -> tuple[State, Params]:
        v = beta * state + mean
        return v, v

    return ServerOptimizer(lambda model: model.zeros(), step)


def fedavgm(beta: float = 0.9, rate: Rate = 1.0, **task: Any) -> Algorithm:
    """FedAvg with momentum at the server; `rate` is its step size, which times 1 / (1 - beta) is what lasts."""
    return fedopt(momentum(beta), rate, **task)
