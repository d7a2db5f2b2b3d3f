"""What the Totals of a round say: pooled metrics, those of each site, the worst site, intervals and bounds.
Metrics and the contract come in; the round loop journals what comes out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from foedus import metrics as measures
from foedus.core import Total
from foedus.errors import Refused
from foedus.journal import Journal
from foedus.metrics import Metric

MOST_INTERVALS = 100  # sites: beyond, a row of the journal would be too long
SPENT = {"train_epsilon": -1}  # what a site has spent of its privacy: the more, the worse
PerSite = Mapping[str, Mapping[str, float | None]]
UNREADABLE = (ArithmeticError, LookupError, TypeError, ValueError)


def measured(
    totals: Sequence[Total], metrics: Collection[Metric], journal: Journal
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The pooled metrics, and those of each site; what cannot be read is told, and spoils nothing else.

    What several Tasks report under one name (each batch its `train_loss`) is added up.
    """
    sums = dict[str, list[Mapping[str, Any]]]()
    for total in totals:
        for outcome in total.outcomes:
            if outcome.metrics:
                sums.setdefault(outcome.site, []).append(outcome.metrics)
        sent = {name for outcome in total.outcomes if outcome.status == "counted" for name in outcome.metrics}
        for name in sorted(sent - total.metrics.keys()):
            _unread(journal, "", f"{name!r} has other shapes at other sites, so it has no sum")
    per_site = _averages(sums) or {site: _read(_added(rows), metrics, site, journal) for site, rows in sums.items()}
    return _read(_added([total.metrics for total in totals if total.metrics]), metrics, "", journal), per_site


def _averages(sums: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What `_read` makes of each site's sums, at once, where all report one average of training; nothing elsewhere."""
    rows = [own[0] for own in sums.values() if len(own) == 1 and len(own[0]) == 1]
    names = {name for row in rows for name in row}
    if len(rows) < len(sums) or len(names) != 1 or not (name := names.pop()).startswith("train_"):
        return {}
    found = [np.asarray(row[name], np.float64) for row in rows]
    if any(x.shape != (3,) for x in found):
        return {}
    total, count, _ = np.stack(found, axis=1)
    means = np.divide(total, count, out=np.full(len(rows), np.nan), where=count != 0).tolist()
    return {site: {name: x if math.isfinite(x) else None} for site, x in zip(sums, means, strict=True)}


def _added(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return rows[0] if len(rows) == 1 else measures.pooled(rows)


def facts(totals: Sequence[Total], per_site: PerSite, metrics: Collection[Metric], sure: bool) -> dict[str, Any]:
    """What a step row says of the sites; in fast rounds that others follow nobody would look at the intervals."""
    found = {"per_site": per_site, "worst": worst(per_site, metrics), "examples": examples(totals)}
    return found | (certainty(totals, metrics) if sure else {})


def examples(totals: Iterable[Total]) -> float:
    """On how many examples sites trained, in all their epochs; 0 where training reports no loss."""
    sums = [total.metrics["train_loss"] for total in totals if "train_loss" in total.metrics]
    found = sum(float(x[1]) for x in sums if np.shape(x) == (3,))
    return found if math.isfinite(found) else 0.0


def values(sums: Mapping[str, Any], metrics: Iterable[Metric]) -> dict[str, float | None]:
    """name -> value under plain and prefixed names; None where it is undefined. What training reports are averages."""
    averages, rest = dict[str, float](), dict[str, Any]()
    for name, x in sums.items():
        if name.startswith("train_") and np.shape(x) == (3,):
            total, count, _ = np.asarray(x, np.float64).tolist()
            averages[name] = total / count if count else math.nan
        else:
            rest[name] = x
    found = measures.values(rest, metrics) | averages if rest else averages
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def worst(per_site: PerSite, metrics: Iterable[Metric]) -> dict[str, str]:
    """name -> the site with the worst value, the first of several; undefined values are no values."""
    signs = SPENT | {m.name: -1 if m.better == "min" else 1 for m in metrics}
    found, known = dict[str, tuple[float, str]](), dict[str, int]()
    for site, row in sorted(per_site.items()):
        for name, value in row.items():
            if name not in known:
                known[name] = signs.get(name) or signs.get(measures.plain(name)) or 0
            sign = known[name]
            if value is not None and sign and (name not in found or sign * value < found[name][0]):
                found[name] = sign * value, site
    return {name: site for name, (_, site) in found.items()}


def certainty(totals: Iterable[Total], metrics: Iterable[Metric]) -> dict[str, Any]:
    """`intervals` (name -> [low, high], 95 %) and `bounds` (name -> largest error) of the pooled metrics.

    `site_intervals` has the intervals of each site, unless these are more than MOST_INTERVALS. What training reports
    has none: the model changed meanwhile.
    """
    known, pooled, per_site = list(metrics), dict[str, Any](), dict[str, dict[str, Any]]()
    for total in totals:
        pooled.update(total.metrics)
        for outcome in total.outcomes:
            if outcome.metrics:
                per_site.setdefault(outcome.site, {}).update(outcome.metrics)
    found = {"intervals": _sound(measures.intervals, pooled, known), "bounds": _sound(measures.bounds, pooled, known)}
    if len(per_site) <= MOST_INTERVALS:
        found["site_intervals"] = {s: _sound(measures.intervals, sums, known) for s, sums in per_site.items()}
    return found


def _sound(
    read: Callable[..., Mapping[str, Any]], sums: Mapping[str, Any], metrics: Sequence[Metric]
) -> dict[str, Any]:
    try:
        found = read({name: x for name, x in sums.items() if not name.startswith("train_")}, metrics)
    except UNREADABLE:
        return {}  # sums that no examples give, such as more hits than cases: a site's fault, and no reason to stop
    return {name: x for name, x in found.items() if np.isfinite(x).all()}


def check(sums: Mapping[str, Any], metrics: Iterable[Metric], site: str, stage: str) -> None:
    """Raises Refused where a site's sums are none of this Job's metrics."""
    try:
        values(sums, metrics)
    except Exception as error:  # a metric may be the Job's own code
        why = f"its sums {sorted(sums)} are none of this Job's metrics ({type(error).__name__}: {error})"
        raise Refused(site, stage, why, "return the sums that the metric declares") from error


def undeclared(shapes: Mapping[str, Sequence[int]], names: Collection[str]) -> list[str]:
    """Those of a site's sums that are of none of the declared metrics, and no average that a training reports."""
    averages = {name for name, shape in shapes.items() if name.startswith("train_") and tuple(shape) == (3,)}
    return sorted(n for n in shapes if n not in averages and n not in names and measures.plain(n) not in names)


def _read(sums: Mapping[str, Any], metrics: Collection[Metric], site: str, journal: Journal) -> dict[str, float | None]:
    try:
        return values(sums, metrics)
    except UNREADABLE as error:
        _unread(journal, site, f"its sums {sorted(sums)} are none of this Job's metrics ({error})")
        return {}


def _unread(journal: Journal, site: str, why: str) -> None:
    journal.add("event", what="metrics not read", site=site, why=why, at=time.time())
