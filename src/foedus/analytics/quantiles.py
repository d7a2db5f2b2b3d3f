"""Quantiles by counting below: each Task asks 8 more bits of the numbers looked for, so that 8 Tasks have all.
Counts are all that is asked; the idea is that of a radix search, and of Mahmoud et al. 2022 for federations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.analytics import columns as single
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Asking, Sent, Sums, ask, packed, unpacked, whole, work
from foedus.analytics.bounded import Bounds, Found, bounded, bounds_of, scaled
from foedus.analytics.held import Held
from foedus.core import Algorithm, RoundContext, State, Work
from foedus.errors import JobError
from foedus.ordered import float_of, whole_of
from foedus.params import Array, Params
from foedus.privacy.dp_metrics import Block

DIGITS, BASE = 8, 256  # of a number: 8 bits each
_HALF = np.uint64(1 << 63)
Reading = Callable[[Held, Sequence[str]], Sequence[Array]]  # (table, names of columns) -> the numbers of each


class Asked(NamedTuple):
    columns: tuple[str, ...]
    q: tuple[float, ...]
    error: float
    least: int


class Rank(NamedTuple):
    """The number of a column that has `left` before it among those that begin with `prefix`."""

    column: int
    left: int
    prefix: int = 0


def quantiles(
    columns: str | Sequence[str] = (),
    *,
    q: float | Sequence[float] = (0.25, 0.5, 0.75),
    error: float = 0.0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    cells: int = 100,
    least: int = 1,
) -> Algorithm:
    """The quantiles of each column, exactly those of numpy and pandas on the pooled values, or within a relative error.

    Without `columns`, of all with numbers or dates, which count as their year. Fact: `left_out`, the other columns and
    what they hold.
    A quantile is a value that somebody has, or lies between two. With `error=0.01` the search ends when every one is
    known to 1 %, and gives the middle. `.pandas`: by q, a column for each. `.per_site`: counts.

    `bounds`: column -> (low, high), for `privacy=fd.dp_metrics(…)`, and only looked at with it: each site adds noise to
    how many values lie in each of `cells` equal parts between them, values beyond counting as these, and a quantile is
    where the line through their running sum reaches it. Frame `rank_sd`: the deviation of the noise in that share.

    Leaves a site: counts of numbers that begin with the same bits as those looked for; in clear its count. With noise:
    the counts of the cells.
    """
    points = (q,) if isinstance(q, (int, float)) else tuple(q)
    if not points or not all(0 <= x <= 1 for x in points):
        raise JobError(f"quantiles(q={q!r}): each is from 0 to 1")
    if not 0 <= error < 1:
        raise JobError(f"quantiles(error={error!r}): it is a share from 0 to 1, such as 0.01")
    ends = bounds_of("quantiles", bounds)
    asked = Asked(single.chosen(columns or tuple(ends), least), tuple(map(float, points)), float(error), least)
    exact = analysis(partial(_round, asked), works(partial(reading, least)) | single.naming(asked.columns, least))
    if not ends:
        return exact
    if least > 1 or set(ends) != set(asked.columns) or not isinstance(cells, int) or cells < 2:
        raise JobError("quantiles(bounds=…): give those of every column, two cells or more, and leave least out")
    noised = partial(_noised, asked, ends, cells)
    return bounded(exact, [Block(cells)] * len(asked.columns), partial(_within, asked.columns, ends, cells), noised)


def works(read: Reading) -> dict[str, Work]:
    """The works of `grid` and `searched`, of the columns that `read` has."""
    return {"counts": work(partial(_counts, read)), "digits": work(partial(_digits, read))}


def reading(least: int, table: Held, names: Sequence[str]) -> list[Array]:
    """The numbers of these columns, each of which has to be there."""
    return [single.values(table, name, least) for name in names]


def _round(asked: Asked, state: State, context: RoundContext, every: bool = True) -> Any:
    columns, others, sites = yield from single.numeric(asked.columns, context.cohort, every)
    asked = asked._replace(columns=tuple(columns))
    found, seen = yield from grid(asked, sites)
    pooled = {name: found[i] for i, name in enumerate(asked.columns)}
    tables = {
        "pandas": Table(list(asked.q), pooled, ("q",)),
        "per_site": single.per_site(seen.shown, "count", asked.columns),
    }
    return answer("quantiles", tables, {"left_out": others})


def grid(asked: Asked, sites: Sequence[str]) -> Asking[tuple[Array, Sums]]:
    """(columns, q): the quantiles of each column, and what sites said of how many values they have."""
    seen = yield from ask("counts", sites, {"columns": packed(asked.columns)}, {"count": (len(asked.columns),)})
    counts = whole(seen.of["count"])
    ends = [_ranks(int(n), x) for n in counts for x in asked.q]
    wanted = {Rank(i // len(asked.q), r) for i, pair in enumerate(ends) for r in pair if r >= 0}
    found = yield from searched(asked, sites, wanted)
    rows = [
        _between(int(counts[i // len(asked.q)]), asked.q[i % len(asked.q)], i // len(asked.q), pair, found)
        for i, pair in enumerate(ends)
    ]
    return np.array(rows).reshape(len(asked.columns), len(asked.q)), seen


def _ranks(n: int, q: float) -> tuple[int, int]:
    """Between which of n sorted values the quantile lies (Hyndman and Fan 1996, type 7); -1 where there is none."""
    place = (n - 1) * q
    return (math.floor(place), math.ceil(place)) if n else (-1, -1)


def _between(n: int, q: float, column: int, pair: tuple[int, int], found: Mapping[tuple[int, int], float]) -> float:
    if not n:
        return math.nan
    low, high = (found[column, rank] for rank in pair)
    return float(np.quantile([low, high], (n - 1) * q - pair[0])) if low != high else low


def searched(asked: Asked, sites: Sequence[str], wanted: set[Rank]) -> Asking[dict[tuple[int, int], float]]:
    """(column, rank) -> the number of that rank, to the error asked for."""
    ranks = {(r.column, r.left): r for r in wanted}
    for level in range(DIGITS if ranks else 0):
        targets = sorted({(r.column, r.prefix) for r in ranks.values()})
        payload = {
            "column": np.array([c for c, _ in targets]), "prefix": np.array([p for _, p in targets], np.uint64),
            "level": np.int64(level), "columns": packed(asked.columns),
        }  # fmt: skip
        told = yield from ask("digits", sites, payload, {"count": (len(targets), BASE)})
        counts = dict(zip(targets, whole(told.of["count"]), strict=True))
        ranks = {at: _deeper(r, counts[r.column, r.prefix]) for at, r in ranks.items()}
        ends = {at: _ends(r.prefix, level + 1) for at, r in ranks.items()}
        if asked.error and all(high - low <= asked.error * max(abs(low), abs(high)) for low, high in ends.values()):
            break
    return {at: low if low == high else (low + high) / 2 for at, (low, high) in ends.items()} if ranks else {}


def _deeper(rank: Rank, counts: Array) -> Rank:
    below = np.cumsum(counts)
    digit = int(np.searchsorted(below, rank.left, "right"))
    return Rank(rank.column, rank.left - (int(below[digit - 1]) if digit else 0), rank.prefix * BASE + digit)


def _ends(prefix: int, level: int) -> tuple[float, float]:
    """The least and the largest number whose first digits are these."""
    shift = 8 * (DIGITS - level)
    low, high = prefix << shift, ((prefix + 1) << shift) - 1
    found = float_of((np.array([low, high], np.uint64) ^ _HALF).view(np.int64))
    return float(found[0]), float(found[1])


def _counts(read: Reading, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = np.array([len(x) for x in read(table, unpacked(payload["columns"]))])
    return Sent({"count": found}, {}, {"count": found})


def _digits(read: Reading, table: Held, payload: Mapping[str, Array]) -> Sent:
    columns = [whole_of(x).view(np.uint64) ^ _HALF for x in read(table, unpacked(payload["columns"]))]
    level, found = int(payload["level"]), np.zeros((len(payload["column"]), BASE))
    for i, (column, prefix) in enumerate(zip(payload["column"], payload["prefix"], strict=True)):
        bits = columns[int(column)]
        same = bits[bits >> np.uint64(64 - 8 * level) == prefix] if level else bits
        found[i] = np.bincount(((same >> np.uint64(56 - 8 * level)) & np.uint64(255)).astype(np.int64), minlength=BASE)
    return Sent({"count": found})


def _within(names: Sequence[str], ends: Bounds, cells: int, table: Held) -> Array:
    """How many values of each column lie in each cell, one column after another."""
    found = []
    for name in names:
        x = scaled(table, name, ends[name])
        at = np.floor((x[~np.isnan(x)] + 1) / 2 * cells).astype(np.int64)
        found.append(np.bincount(np.minimum(at, cells - 1), minlength=cells))
    return np.concatenate(found)


def _noised(asked: Asked, ends: Bounds, cells: int, found: Found) -> Params:
    shape = (len(asked.columns), cells)
    counts, sd = found.sums.reshape(shape), float(found.sd[0])
    lines = [[_reached(row, q, sd) for q in asked.q] for row in counts]
    tables = {
        "pandas": {n: np.array([_at(ends[n], x) for x, _ in own]) for n, own in zip(asked.columns, lines, strict=True)},
        "rank_sd": {n: np.array([rank for _, rank in own]) for n, own in zip(asked.columns, lines, strict=True)},
    }
    shown = {site: {"count": own.reshape(shape).sum(axis=1)} for site, own in found.shown.items()}
    return answer("quantiles", {
        **{title: Table(list(asked.q), columns, ("q",)) for title, columns in tables.items()},
        "per_site": single.per_site(shown, "count", asked.columns),
    }, {"noise": found.noise})  # fmt: skip


def _at(ends: tuple[float, float], share: float) -> float:
    return ends[0] + share * (ends[1] - ends[0])


def _reached(counts: Array, q: float, sd: float) -> tuple[float, float]:
    """How far along the cells the running sum reaches the share q, and the deviation of the noise in that share.

    Noise makes the sum fall at places: it is taken in the middle of the two nearest that do not.
    """
    n, cells = float(counts.sum()), len(counts)
    if n < 1:
        return math.nan, math.nan
    raw = np.append(0.0, np.cumsum(counts))
    rising = (np.maximum.accumulate(raw) + np.minimum.accumulate(raw[::-1])[::-1]) / 2
    rising = np.clip(rising, 0, n)
    low, high = np.searchsorted(rising, q * n, "left"), np.searchsorted(rising, q * n, "right")
    if low < high:  # it stands still there
        place = low + (1 - q) * (high - 1 - low)
    else:
        place = low - 1 + (q * n - rising[low - 1]) / (rising[low] - rising[low - 1])
    rank = sd * math.sqrt(place * (1 - q) ** 2 + (cells - place) * q**2) / n
    return float(place / cells), rank
