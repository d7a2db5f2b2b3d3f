"""The columns of all sites, numbers and levels, and what a site counts of them: for `table_one`, `drift`, `schema`.
Single columns and the way to ask for sums may come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.analytics import columns as single
from foedus.analytics.asking import Asking, collect, listing, packed, unpacked
from foedus.analytics.held import Coded, Held, coded, column, names_people
from foedus.core import RoundContext, Work
from foedus.errors import FoedusError
from foedus.params import Array

MOST_LEVELS = 50  # of a column that is a list of codes; more are free text
OTHERS = "(others)"  # the levels of few rows, which no site lists
Levels = Mapping[str, Sequence[str]]


class Asked(NamedTuple):
    """What is looked at: columns (none: all), levels named beforehand, how many rows a number that is shown needs."""

    columns: tuple[str, ...]
    categories: Levels
    least: int


def asked_for(columns: Any, categories: Mapping[str, Sequence[Any]] | None, least: int) -> Asked:
    """What is looked at, if the arguments make sense. Raises JobError."""
    names = single.chosen(columns, least)
    return Asked(names, {name: tuple(map(str, levels)) for name, levels in (categories or {}).items()}, least)


def works(asked: Asked) -> dict[str, Work]:
    """The works that `known_columns` asks for."""
    return {**single.naming(asked.columns, asked.least), "levels": listing(partial(_levels, asked))}


def _levels(asked: Asked, table: Held, payload: Mapping[str, Array]) -> dict[str, list[str] | None]:
    """The levels that enough rows have, and OTHERS where there are more; None for free text."""
    names = [name for name in unpacked(payload["of"]) if name in table.columns]
    return {name: _listed(coded(table, name), asked.least) for name in names} if table.rows >= asked.least else {}


def _listed(found: Coded, least: int) -> list[str] | None:
    counts = np.bincount(found.rows[found.rows >= 0], minlength=len(found.names))
    known = [name for name, count in zip(found.names, counts, strict=True) if count >= least]
    if len(known) > MOST_LEVELS or names_people(found, least) or (found.names and not known):
        return None
    return known if len(known) == len(found.names) else [*known, OTHERS]


class Known(NamedTuple):
    """The columns of all sites: those with numbers, those with levels, and who answered."""

    numbers: list[str]
    levels: dict[str, list[str]]
    free: list[str]  # texts that are no levels
    sites: Sequence[str]
    dates: frozenset[str]  # of the numbers: they are years

    def payload(self) -> dict[str, Array]:
        return {"numbers": packed(self.numbers), "levels": packed(self.levels)}

    @property
    def cells(self) -> int:
        return sum(map(len, self.levels.values()))

    @property
    def columns(self) -> list[str]:
        return [*self.numbers, *self.levels]


def known_columns(asked: Asked, context: RoundContext, every: bool) -> Asking[Known]:
    """Which columns there are, and who answers."""
    kinds, sites = yield from single.named(asked.columns, context.cohort, every)
    texts = [name for name, kind in kinds.items() if kind == "text" or name in asked.categories]
    open_ = [name for name in texts if name not in asked.categories]
    levels: dict[str, list[str]] = {name: list(asked.categories[name]) for name in texts if name in asked.categories}
    if open_:
        remedy = f"give categories={{column: levels}} for {', '.join(open_)}"
        listed = yield from collect("levels", sites, {"of": packed(open_)}, remedy)
        for name in open_:
            said = [own[name] for own in listed.values() if name in own]
            if None not in said:
                levels[name] = sorted({v for own in said for v in own}, key=lambda v: (v == OTHERS, v))
    free = [name for name in open_ if name not in levels]
    numbers = [name for name in kinds if name not in texts]
    dates = frozenset(name for name, kind in kinds.items() if kind == "date")
    return Known(numbers, {name: levels[name] for name in texts if name in levels}, free, sites, dates)


def numbers_of(table: Held, names: Sequence[str], least: int) -> Iterator[tuple[Array, int]]:
    """Of each column its numbers, and how many gaps it has: all of its rows where it has too few values."""
    rows = shown_rows(table, least)
    for name in names:
        held = column(table, name).values if name in table.columns else np.empty(0)
        x = np.asarray(held, np.float64)
        there = x[~np.isnan(x)]
        yield (there, len(x) - len(there)) if len(there) >= least else (there[:0], min(len(x), rows))


def values_of(least: int, table: Held, names: Sequence[str]) -> list[Array]:
    """Of each column its numbers; none of one that is not there, or has too few."""
    return [x for x, _ in numbers_of(table, names, least)]


def shown_rows(table: Held, least: int) -> int:
    """How many rows a site says that it has: none where they are too few."""
    return table.rows if table.rows >= least else 0


def counted(table: Held, levels: Levels, least: int) -> Iterator[tuple[Array, int]]:
    """Of each column the rows of each level, and its gaps. Raises FoedusError for a level that was not named."""
    for name, known in levels.items():
        if name not in table.columns:
            yield np.zeros(len(known)), 0
            continue
        held = coded(table, name)
        strange = [level for level in held.names if level not in known]
        if strange and OTHERS not in known:
            raise FoedusError(f"column {name!r} has {len(strange)} levels that are not in categories: add them there")
        places = [known.index(level if level in known else OTHERS) for level in held.names]
        rows = np.array([*places, -1])[held.rows]
        found = np.bincount(rows[rows >= 0], minlength=len(known)).astype(np.float64)
        yield (found, int((rows < 0).sum())) if found.sum() >= least else (0 * found, shown_rows(table, least))


def moments(table: Held, known: Mapping[str, Array], least: int) -> dict[str, Array]:
    """Counts, gaps, sums and squares about the site's own means of numbers; counts of levels and their gaps."""
    numbers = list(numbers_of(table, unpacked(known["numbers"]), least))
    levels = list(counted(table, unpacked(known["levels"]), least))
    xs = [x for x, _ in numbers]
    return {
        "rows": np.array(float(shown_rows(table, least))),
        "count": np.array([float(len(x)) for x in xs] + [found.sum() for found, _ in levels]),
        "missing": np.array([float(gaps) for _, gaps in (*numbers, *levels)]),
        "sum": np.array([x.sum() for x in xs]),
        "squares": np.array([np.square(x - x.mean()).sum() if len(x) else 0.0 for x in xs]),
        "cells": np.concatenate([np.empty(0), *(found for found, _ in levels)]),
    }


def veiled(cells: Array, levels: Levels, least: int) -> Array:
    """Counts of levels, NaN for those of few; where a column has one such, its next one as well: the sum is known."""
    found, at = single.hidden(cells, least), 0
    for own in levels.values():
        part = found[at : at + len(own)]
        if np.isnan(part).sum() == 1 and (part > 0).any():
            part[np.where(part > 0, part, np.inf).argmin()] = np.nan
        at += len(own)
    return found


def shapes_of(known: Known) -> dict[str, tuple[int, ...]]:
    """Of what `moments` counts."""
    n = len(known.numbers)
    return {"rows": (), "count": (len(known.columns),), "missing": (len(known.columns),), "sum": (n,),
            "squares": (n,), "cells": (known.cells,)}  # fmt: skip
