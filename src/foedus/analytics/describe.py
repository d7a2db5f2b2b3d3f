"""What columns hold, at each site and at all: counts, gaps, sums, moments and extremes (Chan, Golub and LeVeque 1983).
What a site holds and the way to ask for sums may come in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.analytics import columns as single
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Sent, ask, packed, unpacked, whole, work
from foedus.analytics.held import Held, column
from foedus.core import Algorithm, RoundContext, State
from foedus.ordered import NOTHING, float_of, whole_of
from foedus.params import Array

ENOUGH = 5  # dates, for the first and the last year of which to be told
SHOWN = ("count", "missing", "sum", "squares", "min", "max")


def describe(columns: str | Sequence[str] = (), *, extremes: bool = True, least: int = 1) -> Algorithm:
    """Count, gaps, sum, mean, variance (of n - 1), standard deviation, least and largest value of each column.

    Without `columns`, of all that any site has. Texts have a count and gaps alone. A date counts as its year; the least
    and largest are those at or beyond which a site has five dates (`least`, where that is more). `least`: a site's
    column with fewer values is left out of its answer and of all sums. `extremes=False` keeps the least and largest
    value, each of which is somebody's, at the site. `.pandas`: by column; `.per_site`: by site and column.

    Leaves a site: for each column its count, gaps, sum, sum of squares about the mean, and extremes, in clear.
    """
    names = single.chosen(columns, least)
    works = {
        **single.naming(names, least),
        "moments": work(partial(_moments, least, extremes)),
        "spread": work(partial(_spread, least)),
    }
    return analysis(partial(_round, names), works)


def _round(names: tuple[str, ...], state: State, context: RoundContext, every: bool = True) -> Any:
    kinds, sites = yield from single.named(names, context.cohort, every)
    payload = {"columns": packed(list(kinds))}
    n = (len(kinds),)
    first = yield from ask("moments", sites, payload, {"count": n, "missing": n, "sum": n}, {"least": n, "most": n})
    count = whole(first.of["count"])
    mean = _over(first.of["sum"], count)
    second = yield from ask("spread", sites, {**payload, "mean": np.nan_to_num(mean)}, {"squares": n})
    ends = -float_of(first.most["least"]), float_of(first.most["most"])
    pooled = _columns(kinds, count, whole(first.of["missing"]), first.of["sum"], second.of["squares"], *ends)
    per_site = [_columns(kinds, *(np.asarray(first.shown[s][word]) for word in SHOWN)) for s in sorted(first.shown)]
    return answer("describe", {
        "pandas": Table(list(kinds), pooled, ("column",)),
        "per_site": Table(
            [(s, c) for s in sorted(first.shown) for c in kinds],
            {k: [x for found in per_site for x in found[k]] for k in pooled}, ("site", "column"),
        ),
    }, {"sites": len(sites)})  # fmt: skip


def _columns(
    kinds: Mapping[str, str], count: Array, missing: Array, total: Array, squares: Array, low: Array, high: Array
) -> dict[str, Any]:
    var = _over(squares, count - 1)
    number = np.array([kind in ("number", "date") for kind in kinds.values()])
    floats = {"sum": total, "mean": _over(total, count), "var": var, "std": np.sqrt(var), "min": low, "max": high}
    return {"count": count, "missing": missing} | {k: np.where(number, x, np.nan) for k, x in floats.items()}


def _over(a: Array, b: Array) -> Array:
    return np.asarray(np.where(b > 0, a / np.where(b > 0, b, 1), np.nan))


def _values(least: int, table: Held, payload: Mapping[str, Array]) -> Iterable[tuple[int, int, Array]]:
    """Of each column: how many values, how many gaps, the numbers. Nothing of one with too few values, or not there."""
    for name in unpacked(payload["columns"]):
        held = column(table, name) if name in table.columns else None
        there = int(held.there.sum()) if held else 0
        if held is None or there < least:
            yield 0, table.rows if table.rows >= least else 0, np.empty(0)
        else:
            numeric = held.values[held.there] if held.kind in ("number", "date") else np.empty(0)
            yield there, table.rows - there, numeric


def _moments(least: int, extremes: bool, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = list(_values(least, table, payload))
    xs = [x for _, _, x in found]
    squares = np.array([np.square(x - x.mean()).sum() if len(x) else 0.0 for x in xs])
    sums = {
        "count": np.array([n for n, _, _ in found]), "missing": np.array([gaps for _, gaps, _ in found]),
        "sum": np.array([x.sum() for x in xs]),
    }  # fmt: skip
    told = list(_told(table, unpacked(payload["columns"]), xs, least)) if extremes else [np.empty(0)] * len(xs)
    most = {
        "least": np.array([whole_of(-x).max() if len(x) else NOTHING for x in told], np.int64),
        "most": np.array([whole_of(x).max() if len(x) else NOTHING for x in told], np.int64),
    }
    shown = {"squares": squares, "min": -float_of(most["least"]), "max": float_of(most["most"])}
    return Sent(sums, most, sums | shown)


def _told(table: Held, names: Sequence[str], xs: Sequence[Array], least: int) -> Iterator[Array]:
    """The numbers whose extremes may be told: of dates those at and beyond which there are enough, on both sides."""
    few = max(least, ENOUGH) - 1
    for name, x in zip(names, xs, strict=True):
        dates = len(x) and column(table, name).kind == "date"
        yield np.sort(x)[few : len(x) - few] if dates else x


def _spread(least: int, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = zip(_values(least, table, payload), payload["mean"], strict=True)
    return Sent({"squares": [np.square(x - mean).sum() for (_, _, x), mean in found]})
