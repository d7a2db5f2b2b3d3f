"""What columns hold, at each site and at all: counts, gaps, sums, moments and extremes (Chan, Golub and LeVeque 1983).
What a site holds and the way to ask for sums may come in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.analytics import columns as single
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Sent, ask, packed, unpacked, whole, work
from foedus.analytics.bounded import UNIT, Bounds, Found, bounded, bounds_of, scaled, units
from foedus.analytics.held import Held, column
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.ordered import NOTHING, float_of, whole_of
from foedus.params import Array, Params
from foedus.privacy.dp_metrics import Block

ENOUGH = 5  # dates, for the first and the last year of which to be told
NOISED = ("count", "missing", "sum", "mean", "var", "std", "min", "max", "count_sd", "mean_sd")
SHOWN = ("count", "missing", "sum", "squares", "min", "max")


def describe(
    columns: str | Sequence[str] = (),
    *,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    extremes: bool = True,
    least: int = 1,
) -> Algorithm:
    """Count, gaps, sum, mean, variance (of n - 1), standard deviation, least and largest value of each column.

    Without `columns`, of all that any site has. Texts have a count and gaps alone. A date counts as its year; the least
    and largest are those at or beyond which a site has five dates (`least`, where that is more). `least`: a site's
    column with fewer values is left out of its answer and of all sums. `extremes=False` keeps the least and largest
    value, each of which is somebody's, at the site. `.pandas`: by column; `.per_site`: by site and column.

    `bounds`: column -> (low, high), for `privacy=fd.dp_metrics(…)`, and only looked at with it: values beyond count as
    these, each site adds noise to its counts, sums and squares, and no extremes are told; columns without bounds have a
    count and gaps alone. `.pandas` then has `count_sd` and `mean_sd`, the standard deviation of the noise in these.

    Leaves a site: for each column its count, gaps, sum, sum of squares about the mean, and extremes, in clear; under
    noise the first four, of values within bounds and with noise, and nothing else.
    """
    ends = bounds_of("describe", bounds)
    names = single.chosen(columns or tuple(ends), least)
    if ends and (least > 1 or not set(ends) <= set(names)):
        raise JobError("describe(bounds=…): name its columns, and leave least out: who is too few would tell of a row")
    works = {
        **single.naming(names, least),
        "moments": work(partial(_moments, least, extremes)),
        "spread": work(partial(_spread, least)),
    }
    exact = analysis(partial(_round, names), works)
    if not ends:
        return exact
    blocks = [block for name in names for block in (Block(2), *([Block(1, UNIT)] * 2 if name in ends else []))]
    return bounded(exact, blocks, partial(_within, names, ends), partial(_noised, names, ends))


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


def _within(names: Sequence[str], ends: Bounds, table: Held) -> Array:
    """Of each column how many values and gaps, and of one with bounds the sums of its values and squares, scaled."""
    found = []
    for name in names:
        x = scaled(table, name, ends[name]) if name in ends else None
        there = column(table, name, finite=False).there if x is None else ~np.isnan(x)
        found += [there.sum(), (~there).sum()]
        found += [units(x).sum(), units(np.square(x)).sum()] if x is not None else []
    return np.array(found, np.int64)


def _noised(names: Sequence[str], ends: Bounds, found: Found) -> Params:
    pooled = _estimates(names, ends, found.sums, found.sd)
    sites = [_estimates(names, ends, own, found.own_sd) for own in found.shown.values()]
    return answer("describe", {
        "pandas": Table(list(names), pooled, ("column",)),
        "per_site": Table(
            [(site, name) for site in found.shown for name in names],
            {word: np.array([x for own in sites for x in own[word]]) for word in pooled}, ("site", "column"),
        ),
    }, {"sites": len(found.sites), "noise": found.noise})  # fmt: skip


def _estimates(names: Sequence[str], ends: Bounds, sums: Array, sd: Array) -> dict[str, Array]:
    """What sums with noise say of each column: word -> a number for each."""
    lines, at = [], 0
    for name in names:
        size = 4 if name in ends else 2
        lines.append(_estimate(ends.get(name), sums[at : at + size], sd[at : at + size]))
        at += size
    return {word: np.array([line[word] for line in lines]) for word in NOISED}


def _estimate(ends: tuple[float, float] | None, sums: Array, sd: Array) -> dict[str, float]:
    """The mean and variance within bounds, and the deviation of the mean's noise (by its slopes)."""
    found = dict.fromkeys(NOISED, math.nan) | {"count": sums[0], "missing": sums[1], "count_sd": sd[0]}
    n = float(sums[0])
    if ends is None or n < 1:
        return found
    centre, half = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    first, square = sums[2] / UNIT, sums[3] / UNIT
    mean = float(np.clip(first / n, -1, 1))
    var = half**2 * max(0.0, square - n * mean**2) / (n - 1) if n > 1 else math.nan
    mean_sd = half * math.hypot(sd[2] / UNIT, mean * sd[0]) / n
    total = {"sum": half * first + centre * n, "mean": centre + half * mean}
    return found | total | {"var": var, "std": math.sqrt(var), "mean_sd": mean_sd}
