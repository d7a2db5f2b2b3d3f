"""Counts of cells that are named beforehand, with noise where the Job says so: an analysis under differential privacy.
What a site holds and the way to ask for sums may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.bounded import Found, asked, bounded, numbers, places
from foedus.analytics.held import Held, text
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array, Params
from foedus.privacy.dp_metrics import Block

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
    blocks = [Block(len(_names(own))) for _, own in found]
    return bounded(
        analysis(partial(_plain, blocks, found), {}), blocks, partial(_counted, found), partial(_told, found)
    )


def _plain(
    blocks: Sequence[Block], cells: Sequence[tuple[str, Any]], state: State, context: RoundContext, every: bool = True
) -> Any:
    return _told(cells, (yield from asked(blocks, context, every, 0.0)))


def _cells(name: str, given: Sequence[Any]) -> tuple[Any, ...]:
    cells = tuple(given) if isinstance(given, (list, tuple, range, np.ndarray)) else ()
    numeric = all(isinstance(x, (int, float, np.number)) and not isinstance(x, bool) for x in cells)
    if numeric and len(cells) > 1 and list(cells) == sorted(set(cells)) and np.isfinite(cells).all():
        return tuple(map(float, cells))
    if cells and not numeric and len({text(x) for x in cells}) == len(cells):
        return tuple(map(text, cells))
    raise JobError(f"counts: the cells of {name!r} are {given!r}: give two edges or more in rising order, or levels")


def _names(cells: tuple[Any, ...]) -> list[str]:
    if isinstance(cells[0], str):
        return [*cells, REST]
    return [*(f"{a:g} to {b:g}" for a, b in pairwise(cells)), REST]


def _counted(cells: Sequence[tuple[str, Any]], table: Held) -> Array:
    return np.concatenate([_column(table, name, own) for name, own in cells])


def _column(table: Held, name: str, cells: tuple[Any, ...]) -> Array:
    """Counts of a column's cells, and of the rest: all rows together."""
    count = len(_names(cells)) - 1
    if isinstance(cells[0], str):
        at = places(table, name, cells)
        at[at < 0] = count
    else:
        x = numbers(table, name)
        at = np.searchsorted(cells, x, "right") - 1
        at = np.where(x == cells[-1], count - 1, at)
        at[~((x >= cells[0]) & (x <= cells[-1]))] = count
    return np.bincount(at, minlength=count + 1)


def _told(cells: Sequence[tuple[str, Any]], found: Found) -> Params:
    names = [(name, cell) for name, own in cells for cell in _names(own)]
    shown = list(found.shown.values())
    columns = {f"{name}: {cell}": np.array([x[i] for x in shown]) for i, (name, cell) in enumerate(names)}
    return answer("counts", {
        "pandas": Table(names, {"count": found.sums, "sd": found.sd}, ("column", "cell")),
        "per_site": Table(list(found.shown), columns, ("site",)),
    }, {"noise": found.noise, "sites": len(found.sites)})  # fmt: skip
