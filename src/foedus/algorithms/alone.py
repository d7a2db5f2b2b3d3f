"""Training alone: no federation at all, as the reference that each method has to beat at each site.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.rounds import Correction
from foedus.core import Algorithm, Local, Personal, RoundContext, SiteContext, State, Task, Update
from foedus.params import Params


def alone(correct: Correction | None = None, **task: Any) -> Algorithm:
    """Each site goes on training a model of its own, from the same start, and sends nothing but its metrics.

    The global model stays what it was; that of a site has metrics with `personal_` before their names.
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        model = payload if local is None else local["model"]
        fit = site.train(model, site.split, site.key("train"), correct(model.trainable()) if correct else None)
        return {"model": fit.params}, Update(Params({}), fit.examples, fit.metrics)

    def round(state: State, context: RoundContext) -> Any:
        yield Task("train", state, context.cohort, returns=(), **task)
        return state

    own = Personal(lambda model, local: local["model"], alone=True)
    return Algorithm(lambda model: model, round, {"train": work}, personal=own)
