"""Models that are made of pieces: each site adds its own, as trees to a forest, and nothing is averaged.
Only the contract and aggregators may come in."""

from __future__ import annotations

from typing import Any

from foedus.aggregators import each
from foedus.algorithms.rounds import rounds
from foedus.core import Algorithm, Local, Opened, RoundContext, SiteContext, State, Total, Update
from foedus.errors import JobError
from foedus.params import Params


def union(learner: Any, **task: Any) -> Algorithm:
    """Each round every site trains a piece, and the model becomes what it was joined with all pieces, by site's name.

    `learner` is the Job's: a forest of `foedus.sklearn` or a LightGBMLearner. What a site returns is checked before it
    counts. `fd.cyclic(fd.union(learner))` has one site after another add to what those before it made. A site's piece
    reaches the server, and all sites in the joined model.
    """
    if getattr(learner, "by", None) != "union":
        raise JobError(f"union({type(learner).__name__}): give the Job's learner, a forest or a LightGBMLearner")

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        fit = site.train(payload, site.split, site.key("train"), None)
        return local, Update(fit.params, fit.examples, fit.metrics)

    def step(state: State, total: Total, context: RoundContext) -> State:
        weights = {outcome.site: outcome.weight for outcome in total.outcomes}
        pieces = [(weights[site], piece) for site, piece in sorted(total.apart.items())]
        return learner.joined(state, [piece for _, piece in pieces], [w / total.weight for w, _ in pieces])

    made = rounds(
        lambda state: state,
        work,
        step,
        returns=lambda payload: learner.piece,
        aggregator=each()._replace(opened=Opened(learner.piece, learner.checked)),
        **task,
    )
    return made._replace(traits=("fresh", "union"))
