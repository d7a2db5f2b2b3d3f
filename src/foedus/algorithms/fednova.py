"""FedNova: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, Wang et al. 2020, §4.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.rounds import Rate, advance, at, number, path, rounds
from foedus.core import Algorithm, Fit, Local, RoundContext, SiteContext, State, Total, Update
from foedus.params import Params, join


def fednova(rate: Rate = 1.0, momentum: float = 0.0, **task: Any) -> Algorithm:
    """FedAvg of differences a step, times the mean number of steps: who takes more local steps does not pull harder.

    With p_i a site's share of the examples and a_i its steps: w = w + (sum p_i a_i) (sum p_i d_i / a_i). Steps count
    by their sizes; `momentum` is that of the local optimizer, under which early gradients count more often.
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        model = payload.part("w")
        fit = site.train(model, site.split, site.key("train"), None)
        a = path(fit, "fednova") * often(fit, momentum)
        moved = (fit.params - model).map(lambda x: x / x.dtype.type(a))
        return local, Update(join(w=moved, a=number(a)), fit.examples, fit.metrics)

    def step(state: State, total: Total, context: RoundContext) -> State:
        a = float(total.params["a/value"])
        return advance(state, total.params.part("w"), at(rate, context.round) * a)

    return rounds(lambda state: join(w=state, a=number()), work, step, traits=("mean",), **task)


def often(fit: Fit, momentum: float) -> float:
    """How often a local gradient counts on average: the norm of a_i in section 4, divided by the steps."""
    steps, m = fit.steps, momentum
    return (steps - m * (1 - m**steps) / (1 - m)) / (1 - m) / steps
