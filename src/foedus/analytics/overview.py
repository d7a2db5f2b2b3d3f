"""Who is in a federation, where its sites differ, and the schema that their data have: `table_one`, `drift`, `schema`.
Single columns, quantiles and the way to ask for sums may come in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.analytics import columns as single
from foedus.analytics import quantiles
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Asking, Sent, ask, collect, listing, packed, unpacked, work
from foedus.analytics.held import Coded, Held, coded, column, names_people
from foedus.core import Algorithm, RoundContext, State, Work
from foedus.errors import FoedusError, JobError
from foedus.ordered import NOTHING, float_of, whole_of
from foedus.params import Array

MOST_LEVELS = 50  # of a column that is a list of codes; more are free text
OTHERS = "(others)"  # the levels of few rows, which no site lists
FEW = 12  # distinct whole numbers that are rather codes
Levels = Mapping[str, Sequence[str]]


class Asked(NamedTuple):
    """What is looked at: columns (none: all), levels named beforehand, how many rows a number that is shown needs."""

    columns: tuple[str, ...]
    categories: Levels
    least: int


def table_one(
    columns: str | Sequence[str] = (), *, categories: Mapping[str, Sequence[Any]] | None = None, least: int = 5
) -> Algorithm:
    """Who is in the federation: the first table of a clinical paper, with a column for all and one for each site.

    Texts, and columns with `categories`, have a row for each level: its count and share of the values. Numbers have
    mean and standard deviation; every column its gaps. A level of fewer than `least` rows is not shown ("few"), nor the
    one that would tell it, nor the mean of so few. `.pandas`: by column and level, as texts; `.per_site`: rows. Fact:
    `free_text`, texts that are left out, for most of their levels are of few rows (names, notes), or more than 50.

    Leaves a site: for each column its count, sum, sum of squares about its own mean and about that of all, and of each
    level a count, in clear as shown; the levels of at least `least` rows of texts without `categories`, the rest as
    "(others)".
    """
    asked = _asked(columns, categories, least)
    works = {"cells": work(partial(_cells, asked)), "spread": work(partial(_spread, asked)), **_works(asked)}
    return analysis(partial(_table_one, asked), works)


def drift(
    columns: str | Sequence[str] = (),
    *,
    categories: Mapping[str, Sequence[Any]] | None = None,
    bins: int = 10,
    least: int = 5,
) -> Algorithm:
    """Where a site's columns are distributed otherwise than those of all other sites together.

    Numbers are counted between `bins` quantiles of all. `.pandas`: by column and site `psi`, the population stability
    index (sum of (p - q) log(p / q), each count and a half; 0.1 is small, 0.25 much); `ks`, the largest difference of
    the cumulative shares at those quantiles; `difference`, of the means over the standard deviation of all (numbers);
    `missing`, the difference of the shares of gaps. NaN for a site with fewer than `least` values.

    Leaves a site: those counts, sums and squares, in clear; the levels of texts as in `table_one`. Fact: `free_text`.
    """
    asked = _asked(columns, categories, least)
    if not isinstance(bins, int) or not 2 <= bins <= 100:
        raise JobError(f"drift(bins={bins!r}): give a whole number from 2 to 100")
    works = {"shape": work(partial(_shape, asked)), **quantiles.works(least), **_works(asked)}
    return analysis(partial(_drift, asked, bins), works)


def schema(
    columns: str | Sequence[str] = (),
    *,
    dataset: str = "data",
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 5,
) -> Algorithm:
    """The schema that all sites' data have, to begin a Job's `schema=` with: read it, add units, tighten it.

    Types, codes (texts of at most 50 levels, whole numbers of at most 12), ranges rounded outwards to two digits, the
    largest share of gaps, the fewest rows. Fact: `toml`, a table named `dataset`. `.pandas`: by column its rule.
    `.per_site`: rows. A column that some site lacks is left out, and named in the fact `lacking`.

    Leaves a site: names and kinds of its columns, least and largest values, shares of gaps, rows, in clear; levels as
    in `table_one`: where they are no groups, or some are listed nowhere, the rule is `text`.
    """
    asked = _asked(columns, categories, least)
    if not dataset.replace("_", "").replace("-", "").isalnum():
        raise JobError(f"schema(dataset={dataset!r}): give a name of letters, digits, '_' and '-'")
    works = {"rules": work(partial(_rules, asked)), **_works(asked)}
    return analysis(partial(_schema, asked, dataset), works)


def _asked(columns: Any, categories: Mapping[str, Sequence[Any]] | None, least: int) -> Asked:
    names = single.chosen(columns, least)
    return Asked(names, {name: tuple(map(str, levels)) for name, levels in (categories or {}).items()}, least)


def _works(asked: Asked) -> dict[str, Work]:
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

    def payload(self) -> dict[str, Array]:
        return {"numbers": packed(self.numbers), "levels": packed(self.levels)}

    @property
    def cells(self) -> int:
        return sum(map(len, self.levels.values()))

    @property
    def columns(self) -> list[str]:
        return [*self.numbers, *self.levels]


def _known(asked: Asked, context: RoundContext, every: bool) -> Asking[Known]:
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
    return Known(numbers, {name: levels[name] for name in texts if name in levels}, free, sites)


def _numbers(table: Held, names: Sequence[str], least: int) -> Iterator[tuple[Array, int]]:
    """Of each column its numbers, and how many gaps it has; nothing of one with too few values."""
    for name in names:
        held = column(table, name).values if name in table.columns else np.empty(0)
        x = np.asarray(held, np.float64)
        there = x[~np.isnan(x)]
        yield (there, len(x) - len(there)) if len(there) >= least else (there[:0], len(x))


def _counted(table: Held, levels: Levels, least: int) -> Iterator[tuple[Array, int]]:
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
        yield (found, int((rows < 0).sum())) if found.sum() >= least else (0 * found, table.rows)


def _moments(table: Held, known: Mapping[str, Array], least: int) -> dict[str, Array]:
    """Counts, gaps, sums and squares about the site's own means of numbers; counts of levels and their gaps."""
    numbers = list(_numbers(table, unpacked(known["numbers"]), least))
    levels = list(_counted(table, unpacked(known["levels"]), least))
    xs = [x for x, _ in numbers]
    return {
        "rows": np.array(float(table.rows) if table.rows >= least else 0.0),
        "count": np.array([float(len(x)) for x in xs] + [found.sum() for found, _ in levels]),
        "missing": np.array([float(gaps) for _, gaps in (*numbers, *levels)]),
        "sum": np.array([x.sum() for x in xs]),
        "squares": np.array([np.square(x - x.mean()).sum() if len(x) else 0.0 for x in xs]),
        "cells": np.concatenate([np.empty(0), *(found for found, _ in levels)]),
    }


