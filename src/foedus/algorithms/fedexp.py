"""FedExP: Speeding Up Federated Averaging via Extrapolation, Jhunjhunwala et al. 2023, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.rounds import advance, delta, number, rounds
from foedus.core import Algorithm, Local, RoundContext, SiteContext, State, Total, Update
from foedus.params import Params, join
from foedus.transforms.clip import norm


def fedexp(epsilon: float = 1e-3, **task: Any) -> Algorithm:
    """FedAvg with the server's step size found anew each round: large where the sites' differences disagree.

    It is max(1, mean |d_i|^2 / (2 (|mean d_i|^2 + epsilon))), means by examples. The model that is evaluated and kept
    is the mean of the last two, as the paper advises, for the last one swings.
    """
    train = delta()

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Any]:
        local, update = train(payload.part("w"), local, site)
        assert isinstance(update, Update)
        return local, update._replace(params=join(w=update.params, n=number(norm(update.params) ** 2)))

    def step(state: State, total: Total, context: RoundContext) -> State:
        mean, squares = total.params.part("w"), float(total.params["n/value"])
        rate = max(1.0, squares / (2 * (norm(mean) ** 2 + epsilon)))
        return {"w": advance(state["w"], mean, rate), "before": state["w"]}

    return rounds(
        lambda state: join(w=state["w"], n=number()),
        work,
        step,
        lambda model: {"w": model, "before": model},
        lambda state: 0.5 * (state["before"] + state["w"]),
        ("mean",),
        **task,
    )
