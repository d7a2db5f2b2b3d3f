"""Fine-tuning after training: Federated Evaluation of On-device Personalization, Wang et al. 2019, section 3.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.fedavg import fedavg
from foedus.core import Algorithm, Local, Personal, RoundContext, SiteContext, State, Task, Update
from foedus.errors import JobError
from foedus.params import Params


def fine_tuned(base: Algorithm | None = None, after: int = 0, **task: Any) -> Algorithm:
    """`base` (fedavg) for `after` rounds; in each round from then on all sites train the model that came of it.

    A site goes on from its own model and sends nothing; the global one stays what it is. With `after=0` and a Job's
    `start=…`, a model that is there already is tuned.
    """
    inner = base or fedavg()
    if inner.personal is not None:
        raise JobError("fine_tuned(base): this base gives its sites models of their own already; use it as it is")

    def tune(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        fit = site.train(payload if local is None else local, site.split, site.key("tune"), None)
        return fit.params, Update(Params({}), fit.examples, fit.metrics)

    def round(state: State, context: RoundContext) -> Any:
        if context.round < after:
            return (yield from inner.round(state, context))
        yield Task("tune", inner.params(state), context.roster, returns=(), **task)
        return state

    return inner._replace(
        round=round,
        works={**inner.works, "tune": tune},
        traits=(*inner.traits, f"after {after}"),
        personal=Personal(lambda model, own: own, "tune"),
    )
