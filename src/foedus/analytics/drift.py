"""Where a site's columns are distributed otherwise than those of the others.
Quantiles and the columns of all sites by kind may come in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.analytics import quantiles
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Sent, ask, unpacked, work
from foedus.analytics.held import Held
from foedus.analytics.levels import (
    Asked,
    Known,
    asked_for,
    known_columns,
    moments,
    numbers_of,
    shapes_of,
    values_of,
    works,
)
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array


def drift(
    columns: str | Sequence[str] = (),
    *,
    categories: Mapping[str, Sequence[Any]] | None = None,
    bins: int = 10,
    least: int = 5,
) -> Algorithm:
    """Where a site's columns are distributed otherwise than those of all other sites together.

    Numbers, and the years of dates, are counted between `bins` quantiles of all. `.pandas`: by column and site `psi`,
    the population stability index (sum of (p - q) log(p / q), each count and a half; 0.1 is small, 0.25 much); `ks`,
    the largest difference of the cumulative shares at those quantiles; `difference`, of the means over the standard
    deviation of all (numbers); `missing`, the difference of the shares of gaps. NaN for a site with fewer than `least`
    values.

    Leaves a site: those counts, sums and squares, in clear; the levels of texts as in `table_one`. Fact: `free_text`.
    """
    asked = asked_for(columns, categories, least)
    if not isinstance(bins, int) or not 2 <= bins <= 100:
        raise JobError(f"drift(bins={bins!r}): give a whole number from 2 to 100")
    made = {"shape": work(partial(_shape, asked)), **quantiles.works(partial(values_of, least)), **works(asked)}
    return analysis(partial(_drift, asked, bins), made)


def _shape(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    found, edges = moments(table, payload, asked.least), payload["edges"]
    numbers = numbers_of(table, unpacked(payload["numbers"]), asked.least)
    inside = [
        np.bincount(np.searchsorted(edge[np.isfinite(edge)], x, "left"), minlength=len(edge) + 1)
        for (x, _), edge in zip(numbers, edges, strict=True)
    ]
    found["inside"] = np.array(inside, np.float64).reshape(len(edges), edges.shape[1] + 1)
    return Sent(found, {}, found)


def _drift(asked: Asked, bins: int, state: State, context: RoundContext, every: bool = True) -> Any:
    known = yield from known_columns(asked, context, every)
    n, cuts = len(known.numbers), np.arange(1, bins) / bins
    grid = np.zeros((0, bins - 1))
    if n:
        search = quantiles.Asked(tuple(known.numbers), tuple(cuts), 0.0, asked.least)
        grid, _ = yield from quantiles.grid(search, known.sites)
    edges = np.array([np.append(np.unique(row), np.full(bins - 1 - len(np.unique(row)), np.inf)) for row in grid])
    shapes = shapes_of(known) | {"inside": (n, bins)}
    found = yield from ask("shape", known.sites, {**known.payload(), "edges": edges.reshape(n, bins - 1)}, shapes)
    if not found.shown:
        raise JobError("drift says where single sites differ, which secagg hides: run it with privacy='none'")
    mean = found.of["sum"] / np.maximum(found.of["count"][:n], 1)
    between = [x["count"][:n] * (x["sum"] / np.maximum(x["count"][:n], 1) - mean) ** 2 for x in found.shown.values()]
    whole_ = {**found.of, "squares": found.of["squares"] + np.sum(between, axis=0)}  # about the mean of all
    lines: list[tuple[Any, list[float]]] = []
    for site, own in sorted(found.shown.items()):
        lines += [((name, site), line) for name, line in _apart(known, whole_, own, asked.least)]
    order = {name: i for i, name in enumerate(known.columns)}
    lines.sort(key=lambda line: (order[line[0][0]], line[0][1]))
    names = ("psi", "ks", "difference", "missing")
    return answer("drift", {
        "pandas": Table([at for at, _ in lines], {name: np.array([x[i] for _, x in lines]) for i, name in
                                                  enumerate(names)}, ("column", "site")),
        "per_site": Table(sorted(found.shown), {"rows": [int(x["rows"]) for _, x in sorted(found.shown.items())]},
                          ("site",)),
    }, {"sites": len(known.sites), "free_text": known.free})  # fmt: skip


def _apart(
    known: Known, of: Mapping[str, Array], own: Mapping[str, Array], least: int
) -> Iterator[tuple[str, list[float]]]:
    """Of each column how a site differs from the others."""
    places = np.cumsum([0, *(len(levels) for levels in known.levels.values())])
    for i, name in enumerate(known.columns):
        numeric, at = i < len(known.numbers), i - len(known.numbers)
        where: Any = i if numeric else slice(places[at], places[at + 1])
        mine, every = (np.asarray(x["inside" if numeric else "cells"])[where] for x in (own, of))
        n, m = own["count"][i], of["count"][i] - own["count"][i]
        if min(n, m) < max(1, least):
            yield name, [math.nan] * 4
            continue
        gap = math.nan
        if numeric:
            apart = own["sum"][i] / n - (of["sum"][i] - own["sum"][i]) / m
            gap = apart / math.sqrt(of["squares"][i] / (n + m)) if of["squares"][i] > 0 else 0.0
        gaps = [float(x["missing"][i] / max(1.0, x["missing"][i] + x["count"][i])) for x in (own, _less(of, own))]
        yield name, [*index(mine, every - mine), gap, gaps[0] - gaps[1]]


def _less(of: Mapping[str, Array], own: Mapping[str, Array]) -> dict[str, Array]:
    return {name: of[name] - own[name] for name in ("missing", "count")}


def index(a: Array, b: Array) -> list[float]:
    """The population stability index of two counts by cell, and the largest difference of their cumulative shares.

    Here thirds and two thirds: 2/3 log 2, and 10 / 29.

    >>> [round(x, 4) for x in index(np.array([9.5, 19.5]), np.array([19.5, 9.5]))]
    [0.4621, 0.3448]
    """
    p, q = ((x + 0.5) / (x + 0.5).sum() for x in (a, b))
    apart = np.abs(np.cumsum(a / a.sum()) - np.cumsum(b / b.sum())).max(initial=0)
    return [float(((p - q) * np.log(p / q)).sum()), float(apart)]
