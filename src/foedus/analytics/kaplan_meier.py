"""The product-limit estimate of survival, Kaplan and Meier 1958, and the log-rank test, Mantel 1966, from counts.
Times and the way to ask for sums may come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from foedus.analytics import design, survival
from foedus.analytics.analysis import Table, Tail, analysis, answer
from foedus.analytics.asking import Asking, Sent, ask, whole, work
from foedus.analytics.design import Coded
from foedus.analytics.held import Held
from foedus.analytics.solving import Z
from foedus.analytics.survival import Survival
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array

Weights = Literal["logrank", "wilcoxon", "tarone_ware"]
WEIGHTS = ("logrank", "wilcoxon", "tarone_ware")


def kaplan_meier(
    *,
    time: str,
    event: str,
    group: str | None = None,
    grid: Sequence[float] | None = None,
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 1,
) -> Algorithm:
    """The survival curve of all sites, or one for each level of `group`; `event` is 1 where the event came.

    On a `grid` times are rounded up to its points, and what is beyond the last one is only at risk: the curve is that
    of the rounded times, and no time of a single event leaves a site.

    `.pandas`: by time (and group) `at_risk`, `events`, `survival`, `se` (Greenwood), `low`, `high` (95 %, log-log).
    `medians`: by group. `.per_site`: rows, used, events.

    Leaves a site: without a grid its distinct event times, in clear; at each time the counts at risk and of events.
    """
    made = survival.survival(time, event, grid, groups=group or (), categories=categories, least=least)
    return analysis(partial(_curves, made), _works(made))


def logrank(
    *,
    time: str,
    event: str,
    group: str,
    weights: Weights = "logrank",
    grid: Sequence[float] | None = None,
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 1,
) -> Algorithm:
    """Whether survival differs between the levels of `group`; early times count more with `wilcoxon`, `tarone_ware`.

    `.pandas`: by group `observed` and `expected` events. Facts: statistic, df, p. `.per_site`: rows, used, events.

    Leaves a site: as `kaplan_meier`.
    """
    if weights not in WEIGHTS:
        raise JobError(f"logrank(weights={weights!r}): choose one of {', '.join(WEIGHTS)}")
    made = survival.survival(time, event, grid, groups=group, categories=categories, least=least)
    return analysis(partial(_test, made, weights), _works(made))


def _works(made: Survival) -> dict[str, Any]:
    return survival.works(made) | {"at risk": work(partial(_at_risk, made))}


def _counted(made: Survival, sites: Sequence[str], every: bool) -> Asking[tuple[Coded, Array, Array, Array, Table]]:
    """How it is coded, the times, events and numbers at risk (groups, times), and the sites."""
    coded = yield from design.learn(made.asked, sites, every)
    times = yield from survival.times(made, coded)
    shape = (len(survival.sequence(_groups(made, coded))), len(times))
    payload = {**coded.payload(), "times": times}
    found = yield from ask("at risk", coded.sites, payload, {"events": shape, "at_risk": shape})
    events = [int(found.shown[site]["events"]) for site in coded.per_site]
    return coded, times, whole(found.of["events"]), whole(found.of["at_risk"]), design.per_site(coded, events=events)


def _groups(made: Survival, coded: Coded) -> Sequence[str]:
    return coded.levels[made.asked.groups[0]] if made.asked.groups else ()


def _at_risk(made: Survival, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = survival.placed(made, table, payload)
    by = found.rows.groups
    levels = survival.levels(made, payload)
    groups = by[:, 0] if by.shape[1] else np.zeros(len(by), np.int64)
    shape = (len(survival.sequence(levels)), len(payload["times"]))
    events = survival.counts(found.event, groups, shape)
    at_risk = survival.counts(found.last, groups, shape)[:, ::-1].cumsum(axis=1)[:, ::-1]
    came = int(survival.checked(made, found.rows)[1].sum())
    return Sent({"events": events, "at_risk": at_risk}, {}, {"events": came})


def _curves(made: Survival, state: State, context: RoundContext, every: bool = True) -> Any:
    coded, times, events, at_risk, per_site = yield from _counted(made, context.cohort, every)
    named = made.asked.groups
    labels = survival.sequence(_groups(made, coded))
    curves = [curve(d, n) for d, n in zip(events, at_risk, strict=True)]
    columns = {name: np.concatenate([c[name] for c in curves]) for name in curves[0]}
    columns = {"at_risk": at_risk.reshape(-1), "events": events.reshape(-1), **columns}
    rows = [(g, t) for g in labels for t in times.tolist()] if named else times.tolist()
    medians = [median(times, c["survival"]) for c in curves]
    return answer("kaplan_meier", {
        "pandas": Table(rows, columns, (*named, "time")),
        "per_site": per_site,
        "medians": Table(labels, {"median": medians}, named or ("group",)),
    }, {"n": coded.used, "events": int(events.sum())})  # fmt: skip


def curve(d: Array, n: Array) -> dict[str, Array]:
    """Survival after each time with its standard error (Greenwood 1926) and log-log limits."""
    left, there = np.maximum(n - d, 0), np.maximum(n, 1)
    s = np.cumprod(np.where(n > 0, left / there, 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.cumsum(np.where(d > 0, d / (there * left), 0.0))
        half = np.where(s < 1, Z * np.sqrt(total) / np.log(s), 0.0)
        ends = [np.where((s > 0) & (s < 1), np.exp(np.log(s) * np.exp(sign * half)), s) for sign in (-1, 1)]
        se = np.where(s > 0, s * np.sqrt(total), 0.0)
    return {"survival": s, "se": se, "low": ends[0], "high": ends[1]}


def median(times: Array, s: Array) -> float:
    """The first time after which at most half survive; infinite where it does not come."""
    under = np.flatnonzero(s <= 0.5 + 1e-12)
    return float(times[under[0]]) if len(under) else math.inf


def _test(made: Survival, weights: Weights, state: State, context: RoundContext, every: bool = True) -> Any:
    coded, _, events, at_risk, per_site = yield from _counted(made, context.cohort, every)
    labels = _groups(made, coded)
    if len(labels) < 2:
        raise JobError(f"the groups of {made.asked.groups[0]!r} are {', '.join(labels) or 'none'}: a test needs two")
    observed, expected, statistic, df = compared(events, at_risk, weights)
    facts = {"n": coded.used, "statistic": statistic, "df": df, "tails": [Tail("p", "chi2", "statistic", "df")]}
    columns = {"observed": observed, "expected": expected}
    return answer("logrank", {"pandas": Table(labels, columns, made.asked.groups), "per_site": per_site}, facts)


def compared(d: Array, n: Array, weights: Weights) -> tuple[Array, Array, float, int]:
    """Weighted events of each group, those expected, the statistic and its degrees of freedom."""
    total, came = n.sum(axis=0), d.sum(axis=0)
    use = total > 0
    d, n, total, came = d[:, use], n[:, use], total[use], came[use]
    weight = {"logrank": np.ones(len(total)), "wilcoxon": 1.0 * total, "tarone_ware": np.sqrt(total)}[weights]
    share = n / total
    observed, expected = (weight * d).sum(axis=1), (weight * came * share).sum(axis=1)
    spread = weight**2 * came * (total - came) / np.maximum(total - 1, 1)
    cov = np.diag((spread * share).sum(axis=1)) - (spread * share) @ share.T
    some = n.sum(axis=1) > 0
    gap = (observed - expected)[some]
    statistic = gap[1:] @ np.linalg.pinv(cov[np.ix_(some, some)][1:, 1:]) @ gap[1:] if some.sum() > 1 else math.nan
    return observed, expected, float(statistic), int(some.sum()) - 1
