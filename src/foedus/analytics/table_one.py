"""Who is in the federation: the first table of a clinical paper.
The columns of all sites by kind may come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.analytics import quantiles
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Asking, Sent, ask, unpacked, whole, work
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
    veiled,
    works,
)
from foedus.core import Algorithm, RoundContext, State
from foedus.params import Array

QUARTILES, CODES = (0.25, 0.5, 0.75), (0.0, 1.0)
NUMBER = ("mean (sd)", "median (p25, p75)", "missing")  # the rows of a column of numbers


def table_one(
    columns: str | Sequence[str] = (), *, categories: Mapping[str, Sequence[Any]] | None = None, least: int = 5
) -> Algorithm:
    """Who is in the federation: the first table of a clinical paper, with a column for all and one for each site.

    Texts, and columns with `categories`, have a row for each level: its count and share of the values. Numbers have
    mean and standard deviation, median and quartiles, dates those of their year, and those of 0 and 1 alone are levels;
    every column its gaps. A quantile is the mean of the `least` values that are nearest to it in rank. A level of fewer
    than `least` rows is not shown ("few"), nor the one that would tell it, nor the mean of so few. `.pandas`: by column
    and level, as texts; `.per_site`: rows. Fact: `free_text`, texts that are left out, for most of their levels are of
    few rows (names, notes), or more than 50.

    Leaves a site: for each column its count, sum, sum of squares about its own mean and about that of all, and of each
    level a count, in clear as shown, with its own quartiles; the levels of at least `least` rows of texts without
    `categories`, the rest as "(others)"; whether it has other values than 0 and 1; counts of numbers as in `quantiles`.
    """
    asked = asked_for(columns, categories, least)
    made = {
        "codes": work(partial(_codes, asked)), "cells": work(partial(_cells, asked)),
        "spread": work(partial(_spread, asked)), "windows": work(partial(_windows, asked)),
        **quantiles.works(partial(values_of, least)), **works(asked),
    }  # fmt: skip
    return analysis(partial(_table_one, asked), made)


def _codes(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    """Whether each column has values, and whether it has others than 0 and 1."""
    found = values_of(asked.least, table, unpacked(payload["numbers"]))
    return Sent({"some": [len(x) > 0 for x in found], "others": [not np.isin(x, CODES).all() for x in found]})


def _cells(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = moments(table, payload, asked.least)
    shown = veiled(found["cells"], unpacked(payload["levels"]), asked.least)
    numbers = values_of(asked.least, table, unpacked(payload["numbers"]))
    quartiles = np.array([[_middle(x, q, asked.least) for q in QUARTILES] for x in numbers]).reshape(-1, len(QUARTILES))
    return Sent(found, {}, {**found, "cells": shown, "quartiles": quartiles})


def _spread(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = zip(numbers_of(table, unpacked(payload["numbers"]), asked.least), payload["mean"], strict=True)
    return Sent({"squares": np.array([np.square(x - mean).sum() for (x, _), mean in found])})


def _windows(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    """Of each window of values how many are at most its low end, how many below its high one, and the sum between."""
    numbers = values_of(asked.least, table, unpacked(payload["numbers"]))
    ends = zip(payload["column"], payload["low"], payload["high"], strict=True)
    found = [_window(numbers[int(i)], low, high) for i, low, high in ends]
    return Sent(dict(zip(("upto", "below", "between"), np.array(found).T, strict=True)))


def _window(x: Array, low: float, high: float) -> tuple[float, float, float]:
    return (x <= low).sum(), (x < high).sum(), x[(x > low) & (x < high)].sum()


def _nearest(n: int, q: float, least: int) -> tuple[int, int]:
    """The first and last rank of the `least` of n sorted values (and those as near) that are nearest to the quantile.

    Of 1 … 8 the median lies between ranks 3 and 4, and the four nearest are 2 … 5; of five the last is as near as the
    first.

    >>> _nearest(8, 0.5, 4), _nearest(8, 0.5, 5), _nearest(5, 0.0, 2)
    ((2, 5), (1, 6), (0, 1))
    """
    place = (n - 1) * q
    ranks = range(max(0, math.floor(place) - least), min(n, math.ceil(place) + least + 1))
    reach = sorted(abs(k - place) for k in ranks)[least - 1]
    within = [k for k in ranks if abs(k - place) <= reach]
    return within[0], within[-1]


def _middle(x: Array, q: float, least: int) -> float:
    """The mean of the values nearest to a quantile; NaN of too few."""
    if len(x) < least:
        return math.nan
    first, last = _nearest(len(x), q, least)
    return float(np.sort(x)[first : last + 1].mean())


def _quartiles(known: Known, count: Array, least: int) -> Asking[Array]:
    """(columns, quartiles) of all rows: first the ends of the values nearest to each are searched, then their sum."""
    wanted = [(i, _nearest(int(n), q, least)) for i, n in enumerate(count) if n >= least for q in QUARTILES]
    found = np.full((len(count), len(QUARTILES)), math.nan)
    if not wanted:
        return found
    search = quantiles.Asked(tuple(known.numbers), (), 0.0, least)
    ranks = {quantiles.Rank(i, rank) for i, ends in wanted for rank in ends}
    values = yield from quantiles.searched(search, known.sites, ranks)
    column = np.array([i for i, _ in wanted])
    first, last = np.array([ends for _, ends in wanted]).T
    low, high = (np.array([values[i, rank] for i, rank in zip(column, x, strict=True)]) for x in (first, last))
    asking = {**known.payload(), "column": column, "low": low, "high": high}
    shape = dict.fromkeys(("upto", "below", "between"), (len(wanted),))
    of = (yield from ask("windows", known.sites, asking, shape)).of
    inside = low * (of["upto"] - first) + high * (last + 1 - of["below"]) + of["between"]
    means = np.where(low == high, low, inside / (last + 1 - first))
    found[column, np.tile(np.arange(len(QUARTILES)), len(wanted) // len(QUARTILES))] = means
    return found


def _coded(asked: Asked, known: Known) -> Asking[Known]:
    """The columns, of which those of 0 and 1 alone are levels."""
    n = (len(known.numbers),)
    if not known.numbers:
        return known
    told = (yield from ask("codes", known.sites, known.payload(), {"some": n, "others": n})).of
    codes = [name for name, some, other in zip(known.numbers, told["some"], told["others"], strict=True)
             if some > 0.5 > other and name not in known.dates]  # fmt: skip
    numbers = [name for name in known.numbers if name not in codes]
    return known._replace(numbers=numbers, levels={**{name: ["0", "1"] for name in codes}, **known.levels})


def _table_one(asked: Asked, state: State, context: RoundContext, every: bool = True) -> Any:
    known = yield from known_columns(asked, context, every)
    known = yield from _coded(asked, known)
    first = yield from ask("cells", known.sites, known.payload(), shapes_of(known))
    n = len(known.numbers)
    mean = first.of["sum"] / np.maximum(first.of["count"][:n], 1)
    second = yield from ask("spread", known.sites, {**known.payload(), "mean": mean}, {"squares": (n,)})
    quartiles = yield from _quartiles(known, whole(first.of["count"][:n]), asked.least)
    pooled = {
        **first.of,
        "quartiles": quartiles,
        "squares": second.of["squares"],
        "cells": veiled(first.of["cells"], known.levels, asked.least),
    }
    shown = {"all": pooled, **dict(sorted(first.shown.items()))}
    rows = [("rows", "")]
    rows += [row for name in known.numbers for row in ((name, word) for word in NUMBER)]
    rows += [row for name, levels in known.levels.items() for row in (*((name, v) for v in levels), (name, "missing"))]
    columns = {site: _told(known, found, asked.least) for site, found in shown.items()}
    return answer("table_one", {
        "pandas": Table(rows, columns, ("column", "level")),
        "per_site": Table(list(first.shown), {"rows": [int(x["rows"]) for x in first.shown.values()]}, ("site",)),
    }, {"n": int(first.of["rows"]), "sites": len(known.sites), "free_text": known.free})  # fmt: skip


def _told(known: Known, found: Mapping[str, Any], least: int) -> list[str]:
    """One column of the table, as texts."""
    count, missing = np.asarray(found["count"]), np.asarray(found["missing"])
    cells, texts, at = np.asarray(found["cells"]), [f"{int(found['rows'])}"], 0
    for i, _ in enumerate(known.numbers):
        sd = math.sqrt(found["squares"][i] / (count[i] - 1)) if count[i] > 1 else math.nan
        shown = f"{found['sum'][i] / count[i]:.4g} ({sd:.3g})" if count[i] >= max(1, least) else "–"
        low, median, high = (f"{x:.4g}" for x in np.asarray(found["quartiles"])[i])
        texts += [shown, f"{median} ({low}, {high})" if count[i] >= max(1, least) else "–"]
        texts += [_part(missing[i], found["rows"])]
    for i, levels in enumerate(known.levels.values(), len(known.numbers)):
        texts += [_part(x, count[i]) for x in cells[at : at + len(levels)]]
        texts += [_part(missing[i], found["rows"])]
        at += len(levels)
    return texts


def _part(count: float, whole_: float) -> str:
    """A count and its share; one that would tell of few people is not shown."""
    if math.isnan(count):
        return "few"
    return f"{int(count)} ({100 * count / whole_:.1f} %)" if whole_ else "0"
