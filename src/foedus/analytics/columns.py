"""Single columns of numbers at a site, each with its own gaps: what quantiles, histograms and correlations read.
What a site holds may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.analytics.analysis import Table
from foedus.analytics.asking import Asking, Sent, ask, collect, listing, work
from foedus.analytics.held import Held, column
from foedus.core import Work
from foedus.errors import FoedusError, JobError
from foedus.params import Array

WORDS = {"text": "text", "number": "numbers", "date": "dates"}  # of a column's kind, what it holds
KINDS = (*WORDS, "empty")


def chosen(columns: Any, least: int) -> tuple[str, ...]:
    """The names, checked; none stands for all that sites have. Raises JobError."""
    found = (columns,) if isinstance(columns, str) else tuple(columns)
    if not all(isinstance(name, str) and name for name in found) or len(set(found)) < len(found):
        raise JobError(f"columns={columns!r}: give names of columns, each once")
    if not isinstance(least, int) or least < 1:
        raise JobError(f"least={least!r}: it is a whole number of values, at least 1")
    return found


def naming(columns: tuple[str, ...], least: int) -> dict[str, Work]:
    """The works of `named`: each site says the kinds of these columns, or lists those of all it has."""
    return {"names": listing(partial(_names, least)), "kinds": work(partial(_kinds, columns, least))}


def _names(least: int, table: Held, payload: Mapping[str, Array]) -> dict[str, str]:
    return {name: column(table, name).kind for name in table.columns} if table.rows >= least else {}


def _kinds(columns: tuple[str, ...], least: int, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = [column(table, name).kind if table.rows >= least else "" for name in columns]
    flags = {word: np.array([kind == word for kind in found], np.int64) for word in KINDS}
    return Sent({}, flags, flags)


def named(columns: tuple[str, ...], sites: Sequence[str], every: bool) -> Asking[tuple[dict[str, str], list[str]]]:
    """column -> kind, and the sites: of these, or of all in the order of the first site that has each.

    Raises JobError where sites differ.
    """
    found: dict[str, dict[str, list[str]]] = {}
    if columns:
        told = yield from ask("kinds", sites, {}, most=dict.fromkeys(KINDS, (len(columns),)), every=every)
        there = list(told.sites)
        for at, name in enumerate(columns):
            kinds = {k: [s for s, x in sorted(told.shown.items()) if x[k][at]] for k in KINDS if told.most[k][at]}
            found |= {name: {k: where or ["some sites"] for k, where in kinds.items()}} if kinds else {}
    else:
        listed = yield from collect("names", sites, {}, "name the columns", every)
        there = sorted(listed)
        for site, own in listed.items():
            for name, kind in own.items():
                found.setdefault(name, {}).setdefault(kind, []).append(site)
    for name, kinds in found.items():
        unlike = [f"{word} at {', '.join(kinds[kind])}" for kind, word in WORDS.items() if kind in kinds]
        if len(unlike) > 1:
            raise JobError(f"column {name!r} holds {' and '.join(unlike)}: code it alike at all sites")
    if not found:
        raise JobError("no site has a row: bind data, or lower least")
    return {name: next((k for k in kinds if k != "empty"), "number") for name, kinds in found.items()}, there


def numeric(
    columns: tuple[str, ...], sites: Sequence[str], every: bool, of: Sequence[str] = ("number", "date")
) -> Asking[tuple[list[str], dict[str, str], list[str]]]:
    """These columns, or all of these kinds; of the others, column -> what it holds; and the sites.

    Raises JobError for a column that was named and is of another kind.
    """
    kinds, there = yield from named(columns, sites, every)
    others = {name: WORDS[kind] for name, kind in kinds.items() if kind not in of}
    for name in columns:
        if name in others:
            raise JobError(
                f"column {name!r} holds {others[name]} where numbers are needed: turn it into numbers at every site"
            )
    return [name for name in kinds if name not in others], others, there


def values(table: Held, name: str, least: int) -> Array:
    """The numbers that are there, of dates the years; none where they are fewer than `least`.

    Raises FoedusError for text.
    """
    found = column(table, name)
    if found.kind == "text":
        raise FoedusError(f"column {name!r} holds text where numbers are needed: turn it into numbers at every site")
    x = found.values[found.there]
    return x if len(x) >= least else x[:0]


def hidden(counts: Any, least: int) -> Array:
    """Counts as float64, NaN where one is below `least` and not 0: it would tell of few people."""
    x = np.asarray(counts, np.float64)
    return np.where((x > 0) & (x < least), np.nan, x)


def per_site(shown: Mapping[str, Mapping[str, Array]], word: str, columns: Sequence[str]) -> Table:
    """What each site showed of each column, as `word`."""
    rows = [(site, name) for site in sorted(shown) for name in columns]
    found = [x for site in sorted(shown) for x in np.asarray(shown[site][word]).tolist()]
    return Table(rows, {word: np.array(found)}, ("site", "column"))
