"""What follows from sums of products: correlations, principal components (Pearson 1901), t-tests (Welch 1947).
The design and the way to ask for sums may come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.analytics import columns as single
from foedus.analytics import design
from foedus.analytics.analysis import Table, Tail, analysis, answer
from foedus.analytics.asking import Sent, ask, packed, unpacked, whole, work
from foedus.analytics.bounded import UNIT, Bounds, Found, bounded, bounds_of, scaled, units
from foedus.analytics.design import Wanted
from foedus.analytics.held import Held, numbers
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array, Params
from foedus.privacy.dp_metrics import Block

FLAT = 1e-28  # of a square sum: what is left of a constant column by rounding


def correlation(
    columns: Sequence[str] = (), *, bounds: Mapping[str, tuple[float, float]] | None = None, least: int = 1
) -> Algorithm:
    """Pearson's correlation of each pair of columns, over the rows that have both; NaN with a constant column.

    Without `columns`, of all with numbers. `.pandas`: columns by columns, as `DataFrame.corr` of the pooled rows;
    `pairs`: how many rows each has; a site's pair of fewer than `least` is not used. `.per_site`: by site and column
    its values. Fact: `left_out`, the other columns and what they hold.

    `bounds`: column -> (low, high), for `privacy=fd.dp_metrics(…)`, and only looked at with it: values beyond count as
    these, and each site adds noise to the number of its complete rows, their sums and products.

    Leaves a site: for each pair its rows, sums, squares and products about the pooled means; with noise, those of the
    complete rows.
    """
    ends = bounds_of("correlation", bounds)
    names = single.chosen(columns or tuple(ends), least)
    works = {"sums": work(partial(_column_sums, least)), "products": work(partial(_pair_sums, least))}
    exact = analysis(partial(_correlation, names), works | single.naming(names, least))
    if not ends:
        return exact
    if least > 1 or set(ends) != set(names):
        raise JobError("correlation(bounds=…): give those of every column, and leave least out")
    pairs = len(names) * (len(names) + 1) // 2
    blocks = [Block(1), *[Block(1, UNIT)] * (len(names) + pairs)]
    return bounded(exact, blocks, partial(_within, names, ends), partial(_noised, names))


def pca(
    features: str | Sequence[str],
    *,
    components: int | None = None,
    scale: bool = False,
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 1,
) -> Algorithm:
    """Principal components of the complete rows, as scikit-learn's; `scale`: of columns of variance 1.

    The largest loading of each is positive. `.pandas`: by component the loadings; `variance`: by component `variance`
    and `ratio`; `mean`: by feature its centre and scale. `.per_site`: rows, used.

    Leaves a site: the sums of x, x² and xx'.
    """
    asked = design.wanted(features=features, categories=categories, least=least)
    if components is not None and components < 1:
        raise JobError(f"pca(components={components!r}): it is at least 1")
    return analysis(
        partial(_pca, asked, components, scale), design.works(asked) | {"products": work(partial(_products, asked))}
    )


def ttest(
    value: str,
    group: str,
    *,
    equal_var: bool = False,
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 1,
) -> Algorithm:
    """Whether the mean of `value` differs between two groups: Welch's test, or Student's with `equal_var`.

    `.pandas`: by group `count`, `mean`, `std`. Facts: statistic (first group less second), df, p, difference, se.
    `.per_site`: rows, used.

    Leaves a site: by group its count, sum, and sum of squares about the pooled mean.
    """
    asked = design.wanted(numbers=value, groups=group, categories=categories, least=least)
    works = {"sums": work(partial(_group_sums, asked)), "squares": work(partial(_group_squares, asked))}
    return analysis(partial(_ttest, asked, equal_var), design.works(asked) | works)


def _correlation(names: tuple[str, ...], state: State, context: RoundContext, every: bool = True) -> Any:
    columns, others, sites = yield from single.numeric(names, context.cohort, every, ("number",))
    p, named = len(columns), {"columns": packed(columns)}
    first = yield from ask("sums", sites, named, {"count": (p,), "sum": (p,)})
    mean = first.of["sum"] / np.maximum(first.of["count"], 1)
    shapes = {name: (p, p) for name in ("count", "sum", "square", "product")}
    found = (yield from ask("products", sites, {**named, "mean": mean}, shapes)).of
    n, total = whole(found["count"]), found["sum"] / np.maximum(found["count"], 1)
    square = found["square"] - n * total**2
    flat = square <= FLAT * np.maximum(n, 1) * mean[:, None] ** 2
    r = _over(found["product"] - n * total * total.T, square, flat | (n < 2))
    return _matrix(columns, r, n, first.shown, {"left_out": others})


def _over(product: Array, square: Array, flat: Array) -> Array:
    root = np.where(flat | flat.T, math.nan, np.sqrt(np.maximum(square * square.T, 0)))
    return np.asarray(np.clip(product / root, -1, 1))


def _matrix(
    columns: Sequence[str], r: Array, n: Array, shown: Mapping[str, Mapping[str, Array]], facts: Mapping[str, Any]
) -> Params:
    return answer("correlation", {
        "pandas": Table(columns, {name: r[:, i] for i, name in enumerate(columns)}),
        "per_site": single.per_site(shown, "count", columns),
        "pairs": Table(columns, {name: n[:, i] for i, name in enumerate(columns)}),
    }, facts)  # fmt: skip


def _within(names: Sequence[str], ends: Bounds, table: Held) -> Array:
    """How many rows are complete, and their sums and products, scaled."""
    x = np.stack([scaled(table, name, ends[name]) for name in names], axis=1)
    x = x[~np.isnan(x).any(axis=1)]
    rows, columns = np.triu_indices(len(names))
    products = (units(x[:, i] * x[:, j]).sum() for i, j in zip(rows, columns, strict=True))
    return np.array([len(x), *units(x).sum(axis=0), *products], np.int64)


def _noised(names: Sequence[str], found: Found) -> Params:
    p, n = len(names), max(1.0, float(found.sums[0]))
    sums, upper = found.sums[1 : p + 1] / UNIT, found.sums[p + 1 :] / UNIT
    product = np.zeros((p, p))
    product[np.triu_indices(p)] = upper
    product = product + np.triu(product, 1).T - np.outer(sums, sums) / n
    square = np.repeat(np.diag(product)[:, None], p, axis=1)
    r = _over(product, square, (square <= 0) | (found.sums[0] < 2))
    shown = {site: {"count": np.full(p, own[0])} for site, own in found.shown.items()}
    return _matrix(names, r, np.full((p, p), found.sums[0]), shown, {"noise": found.noise})


def _column_sums(least: int, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = [single.values(table, name, least) for name in unpacked(payload["columns"])]
    count = np.array([len(x) for x in found])
    return Sent({"count": count, "sum": np.array([x.sum() for x in found])}, {}, {"count": count})


def _pair_sums(least: int, table: Held, payload: Mapping[str, Array]) -> Sent:
    """About the pooled means, of each row's column over the rows that have the other one, too."""
    x = np.stack([numbers(table, name) for name in unpacked(payload["columns"])], axis=1)
    there = (~np.isnan(x)).astype(np.float64)
    x = np.where(there > 0, x - payload["mean"], 0.0)
    count = there.T @ there
    sums = {"count": count, "sum": x.T @ there, "square": np.square(x).T @ there, "product": x.T @ x}
    return Sent({name: value * (count >= least) for name, value in sums.items()})


