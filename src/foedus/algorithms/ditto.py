"""Ditto: Fair and Robust Federated Learning Through Personalization, Li et al. 2021, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.rounds import Rate, advance, at, delta, rounds
from foedus.core import Algorithm, Local, Personal, RoundContext, SiteContext, State, Total
from foedus.params import Params


def ditto(lam: float = 0.1, rate: Rate = 1.0, **task: Any) -> Algorithm:
    """FedAvg, and beside it each site trains a model v of its own by v - eta (g(v) + lam (v - w_round)).

    It begins as the first global model that the site gets. The global model is that of FedAvg, to the bit.
    """
    train = delta()

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Any]:
        _, update = train(payload, None, site)
        start, v = payload.trainable(), payload if local is None else local
        fit = site.train(v, site.split, site.key("personal"), lambda grads, v: grads + lam * (v - start))
        return fit.params, update

    def step(state: State, total: Total, context: RoundContext) -> State:
        return advance(state, total.params, at(rate, context.round))

    return rounds(lambda state: state, work, step, personal=Personal(lambda model, v: v), **task)
