"""Counts of cells that are named beforehand, with noise where the Job says so: an analysis under differential privacy.
What a site holds and the way to ask for sums may come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Sent, ask, whole, work
from foedus.analytics.held import Held, coded, column, text
from foedus.core import EVALUATE, Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array

REST = "(other)"  # what lies in none of the cells, gaps too
Cells = Sequence[tuple[float, ...] | tuple[str, ...]]  # of each column: edges, or levels


def counts(cells: Mapping[str, Sequence[Any]]) -> Algorithm:
    """How many rows lie in each cell of each column; the cells are named beforehand, so that data names none.

    `cells`: column -> edges in rising order, of which each is the lower end of a cell and the last one the upper end of
    the last cell; or texts or codes, each a cell. What lies in none of them, gaps too, counts as "(other)".

    With `privacy=fd.dp_metrics(epsilon=…)` each site adds a discrete Gaussian to each of its counts (Canonne, Kamath,
    Steinke 2020): a row lies in one cell of each column, so that nobody is more than (epsilon, delta) surer that it is
    there, whoever reads what the site sends. Counts may then be negative; nothing else leaves a site.

    `.pandas`: by column and cell `count`, and `sd`, the standard deviation of the noise in it. `.per_site`: the counts
    of each. Fact: `noise`, that of one site.

    Leaves a site: its counts, in clear, with noise where the Job says so.
    """
    found = [(name, _cells(name, given)) for name, given in cells.items()]
    if not found:
        raise JobError("counts(cells={}): name at least one column and its cells")
    asked = partial(_counted, found)
    made = analysis(partial(_round, found), {EVALUATE: work(asked)})
    return made._replace(traits=(*made.traits, f"counts {len(found)}"))


def _cells(name: str, given: Sequence[Any]) -> tuple[Any, ...]:
    cells = tuple(given) if isinstance(given, (list, tuple, range, np.ndarray)) else ()
    numbers = all(isinstance(x, (int, float, np.number)) and not isinstance(x, bool) for x in cells)
    if numbers and len(cells) > 1 and list(cells) == sorted(set(cells)) and np.isfinite(cells).all():
        return tuple(map(float, cells))
    if cells and not numbers and len({text(x) for x in cells}) == len(cells):
        return tuple(map(text, cells))
    raise JobError(f"counts: the cells of {name!r} are {given!r}: give two edges or more in rising order, or levels")


def _names(cells: tuple[Any, ...]) -> list[str]:
    if isinstance(cells[0], str):
        return [*cells, REST]
    return [*(f"{a:g} to {b:g}" for a, b in pairwise(cells)), REST]


def _counted(cells: Sequence[tuple[str, Any]], table: Held, payload: Mapping[str, Array]) -> Sent:
    found = np.concatenate([_column(table, name, own) for name, own in cells])
    return Sent({"cells": found}, {}, {"cells": found})


def _column(table: Held, name: str, cells: tuple[Any, ...]) -> Array:
    """Counts of a column's cells, and of the rest: all rows together."""
    count = len(_names(cells)) - 1
    if isinstance(cells[0], str):
        held = coded(table, name)
        places = np.array([*(cells.index(v) if v in cells else count for v in held.names), count])[held.rows]
    else:
        kept = column(table, name)
        x = np.asarray(kept.values, np.float64) if kept.kind != "text" else np.full(table.rows, math.nan)
        places = np.searchsorted(cells, x, "right") - 1
        places = np.where(x == cells[-1], count - 1, places)
        places[~((x >= cells[0]) & (x <= cells[-1]))] = count
    return np.bincount(places, minlength=count + 1).astype(np.float64)


def _round(
    cells: Sequence[tuple[str, Any]],
    state: State,
    context: RoundContext,
    every: bool = True,
    noise: float = 0.0,
) -> Any:
    names = [(name, cell) for name, own in cells for cell in _names(own)]
    found = yield from ask(EVALUATE, context.cohort, {}, {"cells": (len(names),)}, every=every)
    count = whole(found.of["cells"])
    shown = {site: np.asarray(x["cells"]) for site, x in sorted(found.shown.items())}
    sd = np.full(len(names), noise * math.sqrt(len(found.sites)))
    columns = {f"{name}: {cell}": np.array([x[i] for x in shown.values()]) for i, (name, cell) in enumerate(names)}
    return answer("counts", {
        "pandas": Table(names, {"count": count, "sd": sd}, ("column", "cell")),
        "per_site": Table(list(shown), columns, ("site",)),
    }, {"noise": noise, "sites": len(found.sites)})  # fmt: skip
