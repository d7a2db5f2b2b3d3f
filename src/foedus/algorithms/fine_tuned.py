"""Fine-tuning after training: Federated Evaluation of On-device Personalization, Wang et al. 2019, section 3.
Only the contract may come in."""

from __future__ import annotations

from typing import Any

from foedus.algorithms.fedavg import fedavg
from foedus.core import Algorithm, Local, Personal, RoundContext, SiteContext, State, Task, Update
from foedus.params import Params

TUNED = "fine_tuned"  # where a site keeps its model, in place of what the base kept


def fine_tuned(base: Algorithm | None = None, after: int = 0, **task: Any) -> Algorithm:
    """`base` (fedavg) for `after` rounds; in each round from then on all sites train the model that came of it.

    A site goes on from its own model and sends nothing; the global one stays what it is. With `after=0` and a Job's
    `start=…`, a model that is there already is tuned. A base that gives sites models of their own (`fedper`, `fedbn`,
    …) leaves each with the whole of its own, all of which is trained on.
    """
    inner = base or fedavg()
    first = inner.personal or Personal(lambda model, own: model, "tune")

    def own(model: Params, local: Local) -> Params:
        if isinstance(local, dict) and TUNED in local:
            return local[TUNED]  # type: ignore[no-any-return]
        return model if local is None else first.model(model, local)

    def tune(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        if int(site.key.names[1]) < after:  # a round of the base, whose work has this one in its place
            return inner.works[first.work](payload, local, site)  # type: ignore[return-value]
        fit = site.train(own(payload, local), site.split, site.key("tune"), None)
        return {TUNED: fit.params}, Update(Params({}), fit.examples, fit.metrics)

    def round(state: State, context: RoundContext) -> Any:
        if context.round < after:
            return (yield from inner.round(state, context))
        yield Task(first.work, inner.params(state), context.roster, returns=(), **task)
        return state

    return inner._replace(
        round=round,
        works={**inner.works, first.work: tune},
        traits=(*inner.traits, f"after {after}"),
        personal=first._replace(model=own),
    )
