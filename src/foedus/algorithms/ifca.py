"""IFCA: An Efficient Framework for Clustered Federated Learning, Ghosh et al. 2020, algorithm 1 (model averaging).
Only the contract may come in."""

from __future__ import annotations

from typing import Any

import numpy as np

from foedus.algorithms.rounds import advance, loss, rounds
from foedus.core import Algorithm, Local, Personal, RoundContext, SiteContext, State, Total, Update
from foedus.errors import JobError
from foedus.keys import key
from foedus.params import Params, join


def ifca(clusters: int = 2, **task: Any) -> Algorithm:
    """So many models; each round a site trains the one that has the least loss on its data, and that becomes its own.

    A model becomes the mean of what its sites made of it; sites count alike. All models travel both ways. The first one
    begins as the Job's, each other as the same numbers in another order within each array, or all as a `start=` that
    is the result of such a run. What `params` gives, and a Result holds, are all models: `result.params.part("0")`.
    """
    if clusters < 1:
        raise JobError(f"ifca(clusters={clusters!r}): at least 1")
    names = [str(k) for k in range(clusters)]

    def init(params: Params) -> State:
        parts = {name: params.part(name) for name in names}
        return parts if all(map(len, parts.values())) else {name: shuffled(params, int(name)) for name in names}

    def votes(chosen: str) -> Params:
        return Params({name: np.float64(name == chosen) for name in names}, dict.fromkeys(names, "buffer"))

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        models = {name: payload.part(name) for name in names}
        best = min(names, key=lambda name: loss(site, models[name]))
        fit = site.train(models[best], site.split, site.key("train"), None)
        moved = {name: (fit.params if name == best else model) - model for name, model in models.items()}
        return best, Update(join(**moved, n=votes(best)), 1.0, fit.metrics)

    def step(state: State, total: Total, context: RoundContext) -> State:
        share = {name: float(total.params["n/" + name]) for name in names}
        return {name: moved(state[name], total.params.part(name), share[name]) for name in names}

    return rounds(
        lambda state: join(**state, n=votes("")),
        work,
        step,
        init,
        lambda state: join(**state),
        ("mean", "loss"),
        personal=Personal(lambda models, own: models.part(own), alone=True),
        **task,
    )


def moved(model: Params, mean: Params, share: float) -> Params:
    """The model after the mean of the `share` of sites that chose it; `mean` is that of all, zeros among them."""
    return advance(model, 1 / share * mean) if share else model


def shuffled(params: Params, k: int) -> Params:
    """Other first numbers, as likely as these where an array's are drawn alike."""
    if k == 0:
        return params
    orders = {name: key(0, "ifca", k, name).numpy().permutation(x.size) for name, x in params.trainable().items()}
    mixed = {name: params[name].flat[order].reshape(params[name].shape) for name, order in orders.items()}
    return params.placed(Params(mixed))
