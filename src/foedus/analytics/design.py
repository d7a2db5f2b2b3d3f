"""The columns of a model as all sites code them: categories agreed on, numbers centred and scaled by pooled sums.
What a site holds and the way to ask for sums may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.analytics.analysis import Table
from foedus.analytics.asking import Asking, Sent, Sums, ask, collect, listing, packed, unpacked, whole, work
from foedus.analytics.held import Held, coded, column, names_people, numbers, text
from foedus.core import Work
from foedus.errors import FoedusError, JobError
from foedus.params import Array

Levels = Mapping[str, Sequence[str]]
FLAT = 1e-15  # of a column's mean square: a smaller variance is rounding


class Wanted(NamedTuple):
    """What an analysis reads: numbers (a target, a time), features of either kind, and groups, which are categories.

    `categories` names the levels of a column beforehand; `least` rows a site needs to be part of any sum.
    """

    numbers: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    categories: Levels = {}
    least: int = 1

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.numbers, *self.features, *self.groups)))


class Coded(NamedTuple):
    """How all sites code it: levels of categories (the first is the reference), and the pooled centre and scale.

    `terms` are the features' columns; `centre` and `scale` go with them, `means` with the numbers; `used`: rows.
    """

    sites: Sequence[str]
    levels: Levels
    terms: Sequence[str]
    centre: Array
    scale: Array
    means: Array
    used: int
    per_site: Mapping[str, Sequence[int]]  # site -> rows, used rows; of none under a seal
    some: int = 1  # sites with used rows

    def payload(self) -> dict[str, Array]:
        return {"levels": packed(dict(self.levels)), "centre": self.centre, "scale": self.scale}


class Rows(NamedTuple):
    """A site's complete rows: numbers (rows, numbers), features centred and scaled (rows, terms), groups by level."""

    numbers: Array
    x: Array
    groups: Array
    used: int


def wanted(**given: Any) -> Wanted:
    """What is wanted, checked: names may be one or several. Raises JobError."""
    names = {k: _names(k, v) for k, v in given.items() if k in ("numbers", "features", "groups")}
    found = Wanted(**names, categories=_levels(given.get("categories")), least=given.get("least", 1))
    twice = [n for n in found.features if found.features.count(n) > 1 or n in found.numbers]
    if twice:
        raise JobError(f"column {twice[0]!r} has two places in this analysis: name it once")
    if not isinstance(found.least, int) or found.least < 1:
        raise JobError(f"least={found.least!r}: it is a whole number of rows, at least 1")
    return found


def _names(what: str, given: Any) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(given or ())
    if not all(isinstance(name, str) and name for name in found):
        raise JobError(f"{what}={given!r}: give the names of columns")
    return found


def _levels(given: Any) -> dict[str, tuple[str, ...]]:
    return {name: tuple(map(text, levels)) for name, levels in (given or {}).items()}


def works(asked: Wanted) -> dict[str, Work]:
    """The works of `learn`."""
    return {
        "kinds": work(partial(_kinds, asked)),
        "levels": listing(partial(_own_levels, asked)),
        "scale": work(partial(_scales, asked)),
    }


def learn(asked: Wanted, sites: Sequence[str], every: bool = True) -> Asking[Coded]:
    """How the columns are coded, from counts and sums; where texts have no `categories`, each site lists its own."""
    shape = (len(asked.all),)
    kinds = yield from ask("kinds", sites, {}, most={"number": shape, "text": shape, "rows": ()}, every=every)
    sites = kinds.sites
    texts = _texts(asked, kinds)
    levels = {name: found for name, found in asked.categories.items() if name in asked.all}
    missing = sorted((set(texts) | set(asked.groups)) - set(levels))
    if missing:
        listed = yield from collect(
            "levels", sites, {"of": packed(missing)}, f"give categories={{column: levels}} for {', '.join(missing)}"
        )
        levels |= {n: sorted({v for held in listed.values() for v in held.get(n, ())}) for n in missing}
    return (yield from _scaled(asked, sites, levels))


def _texts(asked: Wanted, kinds: Sums) -> list[str]:
    """The features that hold text. Raises JobError where it is text here and numbers there."""
    found = []
    for at, name in enumerate(asked.all):
        if kinds.most["text"][at] and kinds.most["number"][at] and name not in asked.groups:
            by = {word: _where(kinds, word, at) for word in ("text", "number")}
            raise JobError(
                f"column {name!r} holds text at {by['text']} and numbers at {by['number']}: code it alike at all sites"
            )
        if kinds.most["text"][at] and name in asked.numbers:
            where = _where(kinds, "text", at)
            raise JobError(f"column {name!r} holds text at {where}, and numbers are needed: code it as numbers there")
        if kinds.most["text"][at] and name in asked.features:
            found.append(name)
    return found


def _where(kinds: Sums, word: str, at: int) -> str:
    """Which sites said so of a column, for people."""
    return ", ".join(s for s, x in sorted(kinds.shown.items()) if x[word][at]) or "some sites"


