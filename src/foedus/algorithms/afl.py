"""AFL: Agnostic Federated Learning, Mohri et al. 2019, algorithm 1 (Stochastic-AFL); local training is the step in w.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.algorithms.rounds import advance, loss, traits_of
from foedus.core import Algorithm, Local, RoundContext, SiteContext, State, Task, Update
from foedus.params import Params, join


def afl(rate: float = 0.1, **task: Any) -> Algorithm:
    """The best model for the worst mixture of sites: w goes down the weighted losses, the weights go up them.

    Each round w = w + sum l_i d_i and l = projection(l + rate F), with F the losses at the round's model; l stays on
    the simplex and begins with equal weights. Every site is asked, and reads all weights.
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        model, weights = payload.part("w"), payload.part("l")
        found = loss(site, model)
        fit = site.train(model, site.split, site.key("train"), None)
        losses = Params({name: np.float64(found if name == site.name else 0) for name in weights}, weights.kinds)
        pulled = (fit.params - model).map(lambda x: x * x.dtype.type(weights[site.name]))
        return local, Update(join(w=pulled, l=losses), 1.0, fit.metrics)

    def round(state: State, context: RoundContext) -> Any:
        weights = weights_of(state["l"], context.roster)
        here = Params({name: np.float64(x) for name, x in weights.items()}, dict.fromkeys(weights, "buffer"))
        total = yield Task("train", join(w=state["w"].narrow(), l=here), context.roster, **task)
        losses = {name: total.count * float(x) for name, x in total.params.part("l").items()}
        moved = total.count * total.params.part("w").trainable()
        new = projection([weights[name] + rate * losses[name] for name in weights])
        model = advance(state["w"], total.params.part("w"), 1.0, moved)
        return {"w": model, "l": dict(zip(weights, new, strict=True))}

    return Algorithm(
        lambda params: {"w": params.widen(), "l": {}},
        round,
        {"train": work},
        lambda state: state["w"].narrow(),
        traits_of(("mean", "fresh", "everybody", "loss"), task),
    )


def weights_of(known: Mapping[str, float], roster: Sequence[str]) -> dict[str, float]:
    """The weights of those who are there; who is new has that of an average site, and the sum is 1."""
    found = {name: known.get(name, 1 / len(roster)) for name in roster}
    total = sum(found.values())
    return {name: x / total for name, x in found.items()} if total else dict.fromkeys(roster, 1 / len(roster))


def projection(x: Sequence[float]) -> list[float]:
    """The nearest point of the simplex (Duchi et al. 2008, figure 1)."""
    down = sorted(x, reverse=True)
    sums = np.cumsum(down)
    last = max(i for i, value in enumerate(down) if value > (sums[i] - 1) / (i + 1))
    return [max(0.0, float(value - (sums[last] - 1) / (last + 1))) for value in x]
