"""The helper that most algorithms are made with: `round` from (share, work, step).
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foedus.core import Algorithm, Correct, Local, RoundContext, SiteContext, State, Task, Total, Update, Work
from foedus.params import Params

Correction = Callable[[Params], Correct]  # built from the round's trainable arrays


def rounds(
    share: Callable[[State], Params],
    work: Work,
    step: Callable[[State, Total, RoundContext], State],
    init: Callable[[Params], State] = lambda params: params,
    params: Callable[[State], Params] = lambda state: state,
    **task: Any,
) -> Algorithm:
    """An Algorithm that sends `share(state)` to the cohort, has `work` done, and takes one `step` with the Total.

    State holds float32 masters of half-precision arrays; sites get and return the model's own dtypes.
    `task` may set the Task's aggregator, quorum, late, busy, deadline.
    """

    def round(state: State, context: RoundContext) -> Any:
        total = yield Task("train", share(state).narrow(), context.cohort, **task)
        return step(state, total, context)

    return Algorithm(lambda p: init(p.widen()), round, {"train": work}, lambda state: params(state).narrow())


def delta(correct: Correction | None = None) -> Work:
    """Work that trains from the payload and returns the difference, weighted by the examples seen.

    `correct`, given the round's model, returns what happens to each gradient: (grads, params) -> grads.
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        correction = correct(payload.trainable()) if correct else None
        fit = site.train(payload, site.split, site.key("train"), correction)
        return local, Update(fit.params - payload, fit.examples, fit.metrics)

    return work