def _scaled(asked: Wanted, sites: Sequence[str], levels: Levels) -> Asking[Coded]:
    terms = tuple(term for name in asked.features for term in _terms(name, levels))
    count = len(asked.numbers) + len(terms)
    found = yield from ask(
        "scale", sites, {"levels": packed(dict(levels))},
        {"n": (), "sum": (count,), "squares": (count,), "sites": ()},
    )  # fmt: skip
    n = int(whole(found.of["n"]))
    per_site = {site: [int(shown["rows"]), int(shown["used"])] for site, shown in sorted(found.shown.items())}
    if not n:
        raise JobError(
            f"no site holds {asked.least} complete rows of {', '.join(asked.all)}{_counts(per_site)}: "
            "leave out columns with many gaps" + (", or lower least" if asked.least > 1 else "")
        )
    mean, square = found.of["sum"] / n, found.of["squares"] / n
    scale = np.sqrt(np.maximum(square - mean**2, FLAT * square))
    k = len(asked.numbers)
    return Coded(sites, levels, terms, mean[k:], np.where(scale > 0, scale, 1.0)[k:], mean[:k], n, per_site,
                 int(whole(found.of["sites"])))  # fmt: skip


def per_site(coded: Coded, **more: Sequence[float]) -> Table:
    """Rows and used rows of each site, and what else each shows."""
    rows, used = np.array(list(coded.per_site.values()), np.int64).reshape(-1, 2).T
    return Table(list(coded.per_site), {"rows": rows, "used": used, **more}, ("site",))


def _counts(per_site: Mapping[str, Sequence[int]]) -> str:
    told = ", ".join(f"{site}: {used} of {rows}" for site, (rows, used) in per_site.items())
    return f" ({told})" if told else ""


def _terms(name: str, levels: Levels) -> list[str]:
    return [f"{name}_{level}" for level in levels[name][1:]] if name in levels else [name]


def _kinds(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = [column(table, name).kind for name in asked.all]
    flags = {word: np.array([kind == word for kind in found], np.int64) for word in ("number", "text")}
    return Sent({}, flags | {"rows": table.rows}, flags)


def _own_levels(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> dict[str, list[str]]:
    """The levels that each of these columns has here; none where there are fewer than `least` rows.

    Raises FoedusError for a column whose levels may name people.
    """
    found = {name: coded(table, name) for name in unpacked(payload["of"])} if table.rows >= asked.least else {}
    for name, own in found.items():
        if names_people(own, asked.least):
            raise FoedusError(
                f"column {name!r} has {len(own.names)} levels in {table.rows} rows, so they may name people and are "
                f"not listed: take another column, or give categories={{{name!r}: levels}}"
            )
    return {name: own.names for name, own in found.items()}


def _scales(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> Sent:
    levels = unpacked(payload["levels"])
    terms = sum(len(_terms(name, levels)) for name in asked.features)
    rows = read(asked, table, {**payload, "centre": np.zeros(terms), "scale": np.ones(terms)})
    x = np.concatenate([rows.numbers, rows.x], axis=1)
    sums = {"n": rows.used, "sum": x.sum(axis=0), "squares": np.square(x).sum(axis=0), "sites": rows.used > 0}
    return Sent(sums, {}, {"rows": table.rows, "used": rows.used})


def read(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> Rows:
    """The complete rows, coded as the payload says; none where they are fewer than `least`. Raises FoedusError."""
    levels = unpacked(payload["levels"])
    table = table if table.rows >= asked.least else Held({}, 0)
    size = table.rows
    numeric = [numbers(table, name) for name in asked.numbers]
    features = [_coded(name, table, levels, size) for name in asked.features]
    groups = [_places(name, table, levels[name]) for name in asked.groups]
    plain = np.stack(numeric, axis=1) if numeric else np.empty((size, 0))
    x = np.concatenate(features, axis=1) if features else np.empty((size, 0))
    by = np.stack(groups, axis=1) if groups else np.empty((size, 0), np.int64)
    whole_rows = ~np.isnan(plain).any(axis=1) & ~np.isnan(x).any(axis=1) & (by >= 0).all(axis=1)
    if whole_rows.sum() < asked.least:
        whole_rows[:] = False
    x = (x[whole_rows] - payload["centre"]) / payload["scale"]
    return Rows(plain[whole_rows], x, by[whole_rows], int(whole_rows.sum()))


def _coded(name: str, table: Held, levels: Levels, size: int) -> Array:
    """A feature as columns (rows, terms): numbers, or an indicator of each level but the first."""
    if name not in levels:
        return numbers(table, name).reshape(size, 1)
    at = _places(name, table, levels[name])
    found = (at[:, None] == np.arange(1, len(levels[name]))).astype(np.float64)
    found[at < 0] = np.nan
    return np.asarray(found.reshape(size, max(0, len(levels[name]) - 1)))


def _places(name: str, table: Held, levels: Sequence[str]) -> Array:
    """Which level each row has; -1 for a gap. Raises FoedusError for a level that was not named."""
    held, known = coded(table, name), {level: at for at, level in enumerate(levels)}
    strange = [level for level in held.names if level not in known]
    if strange:
        raise FoedusError(
            f"column {name!r} has {len(strange)} levels that are none of {', '.join(levels)}: add them to categories, "
            "or empty their cells"
        )
    return np.array([*(known[level] for level in held.names), -1], np.int64)[held.rows]
