"""The helper that most algorithms are made with: `round` from (share, work, step).
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from foedus.core import (
    Algorithm,
    Correct,
    Fit,
    Gather,
    Local,
    Personal,
    RoundContext,
    SiteContext,
    State,
    Task,
    Total,
    Update,
    Work,
)
from foedus.errors import JobError
from foedus.params import Array, Params, Spec

Correction = Callable[[Params], Correct]  # built from the round's trainable arrays
Rate = float | Callable[[int], float]  # a step size, or a schedule: round (from 0) -> step size


def rounds(
    share: Callable[[State], Params],
    work: Work,
    step: Callable[[State, Total, RoundContext], State],
    init: Callable[[Params], State] = lambda params: params,
    params: Callable[[State], Params] = lambda state: state,
    traits: Sequence[str] = (),
    returns: Callable[[Params], Spec] | None = None,
    personal: Personal | None = None,
    **task: Any,
) -> Algorithm:
    """An Algorithm that sends `share(state)` to the cohort, has `work` done, and takes one `step` with the Total.

    State holds float32 masters of half-precision arrays; sites get and return the model's own dtypes.
    `task` may set the Task's aggregator, quorum, late, busy, deadline. `traits`: see `traits_of`.
    `returns` says what comes back, given what is sent: by default the same arrays. `personal`: sites have models of
    their own.
    """

    def round(state: State, context: RoundContext) -> Any:
        payload = share(state).narrow()
        total = yield Task("train", payload, context.cohort, returns=returns and returns(payload), **task)
        return step(state, total, context)

    return Algorithm(
        lambda p: init(p.widen()),
        round,
        {"train": work},
        lambda state: params(state).narrow(),
        traits_of(traits, task),
        personal,
    )


def traits_of(needs: Sequence[str], task: Mapping[str, Any]) -> tuple[str, ...]:
    """What an algorithm needs, in the words of `incompatible.py`, and what its Tasks are.

    It may need `mean` (its equations hold for means alone), `fresh` (no late updates), `everybody` (each round asks all
    sites), `loss` (a learner that knows one), `term` (one that adds a term to it), `elsewhere` (one that gives
    gradients at two models), `sums` or `union` (a learner whose models are that), `after N` (so many rounds before
    those of `fine_tuned`). Its Tasks may be `gather` or `late`, and `least N`, where their aggregator needs N updates;
    `buffer N`, where N updates close them, and `ages`, where old updates weigh less. What wraps it may add `sparse`,
    `colludes`, `chooses` and `clip C`. Algorithms without `rounds` may say `exchange` (what they send is no update),
    `columns` (sites hold columns) and `cut` (a network in pieces). Any may say `tells NAME`, see `tells`.
    """
    rule = task.get("aggregator")
    gather = ["gather", f"least {rule.least}"] if isinstance(rule, Gather) else []
    late = ["late"] if task.get("late") == "keep" else []
    return (*needs, *gather, *late)


def tells(traits: Sequence[str]) -> list[str]:
    """The names of sums that an algorithm's works return beside the Job's metrics, by its traits `tells NAME`."""
    return [trait.removeprefix("tells ") for trait in traits if trait.startswith("tells ")]


def needed(traits: Sequence[str]) -> int:
    """How many updates each Total needs, by the traits of an algorithm."""
    return max((int(trait.removeprefix("least ")) for trait in traits if trait.startswith("least ")), default=1)


def delta(correct: Correction | None = None) -> Work:
    """Work that trains from the payload and returns the difference, weighted by the examples seen.

    `correct`, given the round's model, returns what happens to each gradient: (grads, params) -> grads.
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        correction = correct(payload.trainable()) if correct else None
        fit = site.train(payload, site.split, site.key("train"), correction)
        return local, Update(fit.params - payload, fit.examples, fit.metrics)

    return work


def advance(model: Params, mean: Params, rate: float = 1.0, way: Params | None = None) -> Params:
    """`model` after a step: trainable arrays go `rate` times `way` (by default the mean difference), buffers all of it.

    So running averages stay averages, whatever the step size.
    """
    return model + scaled(mean, rate, way)


def scaled(mean: Params, rate: float, way: Params | None = None) -> Params:
    """`mean` with `rate` times `way` (by default its own) as its trainable arrays, and all else as it is."""
    moved = rate * (mean.trainable() if way is None else way)
    return Params.of(mean.spec, {g: moved.flats.get(g, x) for g, x in mean.flats.items()})


def at(rate: Rate, round: int) -> float:
    """The step size of a round."""
    return float(rate(round)) if callable(rate) else rate


def number(value: float = 0.0) -> Params:
    """A number that travels beside arrays: `join(w=model, n=number())`, and its mean is `total.params["n/value"]`."""
    return Params({"value": np.float64(value)}, {"value": "buffer"})


def path(fit: Fit, method: str) -> float:
    """The sum of the fit's step sizes. Raises JobError where the training loop gave none."""
    if not fit.path > 0:
        remedy = "call ctx.correct(…, lr=…) before each step, or take a learner with loss=… and optimizer=…"
        raise JobError(f"{method} needs the size of each local step, and this training loop gave none: {remedy}")
    return fit.path


def loss(site: SiteContext, model: Params) -> float:
    """The mean loss of `model` on the site's training part, as in evaluation. Raises JobError without one."""
    sums = losses(site, model)
    return float(sums[0] / sums[1])


def losses(site: SiteContext, model: Params) -> Array:
    """The sums of which `loss` is the mean: [sum, examples, sum of squares]. Raises JobError without a loss."""
    sums = site.evaluate(model, site.split.train, ["loss"])
    if "loss" not in sums:
        raise JobError("the loss of each site is read here, and this learner has none: give it one")
    found: Array = sums["loss"]
    return found
