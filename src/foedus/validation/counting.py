"""What a site counts of a model's scores on examples that never trained: by group, class and score, and nothing else.
The contract and metrics may come in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus import metrics
from foedus.aggregators import mean
from foedus.core import Algorithm, Local, RoundContext, SiteContext, State, Task, Update
from foedus.data import take
from foedus.errors import JobError
from foedus.metrics import BINS, CALIBRATED, Metric
from foedus.params import Params, digest, join
from foedus.validation.groups import Groups, listed
from foedus.validation.judging import STATISTICS, Claim

WORK = "validate"
NAMES = ("auc", "ece")  # whose sums are counts by class and score, and by probability


def counted(by: Mapping[str, Groups], part: str, least: int, claim: Claim) -> Algorithm:
    """One round in which every site counts: `counts`, `calibration`, `hidden` of all sites, and of each as `SITE/…`.

    Under a seal of all sites alone. Where the claim's metric is none of scores, the examples are counted by their own
    values of it, from 0 to 1. The model stays as it is. A group of fewer than `least` examples at a site is left out of
    all that it sends. `about` says what was asked, and claimed before anybody looked.
    """
    groups, metric = listed(by), claim.metric
    spec = _answer(len(groups)).spec

    def round(state: State, context: RoundContext) -> Any:
        total = yield Task(WORK, state, context.cohort, mean(), len(context.cohort), returns=spec, late="drop")
        sums = {name: total.count * np.asarray(x) for name, x in total.params.items()}
        sums |= {name: np.rint(x) for name, x in sums.items() if name != "calibration"}  # which sums probabilities
        shown = {o.site: Params(dict(o.metrics)) for o in total.outcomes if o.metrics}
        told = {"groups": groups, "least": least, "claim": claim._asdict(), "model": digest(state)}
        about = Params({"asked": np.frombuffer(json.dumps(told).encode(), np.uint8)})
        return join(about=about, all=Params(sums), **{f"site/{site}": x for site, x in shown.items()})

    works = {WORK: partial(_count, by, part, least, metric)}
    told = tuple(f"tells {name}" for name in _answer(0))
    return Algorithm(lambda params: params, round, works, traits=("exact", *told))


def _count(
    by: Mapping[str, Groups], part: str, least: int, metric: str, model: Params, local: Local, site: SiteContext
) -> tuple[Local, Update]:
    data = getattr(site.split, part)
    if data is None or not len(data):
        raise JobError(f"{site.name} has no {part} part: load(site) has to return one, of examples that never train")
    found, wanted = _answer(len(listed(by))), [metrics.metric(name) for name in NAMES]
    for i, rows in enumerate(_rows(by, data, least, site.name)):
        if rows is None or len(rows) < least:
            found["hidden"][i] = rows is None or len(rows) > 0
            continue
        if metric not in STATISTICS:
            found["counts"][i, 1] = _cases(site, model, data, rows, metric)
            continue
        sums = site.evaluate(model, take(data, rows), wanted)
        found["counts"][i], found["calibration"][i] = (_two_classes(sums, m, site.name) for m in wanted)
    return local, Update(found, 1.0, {} if site.seal else dict(found))


def _cases(site: SiteContext, model: Params, data: Any, rows: Any, name: str) -> Any:
    """How many examples have which value of a metric, each measured by itself; one without a value is not counted."""
    table = [m for m in (*site.metrics, metrics.metric(name)) if m.name == name][:1]
    found = np.zeros(BINS)
    for row in rows:
        value = metrics.values(site.evaluate(model, take(data, np.array([row])), table), table)[name]
        if np.isfinite(value):
            if not 0 <= value <= 1:
                raise JobError(f"{site.name}: {name} is {value:g} for an example: a claim is about values from 0 to 1")
            found[round(value * (BINS - 1))] += 1
    return found


def _rows(by: Mapping[str, Groups], data: Any, least: int, site: str) -> list[Any]:
    """The rows of each group; None for one that is not told of, though it is large enough."""
    found: list[Any] = [np.arange(len(data))]
    for how in by.values():
        at = how.of(data)
        groups, gaps = [np.flatnonzero(at == i) for i in range(len(how.names))], int((at < 0).sum())
        kept = told([len(rows) for rows in groups], gaps, least)
        found += [rows if keep or len(rows) < least else None for rows, keep in zip(groups, kept, strict=True)]
    return found


def told(sizes: Sequence[int], gaps: int, least: int) -> list[bool]:
    """Which of a cut's groups may be told of, so that everybody less these is nobody, or `least` examples and more.

    Were one small group left out alone, it would be what the others leave of the whole. `gaps`: examples in none.

    >>> told([3, 12, 40], 0, 10), told([12, 40], 0, 10), told([12, 40], 2, 10)
    ([False, False, True], [True, True], [False, True])
    """
    kept, left = [size >= least for size in sizes], gaps + sum(size for size in sizes if size < least)
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if 0 < left < least and kept[i]:
            kept[i], left = False, left + sizes[i]
    return kept


def _two_classes(sums: Mapping[str, Any], wanted: Metric, site: str) -> Any:
    if wanted.name not in sums or np.shape(sums[wanted.name]) not in ((2, BINS), (3, CALIBRATED)):
        raise JobError(f"{site}: the model tells more or less than two classes apart: validate a score of one class")
    return sums[wanted.name]


def _answer(groups: int) -> Params:
    return Params(
        {
            "counts": np.zeros((groups, 2, BINS)),
            "calibration": np.zeros((groups, 3, CALIBRATED)),
            "hidden": np.zeros(groups),
        }
    )
