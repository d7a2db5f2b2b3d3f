"""FedAvg: Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al. 2017, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.rounds import Correction, Rate, advance, at, delta, rounds
from foedus.core import Algorithm, RoundContext, State, Total


def fedavg(rate: Rate = 1.0, correct: Correction | None = None, **task: Any) -> Algorithm:
    """Each site trains from the global model; the mean of their differences, by examples, is added to it.

    `rate` is the server's step size (1: McMahan's average of models), or a schedule: round (from 0) -> step size.
    `correct` changes each local gradient; `task` sets fields of the round's Task, for example `aggregator=fd.median()`.
    """

    def step(state: State, total: Total, context: RoundContext) -> State:
        return advance(state, total.params, at(rate, context.round))

    return rounds(lambda state: state, delta(correct), step, **task)
