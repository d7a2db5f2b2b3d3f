"""Gossip: Can Decentralized Algorithms Outperform Centralized Algorithms? Lian et al. 2017, algorithm 1 (D-PSGD).
Lines 4 and 5 are exchanged, as the paper allows: a site trains, then averages. Only aggregators may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.aggregators import each
from foedus.algorithms.fedavg import fedavg
from foedus.algorithms.graphs import Graph, given, metropolis, ring
from foedus.algorithms.mixing import by_itself, mixed, stateful
from foedus.algorithms.sealed_gossip import sealed_gossip
from foedus.core import Algorithm, Decline, Local, Personal, RoundContext, SiteContext, State, Task, Update
from foedus.keys import key
from foedus.params import Params, join


def gossip(
    base: Algorithm | None = None, graph: Graph | Mapping[str, Sequence[str]] = ring, sealed: bool = False, **task: Any
) -> Algorithm:
    """No model is everybody's: each site trains its own as `base` does, and averages it with its neighbours'.

    `graph`: `fd.ring`, `fd.grid`, `fd.random_rings(2)`, {site: its neighbours}, or a function (names, key) -> edges. It
    is drawn over the sites of each round, so that nobody waits for those who are gone. The weights are those of
    Metropolis and Hastings. The server hands messages on and mixes nothing; the global model is the mean of all.
    `sealed`: messages are encrypted between sites, and what a run ends with is at the sites alone.
    """
    method = fedavg() if base is None else base
    drawn = given(graph) if isinstance(graph, Mapping) else graph
    if sealed:
        return sealed_gossip(method, drawn, task)

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
        known = local or {"model": None, "base": None}
        own = _averaged(payload, known["model"]) if "shares/" in payload else payload.widen()
        kept, update, model = by_itself(method, own, known["base"], site)
        if isinstance(update, Decline):
            return local, update
        return {"model": model, "base": kept}, Update(model.narrow(), update.weight, update.metrics)

    def round(state: State, context: RoundContext) -> Any:
        models, start = state["models"], state["mean"].narrow()
        edges = drawn(context.cohort, key(context.seed, context.round, 0, "server", "graph"))
        rows = metropolis(edges, context.cohort)
        letters = {name: _letter(name, row, models) for name, row in rows.items() if name in models}
        total = yield Task("train", start, context.cohort, each(), returns=start.spec, letters=letters, **task)
        heard = {name: x for name, x in models.items() if name in context.roster} | dict(total.apart)
        return {"models": heard, "mean": mixed([x.widen() for x in heard.values()], [1.0] * len(heard))}

    return Algorithm(
        lambda params: {"models": {}, "mean": params.widen()},
        round,
        {"train": work},
        lambda state: state["mean"].narrow(),
        ("gossip", *method.traits, *stateful(method), *(["personal base"] if method.personal else [])),
        Personal(lambda mean, local: local["model"].narrow()),
    )


def _letter(name: str, row: Mapping[str, float], models: Mapping[str, Params]) -> Params:
    """What the neighbours said last, and how much it weighs; the share of who said nothing yet falls to the site."""
    heard = [other for other in row if other != name and other in models]
    shares = [1 - sum(row[other] for other in heard), *(row[other] for other in heard)]
    weights = Params({"": np.array(shares, np.float64)}, {"": "buffer"})
    return join(shares=weights, **{str(i): models[x] for i, x in enumerate(heard)})


def _averaged(letter: Params, own: Params) -> Params:
    shares = letter["shares/"].tolist()
    return mixed([own, *(letter.part(str(i)).widen() for i in range(len(shares) - 1))], shares)
