"""Who is in the federation: the first table of a clinical paper.
The columns of all sites by kind may come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

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
    veiled,
    works,
)
from foedus.core import Algorithm, RoundContext, State
from foedus.params import Array


def table_one(
    columns: str | Sequence[str] = (), *, categories: Mapping[str, Sequence[Any]] | None = None, least: int = 5
) -> Algorithm:
    """Who is in the federation: the first table of a clinical paper, with a column for all and one for each site.

    Texts, and columns with `categories`, have a row for each level: its count and share of the values. Numbers have
    mean and standard deviation, dates those of their year; every column its gaps. A level of fewer than `least` rows is
    not shown ("few"), nor the one that would tell it, nor the mean of so few. `.pandas`: by column and level, as texts;
    `.per_site`: rows. Fact: `free_text`, texts that are left out, for most of their levels are of few rows (names,
    notes), or more than 50.

    Leaves a site: for each column its count, sum, sum of squares about its own mean and about that of all, and of each
    level a count, in clear as shown; the levels of at least `least` rows of texts without `categories`, the rest as
    "(others)".
    """
    asked = asked_for(columns, categories, least)
    made = {"cells": work(partial(_cells, asked)), "spread": work(partial(_spread, asked)), **works(asked)}
    return analysis(partial(_table_one, asked), made)


def _cells(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = moments(table, payload, asked.least)
    shown = veiled(found["cells"], unpacked(payload["levels"]), asked.least)
    return Sent(found, {}, {**found, "cells": shown})


def _spread(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = zip(numbers_of(table, unpacked(payload["numbers"]), asked.least), payload["mean"], strict=True)
    return Sent({"squares": np.array([np.square(x - mean).sum() for (x, _), mean in found])})


def _table_one(asked: Asked, state: State, context: RoundContext, every: bool = True) -> Any:
    known = yield from known_columns(asked, context, every)
    first = yield from ask("cells", known.sites, known.payload(), shapes_of(known))
    n = len(known.numbers)
    mean = first.of["sum"] / np.maximum(first.of["count"][:n], 1)
    second = yield from ask("spread", known.sites, {**known.payload(), "mean": mean}, {"squares": (n,)})
    pooled = {
        **first.of,
        "squares": second.of["squares"],
        "cells": veiled(first.of["cells"], known.levels, asked.least),
    }
    shown = {"all": pooled, **dict(sorted(first.shown.items()))}
    rows = [("rows", "")]
    rows += [row for name in known.numbers for row in ((name, "mean (sd)"), (name, "missing"))]
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
        texts += [shown, _part(missing[i], found["rows"])]
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