def _cells(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = _moments(table, payload, asked.least)
    shown = _veiled(found["cells"], unpacked(payload["levels"]), asked.least)
    return Sent(found, {}, {**found, "cells": shown})


def _veiled(cells: Array, levels: Levels, least: int) -> Array:
    """Counts of levels, NaN for those of few; where a column has one such, its next one as well: the sum is known."""
    found, at = single.hidden(cells, least), 0
    for own in levels.values():
        part = found[at : at + len(own)]
        if np.isnan(part).sum() == 1 and (part > 0).any():
            part[np.where(part > 0, part, np.inf).argmin()] = np.nan
        at += len(own)
    return found


def _spread(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = zip(_numbers(table, unpacked(payload["numbers"]), asked.least), payload["mean"], strict=True)
    return Sent({"squares": np.array([np.square(x - mean).sum() for (x, _), mean in found])})


def _shapes(known: Known) -> dict[str, tuple[int, ...]]:
    n = len(known.numbers)
    return {"rows": (), "count": (len(known.columns),), "missing": (len(known.columns),), "sum": (n,),
            "squares": (n,), "cells": (known.cells,)}  # fmt: skip


def _table_one(asked: Asked, state: State, context: RoundContext, every: bool = True) -> Any:
    known = yield from _known(asked, context, every)
    first = yield from ask("cells", known.sites, known.payload(), _shapes(known))
    n = len(known.numbers)
    mean = first.of["sum"] / np.maximum(first.of["count"][:n], 1)
    second = yield from ask("spread", known.sites, {**known.payload(), "mean": mean}, {"squares": (n,)})
    pooled = {
        **first.of,
        "squares": second.of["squares"],
        "cells": _veiled(first.of["cells"], known.levels, asked.least),
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


# ---- drift -----------------------------------------------------------------------------------------------------------
def _shape(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    found, edges = _moments(table, payload, asked.least), payload["edges"]
    numbers = _numbers(table, unpacked(payload["numbers"]), asked.least)
    inside = [
        np.bincount(np.searchsorted(edge[np.isfinite(edge)], x, "left"), minlength=len(edge) + 1)
        for (x, _), edge in zip(numbers, edges, strict=True)
    ]
    found["inside"] = np.array(inside, np.float64).reshape(len(edges), edges.shape[1] + 1)
    return Sent(found, {}, found)


def _drift(asked: Asked, bins: int, state: State, context: RoundContext, every: bool = True) -> Any:
    known = yield from _known(asked, context, every)
    n, cuts = len(known.numbers), np.arange(1, bins) / bins
    grid = np.zeros((0, bins - 1))
    if n:
        search = quantiles.Asked(tuple(known.numbers), tuple(cuts), 0.0, asked.least)
        grid, _ = yield from quantiles.grid(search, known.sites)
    edges = np.array([np.append(np.unique(row), np.full(bins - 1 - len(np.unique(row)), np.inf)) for row in grid])
    shapes = _shapes(known) | {"inside": (n, bins)}
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


# ---- the schema ------------------------------------------------------------------------------------------------------
def _rules(asked: Asked, table: Held, payload: Mapping[str, Array]) -> Sent:
    names, levels = unpacked(payload["columns"]), unpacked(payload["levels"])
    enough = table.rows >= asked.least
    most = {word: np.full(len(names), NOTHING, np.int64) for word in ("low", "high", "gaps")}
    broken = np.zeros(len(names), np.int64)
    for i, name in enumerate(names):
        if not enough or name not in table.columns:
            broken[i] |= 2 * (enough and name not in table.columns)
            continue
        if name in levels:
            broken[i] |= 4 * bool(set(coded(table, name).names) - set(levels[name]))
        held = column(table, name)
        most["gaps"][i] = whole_of(1 - held.there.sum() / max(1, table.rows))
        if held.kind == "number" and held.there.any():
            x = held.values[held.there]
            most["low"][i], most["high"][i] = whole_of(-x).max(), whole_of(x).max()
            broken[i] |= int((x != np.rint(x)).any())
    rows = {"rows": whole_of(-float(table.rows)) if enough else NOTHING}
    flags = {"broken": broken & 1, "lacking": (broken >> 1) & 1, "strange": broken >> 2}
    return Sent({}, {**most, **flags, **rows}, {"rows": np.int64(table.rows)})


def _schema(asked: Asked, dataset: str, state: State, context: RoundContext, every: bool = True) -> Any:
    known = yield from _known(asked, context, every)
    names, n = [*known.columns, *known.free], (len(known.columns) + len(known.free),)
    shapes = {**dict.fromkeys(("low", "high", "gaps", "broken", "lacking", "strange"), n), "rows": ()}
    listed_levels = {name: [v for v in levels if v != OTHERS] for name, levels in known.levels.items()}
    asking = {"columns": packed(names), "levels": packed(listed_levels)}
    found = yield from ask("rules", known.sites, asking, most=shapes)
    strange = {name for i, name in enumerate(names) if found.most["strange"][i]}
    low, high, gaps = -float_of(found.most["low"]), float_of(found.most["high"]), float_of(found.most["gaps"])
    whole_numbers = [
        name
        for i, name in enumerate(names)
        if name in known.numbers and not found.most["broken"][i] and high[i] - low[i] < FEW and name not in known.levels
    ]
    codes: dict[str, list[int]] = {}
    if whole_numbers and found.shown:  # of which sites may list the levels
        listed = yield from collect("levels", known.sites, {"of": packed(whole_numbers)}, "give categories=…")
        for name in whole_numbers:
            said = [own[name] for own in listed.values() if name in own]
            if said and not any(own is None or OTHERS in own for own in said):
                codes[name] = sorted({int(float(v)) for own in said for v in own})
    rules = {}
    for i, name in enumerate(names):
        if not found.most["lacking"][i]:
            rule = _rule(known, codes, name, low[i], high[i], bool(found.most["broken"][i]), name in strange)
            share = min(1.0, math.ceil(20 * gaps[i]) / 20) if gaps[i] > 0 else 0.0
            rules[name] = rule | ({"missing": share} if share else {})
    rows = -float_of(found.most["rows"])
    least = {"least_rows": int(_outwards(float(rows), False))} if rows >= 1 else {}
    facts = {
        "toml": _toml(dataset, rules, least),
        "lacking": [name for i, name in enumerate(names) if found.most["lacking"][i]],
    }
    texts = [_inline(rule) for rule in rules.values()]
    return answer("schema", {
        "pandas": Table(list(rules), {"rule": texts}, ("column",)),
        "per_site": Table(sorted(found.shown), {"rows": [int(x["rows"]) for _, x in sorted(found.shown.items())]},
                          ("site",)),
    }, facts)  # fmt: skip


def _rule(
    known: Known, codes: Mapping[str, Any], name: str, low: float, high: float, broken: bool, strange: bool
) -> dict[str, Any]:
    levels = [level for level in known.levels.get(name, ()) if level != OTHERS]
    if name in known.levels or name in known.free:
        whole = 0 < len(levels) <= MOST_LEVELS and not strange
        return {"type": "code", "codes": levels} if whole else {"type": "text"}
    if name in codes:
        return {"type": "code", "codes": codes[name]}
    rule: dict[str, Any] = {"type": "number" if broken else "integer"}
    if math.isnan(low):
        return {"type": "number"}
    ends = _outwards(low, False), _outwards(high, True)
    return rule | dict(zip(("min", "max"), ends if broken else map(int, ends), strict=True))


def _outwards(x: float, up: bool) -> float:
    """Rounded to two digits, away from what lies inside.

    >>> _outwards(1234.5, True), _outwards(1234.5, False), _outwards(-0.0123, False)
    (1300.0, 1200.0, -0.013)
    """
    if x == 0 or not math.isfinite(x):
        return x
    unit = 10.0 ** (math.floor(math.log10(abs(x))) - 1)
    steps = math.ceil(round(x / unit, 9)) if up else math.floor(round(x / unit, 9))
    return float(f"{steps * unit:.12g}")


def _toml(dataset: str, rules: Mapping[str, Mapping[str, Any]], least: Mapping[str, int]) -> str:
    lines = [f"[{dataset}]", *(f"{name} = {value}" for name, value in least.items()), "", f"[{dataset}.columns]"]
    return "\n".join([*lines, *(f"{_key(name)} = {_inline(rule)}" for name, rule in rules.items())]) + "\n"


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _inline(rule: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in rule.items()) + " }"
