"""SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, Karimireddy et al. 2020, algorithm 1.
Only the contract may come in."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Literal

from foedus.algorithms.rounds import Rate, advance, at, path, rounds
from foedus.core import Algorithm, Fit, Local, RoundContext, SiteContext, State, Total, Update
from foedus.errors import JobError
from foedus.params import Params, join


def scaffold(option: Literal[1, 2] = 2, rate: Rate = 1.0, **task: Any) -> Algorithm:
    """Each local gradient is corrected by c - c_i, what the server and the site know of everybody's and its own.

    `option` 1: c_i becomes the gradient at the round's model (one more pass over the data), 2: the mean of the local
    gradients, which is what (w_round - w) / (sum of step sizes) is under plain gradient descent. Sites count alike.
    """
    if option not in (1, 2):
        raise JobError(f"scaffold(option={option!r}): it is 1 or 2")

    def control(site: SiteContext, model: Params, own: Params, c: Params, fit: Fit) -> Params:
        """Equation 4."""
        if option == 1:
            return site.gradient(model, site.split.train, site.key("gradient"))
        return own - c - 1 / path(fit, "scaffold(option=2)") * (fit.params - model).trainable()

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        model, c = payload.part("w"), payload.part("c")
        own = c.zeros() if local is None else local
        shift = c - own
        fit = site.train(model, site.split, site.key("train"), lambda grads, params: grads + shift)
        new = control(site, model, own, c, fit)
        return new, Update(join(w=fit.params - model, c=new - own), 1.0, fit.metrics)

    def step(state: State, total: Total, context: RoundContext) -> State:
        """Equation 5; the mean of |S| sites is added to c by |S| / N."""
        share = total.count / len(context.roster)
        model = advance(state["w"], total.params.part("w"), at(rate, context.round))
        return {"w": model, "c": state["c"] + share * total.params.part("c")}

    def init(model: Params) -> State:
        return {"w": model, "c": model.trainable().zeros()}

    needs = ("mean", "fresh", *(["loss"] if option == 1 else []))
    return rounds(lambda state: join(**state), work, step, init, itemgetter("w"), needs, **task)
