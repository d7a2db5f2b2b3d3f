"""Gradient boosting whose trees are those of all sites' rows together: each level is one sum of histograms.
The contract, metrics and trees may come in; what a site does is in `counting`.

Gradients are rounded to multiples of 2^-30, so that their sums are whole numbers: the model has the same bits
however the rows are divided among sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.aggregators import mean
from foedus.core import Algorithm, RoundContext, State, Task, Total, Work
from foedus.errors import JobError
from foedus.ordered import float_of
from foedus.params import Array, Params
from foedus.trees import counting, growing
from foedus.trees.model import WAYS, empty, grown, told
from foedus.trees.scoring import TreeScorer
from foedus.trees.settings import Settings, settings

FINE = 4096  # bins of the histograms from which edges are chosen
ZOOMS = 4  # times that their cuts are laid closer where rows crowd
MOST = float(np.finfo(np.float32).max)


def histogram_boosting(
    params: Mapping[str, Any],
    bins: int = 256,
    *,
    categories: Mapping[str, int | Sequence[Any]] = {},
    weight: str | None = None,
) -> Algorithm:
    """Boosted trees by XGBoost's `params`, one tree a round and class, from sums over sites (Chen and Guestrin 2016).

    A round asks the sites max_depth + 1 times for sums of gradients and Hessians by node, column and bin; the first
    round also for columns' names, least and largest values, and counts between them, from which up to `bins` - 1 edges
    are chosen at quantiles. It takes objective (binary:logistic, multi:softprob with num_class, reg:squarederror),
    max_depth, eta, lambda, alpha, gamma, min_child_weight, scale_pos_weight, base_score and monotone_constraints by
    name; gaps (NaN) go to the better side. `categories`: of columns that hold codes 0, 1, … the levels, or how many
    there are. `weight`: the column with the rows' weights in training, which is no feature. `result.save("model.json")`
    is a file that XGBoost loads. It measures itself on valid and test parts.
    """
    how = settings(params, bins, categories, weight)
    works: dict[str, Work] = {
        name: partial(getattr(counting, name), how) for name in ("size", "columns", "ends", "fine", "level", "measured")
    }
    return Algorithm(
        lambda params: {"trees": empty(how)}, partial(_round, how), works, partial(_model, how),
        ("fresh", "exact", "whole"), None, partial(_measure, how), TreeScorer(),
    )  # fmt: skip


def _model(how: Settings, state: State) -> Params:
    """The trees, the edges, and what they are about."""
    if "names" not in state:
        return Params({})
    return Params({"about": told(how, state["names"]), "edges": state["edges"], **state["trees"]})


def _round(how: Settings, state: State, context: RoundContext) -> Any:
    if "edges" not in state:
        state = yield from _edges(how, state, context)
    edges, levels = state["edges"], [dict(how.categories).get(name, 0) for name in state["names"]]
    columns = growing.Columns(edges, np.array(state["signs"]), levels)
    trees = [growing.seed(how) for _ in range(how.groups)]
    for depth in range(how.max_depth + 1):
        if not any(growing.alive(tree, depth) for tree in trees):
            break
        shape = (how.groups, 1 << depth, len(edges), how.bins + 1, 2)
        sums = yield from _sum("level", _payload(state, trees, depth), {"sums": shape}, context)
        parts = zip(trees, sums["sums"] / counting.UNITS, strict=True)
        trees = [growing.grow(tree, depth, part, columns, how) for tree, part in parts]
    return {**state, "trees": grown(state["trees"], trees)}


def _edges(how: Settings, state: State, context: RoundContext) -> Any:
    names = yield from _names(context)
    most = Params({"low": np.zeros(len(names), np.int64), "high": np.zeros(len(names), np.int64)})
    total = yield from _ask("ends", Params({}), most, context)
    low, high = -float_of(total.params["low"]), float_of(total.params["high"])
    low, high = np.where(np.isnan(low), MOST, low), np.where(np.isnan(high), -MOST, high)
    cuts = counting.fine_edges(low, high, FINE)
    shape = {"counts": (len(names), FINE)}
    counts = yield from _sum("fine", Params({"cuts": cuts}), shape, context)
    coded = [name in dict(how.categories) for name in names]
    for _ in range(ZOOMS):
        found = [counting.finer(*row, how.bins) for row in zip(cuts, counts["counts"], low, high, strict=True)]
        if all(new is None or skip for new, skip in zip(found, coded, strict=True)):
            break
        cuts = np.array([old if new is None else new for new, old in zip(found, cuts, strict=True)])
        counts = yield from _sum("fine", Params({"cuts": cuts}), shape, context)
    for said, given in (("monotone_constraints", how.monotone), ("categories", how.categories)):
        if unknown := [name for name, _ in given if name not in names]:
            raise JobError(f"{said}: there is no column {unknown[0]!r}: choose from {', '.join(names)}")
    signs = [dict(how.monotone).get(name, 0) for name in names]
    last = np.where(low <= high, high + abs(high) + 1e-5, np.inf)  # beyond all values: what is left of it are the gaps
    chosen = [_chosen(*row, how.bins) for row in zip(counts["counts"], cuts, last, strict=True)]
    edges = np.array(chosen, np.float32)
    for name, levels in how.categories:  # a bin for each code
        edges[names.index(name)] = [*range(1, levels), *[np.inf] * (how.bins - levels)]
    return {**state, "names": names, "signs": signs, "edges": edges}


def _names(context: RoundContext) -> Any:
    total = yield from _ask("size", Params({}), Params({"size": np.int64(0)}), context)
    size = np.int64(total.params["size"])
    text = Params({"names": np.zeros(size), "digest": np.zeros(32)})
    total = yield from _ask("columns", Params({"size": size}), text, context)
    shown = {outcome.site: outcome.metrics for outcome in total.outcomes if outcome.metrics}
    return counting.named(_sums(total), total.count, shown)


def _chosen(counts: Array, cuts: Array, last: float, bins: int) -> Array:
    """At most bins - 2 of the cuts, each at a quantile, and the last one; infinite where there are fewer."""
    below = counts.cumsum()[:-1]
    between = np.flatnonzero((below > 0) & (below < below[-1] + counts[-1]))  # cuts with rows on either side
    shares = np.unique(below[between], return_index=True)
    between, below = between[shares[1]], shares[0]
    wanted = np.arange(1, bins - 1) * (counts.sum() / (bins - 1))
    near = np.unique(np.searchsorted(below, wanted).clip(max=max(0, len(below) - 1)))
    picked = between if len(between) < bins - 1 else between[near]
    return np.concatenate([cuts[picked], [last], np.full(bins - 2 - len(picked), np.inf)])


def cut(values: Array, bins: int) -> Array:
    """The edges that a column's values alone would have, (bins - 1,): at quantiles, infinite where there are fewer."""
    there = values[~np.isnan(values)].astype(np.float64)
    low, high = (there.min(), there.max()) if len(there) else (MOST, -MOST)
    (cuts,) = counting.fine_edges(np.array([low]), np.array([high]), FINE)
    counts = counting.between(cuts, values)
    for _ in range(ZOOMS):
        if (new := counting.finer(cuts, counts, low, high, bins)) is None:
            break
        cuts, counts = new, counting.between(new, values)
    return _chosen(counts, cuts, high + abs(high) + 1e-5 if low <= high else np.inf, bins)


def _payload(state: State, new: Sequence[growing.Tree], depth: int) -> Params:
    trees = {f"trees/{name}": x for name, x in state["trees"].items()}
    now = {f"tree/{name}": np.array([getattr(tree, name) for tree in new]) for name in WAYS}
    return Params({"edges": state["edges"], "depth": np.int64(depth), **now, **trees})


def _sum(name: str, payload: Params, shapes: Mapping[str, tuple[int, ...]], context: RoundContext) -> Any:
    """The sums, whole numbers, of what all sites of the round answer."""
    total = yield from _ask(name, payload, Params({name: np.zeros(shape) for name, shape in shapes.items()}), context)
    return _sums(total)


def _ask(name: str, payload: Params, like: Params, context: RoundContext) -> Any:
    """The Total of what all sites of the round answer: means of floats, the largest of whole numbers."""
    return (yield Task(name, payload, context.cohort, mean(), len(context.cohort), late="drop", returns=like.spec))


def _sums(total: Total) -> dict[str, Array]:
    return {name: np.rint(total.count * np.asarray(x)) for name, x in total.params.items()}


def _measure(how: Settings, state: State, context: RoundContext) -> Any:
    yield Task("measured", _model(how, state), context.cohort, returns=())
    return state
