"""Models that are sums over examples: one round of sums has the model of all examples at once, exactly.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.rounds import rounds
from foedus.core import Algorithm, Local, RoundContext, SiteContext, State, Total, Update
from foedus.params import Params


def summed(**task: Any) -> Algorithm:
    """What the sites' trainings return is added up and takes the global model's place: trainable arrays are sums.

    Buffers are means (a point that all sites count from), whole numbers the largest. It is for learners whose models
    are sums, such as `foedus.sklearn` has of naive Bayes, k-means, PCA and linear regression; who is not asked is not
    in them. A second round counts from the first one's means, for models that say so.
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        fit = site.train(payload, site.split, site.key("train"), None)
        return local, Update(fit.params, 1.0, fit.metrics)

    def step(state: State, total: Total, context: RoundContext) -> State:
        return total.params.map(lambda x: x * x.dtype.type(total.count))

    return rounds(lambda state: state, work, step, traits=("mean", "fresh", "sums"), **task)
