"""FedOpt: Adaptive Federated Optimization, Reddi et al. 2021, algorithms 1 and 2 (there is no correction of bias).
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from foedus.algorithms.optimizers import of_optax, of_torch
from foedus.algorithms.rounds import Correction, Rate, advance, at, delta, rounds
from foedus.core import Algorithm, RoundContext, State, Total
from foedus.errors import JobError
from foedus.params import Array, Params


class ServerOptimizer(NamedTuple):
    """What the server does with the mean difference; pure functions over the trainable arrays and a plain state."""

    init: Callable[[Params], State]  # (model) -> state
    step: Callable[..., tuple[State, Params]]  # (state, mean difference, model=None) -> (state, the way to go)


def fedopt(optimizer: Any, rate: Rate = 1.0, correct: Correction | None = None, **task: Any) -> Algorithm:
    """FedAvg whose server goes `rate` times the way that an optimizer finds in the mean difference.

    `optimizer`: a ServerOptimizer; a function parameters -> torch optimizer, as `partial(torch.optim.AdamW, lr=0.01)`;
    or an optax transformation, as `optax.adam(0.01)`. The last two take minus the mean difference as the gradient.
    `rate` may be a schedule: round (from 0) -> step size. Buffers take the mean difference as it is.
    """
    chosen = _chosen(optimizer)

    def step(state: State, total: Total, context: RoundContext) -> State:
        model, mean = state["model"], total.params
        kept, way = chosen.step(state["optimizer"], mean.trainable(), model.trainable())
        return {"model": advance(model, mean, at(rate, context.round), way), "optimizer": kept}

    def init(model: Params) -> State:
        return {"model": model, "optimizer": chosen.init(model.trainable())}

    return rounds(itemgetter("model"), delta(correct), step, init, itemgetter("model"), **task)


def adaptive(second: Callable[[Array, Array], Array], beta1: float, tau: float) -> ServerOptimizer:
    """Algorithm 2 with `second(v, squared difference)` as its new v, which begins at tau squared."""

    def init(model: Params) -> State:
        return {"m": model.zeros(), "v": model.map(lambda x: np.full_like(x, tau**2))}

    def step(state: State, mean: Params, model: Params | None = None) -> tuple[State, Params]:
        m = beta1 * state["m"] + (1 - beta1) * mean
        v = state["v"].map(lambda v, d: second(v, np.square(d)), mean)
        return {"m": m, "v": v}, m.map(lambda m, v: m / (np.sqrt(v) + tau), v)

    return ServerOptimizer(init, step)


def _chosen(optimizer: Any) -> ServerOptimizer:
    if isinstance(optimizer, ServerOptimizer):
        return optimizer
    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        return ServerOptimizer(*of_optax(optimizer))
    if callable(optimizer):
        return ServerOptimizer(*of_torch(optimizer))
    raise JobError(
        f"fedopt({optimizer!r}): give a torch optimizer as partial(torch.optim.AdamW, lr=0.01), "
        "an optax transformation, or a foedus.algorithms.ServerOptimizer"
    )
