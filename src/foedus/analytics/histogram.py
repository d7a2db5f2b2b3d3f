"""Histograms: counts between edges that all sites share.
Single columns and the way to ask for sums may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from foedus.analytics import columns as single
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Sent, ask, whole, work
from foedus.analytics.bounded import Found, bounded, numbers
from foedus.analytics.held import Held
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.ordered import NOTHING, float_of, whole_of
from foedus.params import Array, Params
from foedus.privacy.dp_metrics import Block


def histogram(column: str, *, bins: int | Sequence[float] = 10, least: int = 1) -> Algorithm:
    """How many values lie between edges, as numpy counts them: the last interval has both its ends. Dates are years.

    `bins`: a number of equal intervals from the least value to the largest, or the edges, and then no value leaves a
    site. A count below `least` is NaN: merge intervals to see it. `.pandas`: `low`, `high`, `count`; `.per_site`: the
    counts of each.

    With edges there may be noise, `privacy=fd.dp_metrics(…)`: each site adds it to its counts, which may then be
    negative; `sd` is the standard deviation of what is in each.

    Leaves a site: with a number of bins, its least and largest value; its counts, in clear where they reach `least`, or
    with noise.
    """
    (name,) = single.chosen([column], least)
    edges = () if isinstance(bins, int) else tuple(map(float, bins))
    if (not edges and not (isinstance(bins, int) and bins > 0)) or list(edges) != sorted(set(edges)) or len(edges) == 1:
        raise JobError(f"histogram(bins={bins!r}): give a number of intervals, or two and more edges in rising order")
    exact_works = {"range": work(partial(_range, name)), "counts": work(partial(_counts, name, least))}
    exact = analysis(partial(_round, bins if isinstance(bins, int) else 0, edges, least), exact_works)
    if not edges:
        return exact
    cuts = np.array(edges)
    blocks = [Block(len(edges) - 1)]
    return bounded(exact, blocks, partial(_within, name, cuts), partial(_noised, cuts, least))


def _round(
    bins: int, edges: Sequence[float], least: int, state: State, context: RoundContext, every: bool = True
) -> Any:
    ends = yield from ask(
        "range", context.cohort, {"wanted": np.int64(bins)}, most={"least": (), "most": ()}, every=every
    )
    sites = ends.sites
    low, high = -float(float_of(ends.most["least"])), float(float_of(ends.most["most"]))
    cuts = np.array(edges) if edges else np.histogram_bin_edges([] if np.isnan(low) else [low, high], bins)
    found = yield from ask("counts", sites, {"edges": cuts}, {"count": (len(cuts) - 1,)})
    count = single.hidden(whole(found.of["count"]), least)
    return _bars(cuts, {"count": count}, {site: np.asarray(x["count"]) for site, x in sorted(found.shown.items())}, {})


def _bars(cuts: Array, columns: Mapping[str, Array], shown: Mapping[str, Array], facts: Mapping[str, float]) -> Params:
    sites = {f"{a:g} to {b:g}": np.array([x[i] for x in shown.values()]) for i, (a, b) in enumerate(pairwise(cuts))}
    return answer("histogram", {
        "pandas": Table(list(range(len(cuts) - 1)), {"low": cuts[:-1], "high": cuts[1:], **columns}, ("bin",)),
        "per_site": Table(list(shown), sites, ("site",)),
    }, facts)  # fmt: skip


def _within(name: str, cuts: Array, table: Held) -> Array:
    x = numbers(table, name)
    return np.histogram(x[~np.isnan(x)], cuts)[0]


def _noised(cuts: Array, least: int, found: Found) -> Params:
    count = single.hidden(found.sums, least)
    return _bars(cuts, {"count": count, "sd": found.sd}, found.shown, {"noise": found.noise})


def _range(name: str, table: Held, payload: Mapping[str, Array]) -> Sent:
    x = single.values(table, name, 1)
    if not len(x) or not payload["wanted"]:
        return Sent({}, {"least": NOTHING, "most": NOTHING})
    return Sent({}, {"least": whole_of(-x).max(), "most": whole_of(x).max()})


def _counts(name: str, least: int, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = np.histogram(single.values(table, name, 1), payload["edges"])[0]
    return Sent({"count": found}, {}, {"count": single.hidden(found, least)})
