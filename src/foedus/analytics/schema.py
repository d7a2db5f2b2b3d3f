"""The schema that all sites' data have, proposed.
The columns of all sites by kind may come in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Sent, ask, collect, packed, unpacked, work
from foedus.analytics.held import Held, coded, column
from foedus.analytics.levels import MOST_LEVELS, OTHERS, Asked, Known, asked_for, known_columns, works
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.ordered import NOTHING, float_of, whole_of
from foedus.params import Array

FEW = 12  # distinct whole numbers that are rather codes


def schema(
    columns: str | Sequence[str] = (),
    *,
    dataset: str = "data",
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 5,
) -> Algorithm:
    """The schema that all sites' data have, to begin a Job's `schema=` with: read it, add units, tighten it.

    Types, codes (texts of at most 50 levels, whole numbers of at most 12), ranges rounded outwards to two digits, the
    largest share of gaps, the fewest rows. Dates are `text`, as a schema has them. Fact: `toml`, a table named
    `dataset`. `.pandas`: by column its rule. `.per_site`: rows. A column that some site lacks is left out, and named in
    the fact `lacking`.

    Leaves a site: names and kinds of its columns, least and largest values, shares of gaps, rows, in clear; levels as
    in `table_one`: where they are no groups, or some are listed nowhere, the rule is `text`.
    """
    asked = asked_for(columns, categories, least)
    if not dataset.replace("_", "").replace("-", "").isalnum():
        raise JobError(f"schema(dataset={dataset!r}): give a name of letters, digits, '_' and '-'")
    made = {"rules": work(partial(_rules, asked)), **works(asked)}
    return analysis(partial(_schema, asked, dataset), made)


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
    known = yield from known_columns(asked, context, every)
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
        if name in known.numbers and not found.most["broken"][i] and high[i] - low[i] < FEW and name not in known.dates
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
    if name in known.dates:
        return {"type": "text"}
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