def _products(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> Sent:
    x = design.read(asked, table, payload).x
    return Sent({"products": x.T @ x})


def _pca(
    asked: Wanted, components: int | None, scale: bool, state: State, context: RoundContext, every: bool = True
) -> Any:
    coded = yield from design.learn(asked, context.cohort, every)
    p, n = len(coded.terms), coded.used
    most = min(p, n) if components is None else components
    if n < 2 or most > min(p, n):
        raise JobError(f"pca: {n} complete rows of {p} columns have no {most} components: ask for fewer")
    found = yield from ask("products", coded.sites, coded.payload(), {"products": (p, p)})
    unit = 1 / np.sqrt(np.maximum(np.diag(found.of["products"]) / (n - 1), 1e-300)) if scale else coded.scale
    values, vectors = np.linalg.eigh(found.of["products"] * np.outer(unit, unit) / (n - 1))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1].T
    vectors = vectors * np.sign(vectors[np.arange(p), np.abs(vectors).argmax(axis=1)])[:, None]
    labels = [f"pc{i + 1}" for i in range(most)]
    ratio = values / values.sum() if values.sum() else np.full(p, math.nan)
    return answer("pca", {
        "pandas": Table(labels, {t: vectors[:most, i] for i, t in enumerate(coded.terms)}, ("component",)),
        "per_site": design.per_site(coded),
        "variance": Table(labels, {"variance": values[:most], "ratio": ratio[:most]}, ("component",)),
        "mean": Table(coded.terms, {"centre": coded.centre, "scale": coded.scale / unit}, ("feature",)),
    }, {"n": n})  # fmt: skip


