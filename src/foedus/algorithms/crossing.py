"""Every site's model on every site's data: as rounds of which each shows one model to everybody.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from foedus.algorithms.rounds import delta
from foedus.core import Algorithm, Round, RoundContext, State, Task
from foedus.params import Params


def crossing(trainings: int = 1, **task: Any) -> Algorithm:
    """Each site trains from the same start, so often; then the rounds show the start, and each site's model in order.

    The metrics of each site in round i are a row of the matrix, so a run has one round more than there are sites. Other
    than in federated learning, a site's own model reaches the server and the other sites.
    """

    def trained(start: Params, context: RoundContext) -> Generator[Any, Any, dict[str, Params]]:
        models = dict.fromkeys(context.roster, start)
        for _ in range(trainings):
            totals = yield [Task("train", model.narrow(), [site], **task) for site, model in models.items()]
            models = {site: models[site] + total.params for site, total in zip(models, totals, strict=True)}
        return models

    def round(state: State, context: RoundContext) -> Round:
        models = state["models"] or (yield from trained(state["shown"], context))
        if context.round == 0:
            return {"models": models, "shown": state["shown"]}
        return {"models": models, "shown": models[sorted(models)[(context.round - 1) % len(models)]]}

    return Algorithm(
        lambda model: {"models": {}, "shown": model.widen()},
        round,
        {"train": delta()},
        lambda state: state["shown"].narrow(),
    )
