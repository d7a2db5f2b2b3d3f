"""FedDyn: Federated Learning Based on Dynamic Regularization, Acar et al. 2021, algorithm 1 (equations 1 to 3).
Only the contract may come in."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from foedus.algorithms.rounds import advance, rounds
from foedus.core import Algorithm, Local, RoundContext, SiteContext, State, Total, Update
from foedus.params import Params


def feddyn(alpha: float = 0.01, **task: Any) -> Algorithm:
    """A site's loss minus what it learned of its own gradient, pulled to the round's model: all agree at the optimum.

    Each local gradient becomes g - g_i + alpha (w - w_round), and in the end g_i = g_i - alpha (w - w_round). The
    server keeps h = h - alpha / m times the sum of the differences (m: all sites), and subtracts h / alpha.
    Sites count alike.
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        start = payload.trainable()
        own = start.zeros() if local is None else local
        fit = site.train(payload, site.split, site.key("train"), lambda g, w: g - own + alpha * (w - start))
        moved = fit.params - payload
        return own - alpha * moved.trainable(), Update(moved, 1.0, fit.metrics)

    def step(state: State, total: Total, context: RoundContext) -> State:
        mean, share = total.params.trainable(), total.count / len(context.roster)
        h = state["h"] - alpha * share * mean
        return {"w": advance(state["w"], total.params, 1.0, mean - 1 / alpha * h), "h": h}

    def init(model: Params) -> State:
        return {"w": model, "h": model.trainable().zeros()}

    return rounds(itemgetter("w"), work, step, init, itemgetter("w"), ("mean", "fresh"), **task)