def _group_sums(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> Sent:
    rows, size = design.read(asked, table, payload), len(unpacked(payload["levels"])[asked.groups[0]])
    by, x = rows.groups[:, 0], rows.numbers[:, 0]
    return Sent({"count": np.bincount(by, minlength=size), "sum": np.bincount(by, x, minlength=size)})


def _group_squares(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> Sent:
    rows = design.read(asked, table, payload)
    by = rows.groups[:, 0]
    return Sent(
        {"square": np.bincount(by, (rows.numbers[:, 0] - payload["mean"][by]) ** 2, minlength=len(payload["mean"]))}
    )


def _ttest(asked: Wanted, equal_var: bool, state: State, context: RoundContext, every: bool = True) -> Any:
    coded = yield from design.learn(asked, context.cohort, every)
    levels = coded.levels[asked.groups[0]]
    if len(levels) != 2:
        raise JobError(
            f"a t-test needs two groups, and {asked.groups[0]!r} has {', '.join(levels)}: leave rows out at the sites"
        )
    first = yield from ask("sums", coded.sites, coded.payload(), {"count": (2,), "sum": (2,)})
    n = whole(first.of["count"])
    mean = first.of["sum"] / np.maximum(n, 1)
    second = yield from ask("squares", coded.sites, {**coded.payload(), "mean": mean}, {"square": (2,)})
    var = np.where(n > 1, second.of["square"] / np.maximum(n - 1, 1), math.nan)
    gap, se, df = compared(n, mean, var, equal_var)
    facts = {"n": coded.used, "difference": gap, "se": se, "statistic": gap / se if se else math.nan, "df": df}
    return answer("ttest", {
        "pandas": Table(levels, {"count": n, "mean": mean, "std": np.sqrt(var)}, asked.groups),
        "per_site": design.per_site(coded),
    }, facts | {"tails": [Tail("p", "t", "statistic", "df")]})  # fmt: skip


def compared(n: Array, mean: Array, var: Array, equal_var: bool) -> tuple[float, float, float]:
    """The difference of two means, its standard error and degrees of freedom (Welch and Satterthwaite)."""
    gap = float(mean[0] - mean[1])
    if n.min() < 2:
        return gap, math.nan, math.nan
    if equal_var:
        df = float(n.sum() - 2)
        return gap, math.sqrt(((n - 1) @ var) / df * (1 / n).sum()), df
    parts = var / n
    total = float(parts.sum())
    return gap, math.sqrt(total), total**2 / float((parts**2 / (n - 1)).sum()) if total else math.nan
