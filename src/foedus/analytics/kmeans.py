"""k-means: Lloyd 1982, each step from counts and sums by cluster; several starts go side by side.
The design and the way to ask for sums may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.analytics import columns as single
from foedus.analytics import design
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Asking, Sent, Sums, ask, whole, work
from foedus.analytics.design import Coded, Wanted
from foedus.analytics.held import Held
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.keys import key
from foedus.params import Array

CLOSE = 1e-12  # of a centre's step, beside the columns' scale


class Model(NamedTuple):
    asked: Wanted
    k: int
    scale: bool
    centres: tuple[tuple[float, ...], ...]
    starts: int
    steps: int


def kmeans(
    features: str | Sequence[str],
    *,
    k: int,
    scale: bool = False,
    centres: Any = None,
    starts: int = 10,
    steps: int = 300,
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 1,
) -> Algorithm:
    """`k` clusters of the complete rows, by Lloyd's steps until no centre moves; the best of several starts.

    `centres` (k rows, in the features' own units) begin; without them `starts` draws by the run's seed from a normal
    law of the pooled means and variances. A cluster that gets empty keeps its centre. `scale`: distances over columns
    of variance 1. `.pandas`: by cluster its centre and `size`; sizes below `least` are NaN. `.per_site`: rows, used,
    and how many of each cluster. Facts: n, inertia, iterations, converged.

    Leaves a site: sums of x and x²; by start and cluster its rows, their sum, inertia. In clear sizes from `least` on.
    """
    asked = design.wanted(features=features, categories=categories, least=least)
    given = () if centres is None else tuple(tuple(map(float, row)) for row in np.asarray(centres))
    if k < 1 or starts < 1 or (given and len(given) != k):
        raise JobError(f"kmeans(k={k!r}, starts={starts!r}): both are at least 1, and centres=… has k rows")
    made = Model(asked, k, scale, given, 1 if given else starts, steps)
    return analysis(partial(_round, made), design.works(asked) | {"assign": work(partial(_assign, made))})


def _round(model: Model, state: State, context: RoundContext, every: bool = True) -> Any:
    coded = yield from design.learn(model.asked, context.cohort, every)
    here = _first(model, coded, context.seed)
    step, still = 0, False
    while step < model.steps and not still:
        step += 1
        found = yield from _ask(model, coded, here)
        counts = whole(found.of["count"])[:, :, None]
        moved = np.where(counts > 0, found.of["sum"] / np.maximum(counts, 1), here)
        still = bool(np.abs(moved - here).max() <= CLOSE)
        here = moved
    found = yield from _ask(model, coded, here)
    return _answer(model, coded, here, found, {"iterations": step, "converged": still})


def _first(model: Model, coded: Coded, seed: int) -> Array:
    """Where the starts begin, in centred and scaled columns (starts, k, terms). Raises JobError."""
    p = len(coded.terms)
    if not model.centres:
        return key(seed, 0, 0, "server", "kmeans").numpy().normal(size=(model.starts, model.k, p))
    if any(len(row) != p for row in model.centres):
        raise JobError(f"kmeans(centres=…): give {p} numbers a row, one for each of {', '.join(coded.terms)}")
    return ((np.array(model.centres) - coded.centre) / coded.scale)[None]


def _ask(model: Model, coded: Coded, centres: Array) -> Asking[Sums]:
    starts, k, p = centres.shape
    weight = np.ones(p) if model.scale else coded.scale
    payload = {**coded.payload(), "centres": centres, "weight": weight}
    return (
        yield from ask(
            "assign", coded.sites, payload, {"count": (starts, k), "sum": (starts, k, p), "inertia": (starts,)}
        )
    )


def _assign(model: Model, table: Held, payload: Mapping[str, Array]) -> Sent:
    """Each row goes to its nearest centre, the first of several."""
    x, centres, weight = design.read(model.asked, table, payload).x, payload["centres"], payload["weight"]
    starts, k, p = centres.shape
    counts, sums, inertia = np.zeros((starts, k)), np.zeros((starts, k, p)), np.zeros(starts)
    for s in range(starts):
        far = np.stack([np.square((x - centre) * weight).sum(axis=1) for centre in centres[s]], axis=1)
        nearest = far.argmin(axis=1)
        counts[s] = np.bincount(nearest, minlength=k)
        sums[s] = [x[nearest == c].sum(axis=0) for c in range(k)]
        inertia[s] = far[np.arange(len(x)), nearest].sum()
    return Sent(
        {"count": counts, "sum": sums, "inertia": inertia}, {}, {"count": single.hidden(counts, model.asked.least)}
    )


def _answer(model: Model, coded: Coded, centres: Array, found: Sums, facts: dict[str, Any]) -> Any:
    best = int(found.of["inertia"].argmin())
    own = centres[best] * coded.scale + coded.centre
    size = single.hidden(whole(found.of["count"])[best], model.asked.least)
    columns = {term: own[:, i] for i, term in enumerate(coded.terms)} | {"size": size}
    sites = {
        f"cluster {c}": [float(found.shown[s]["count"][best, c]) for s in coded.per_site] for c in range(model.k)
    }  # fmt: skip
    return answer("kmeans", {
        "pandas": Table(list(range(model.k)), columns, ("cluster",)),
        "per_site": design.per_site(coded, **sites),
    }, {"n": coded.used, "inertia": float(found.of["inertia"][best]), **facts})  # fmt: skip
