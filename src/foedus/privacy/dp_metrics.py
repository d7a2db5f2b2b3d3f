"""Noise on what evaluation tells: counts get a discrete Gaussian at their site, and what has no bound stays there.
Metrics and accounting may come in; each site keeps the secret that names its noise.

Whole-number sums to which one example adds at most `Metric.sensitivity` (L2) make nobody more than (epsilon, delta)
surer that it was there, by all evaluations of a run (Canonne, Kamath and Steinke 2020: concentrated as Gaussian noise
is).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from foedus import frames
from foedus.core import EVALUATE, Algorithm, Local, SiteContext, Update, Work
from foedus.errors import JobError
from foedus.metrics import PREFIXES, Metric, plain
from foedus.params import Array, Params, digest
from foedus.privacy import accounting
from foedus.privacy.accounting import Steps, check, goal
from foedus.privacy.keystream import discrete_normals

COUNTS = "counts "  # the trait of an analysis of cells: of so many columns, in each of which a row is in one cell
MOST = 10_000.0  # examples of noise: no metric has so many that it would be one, and tables would be large


class DpMetrics(NamedTuple):
    """What a Job says of noise on its metrics; see `dp_metrics`."""

    noise_multiplier: float | None
    epsilon: float | None
    delta: float

    @property
    def clip(self) -> float:
        """What one example adds to a metric's sums, in units of `Metric.sensitivity`."""
        return 1.0

    @property
    def word(self) -> str:
        """What a submission signs."""
        return "dp_metrics" if self.noise_multiplier != 0 else ""

    def said(self, traits: Sequence[str] = ()) -> str:
        """What is told of it when a run begins."""
        return (
            f"dp_metrics: each site adds noise to the counts of its metrics, {goal(self)} for each example; metrics "
            "of other sums, and intervals, are left out"
        )


def dp_metrics(
    noise_multiplier: float | None = None, *, epsilon: float | None = None, delta: float = 1e-5
) -> DpMetrics:
    """Noise on metrics that count: accuracy, balanced_accuracy, precision, recall, f1, or one with a `sensitivity`.

    `noise_multiplier`: the standard deviation over what one example changes, of each metric and evaluation; `epsilon`
    finds it for all of them together, on the examples of one part. Other metrics, the loss too, are not sent.
    """
    check("dp_metrics", 1.0, noise_multiplier, epsilon, delta)
    return DpMetrics(noise_multiplier, epsilon, delta)


def counted(metrics: Sequence[Metric]) -> list[Metric]:
    """Those that are sent."""
    return [m for m in metrics if m.sensitivity is not None]


def noise_of(how: DpMetrics, releases: int) -> float:
    """The noise multiplier of each of so many releases."""
    if how.noise_multiplier is not None:
        return float(how.noise_multiplier)
    assert how.epsilon is not None
    return _noise(float(how.epsilon), releases, how.delta)


def spends(how: DpMetrics, each: int, times: int) -> Steps:
    """What one evaluation of `each` metrics spends of a run's `times`, as one step."""
    return Steps(noise_of(how, each * times) / math.sqrt(each), 1.0, 1)


def noised(work: Work, how: DpMetrics, metrics: Sequence[Metric], each: int, times: int) -> Work:
    """The same work of evaluation, its counts noised; `each` of them an evaluation, `times` evaluations in a run."""
    known = {m.name: m for m in counted(metrics)}

    def working(payload: Params, local: Local, site: SiteContext) -> Any:
        before = hashlib.sha256(frames.pack(local).bytes()).hexdigest()
        local, update = work(payload, local, site)
        if not isinstance(update, Update):
            return local, update
        z, kept = noise_of(how, each * times), {}
        if z > MOST:
            raise JobError(
                f"dp_metrics: each count would get noise of {z:.3g}: spend more epsilon, name fewer metrics, or "
                "evaluate less often"
            )
        name = site.secret("dp_metrics", *site.key.names, digest(payload), before)
        for told, sums in update.metrics.items():
            if found := known.get(plain(told)):
                x = _whole(found, np.asarray(sums), len(_part(told, site)), site.name)
                drawn = (
                    discrete_normals(name(told), x.size, z * (found.sensitivity or 1))
                    if z
                    else np.zeros(x.size, np.int64)
                )
                kept[told] = np.maximum(x + drawn.reshape(x.shape), 0)
        if len(kept) > 2 * each:
            raise JobError(f"dp_metrics: {len(kept)} metrics of two parts, and noise was found for {each} of a part")
        return local, Update(update.params, 1.0, kept)

    return working


def each_of(algorithm: Algorithm) -> int:
    """How many counts of an analysis each row changes by one; 0 where it does not count cells."""
    return max((int(t.removeprefix(COUNTS)) for t in algorithm.traits if t.startswith(COUNTS)), default=0)


def analysed(algorithm: Algorithm, how: DpMetrics) -> Algorithm:
    """The same analysis of cells (`analytics.counts`), each count with noise before it leaves its site."""
    z = noise_of(how, each_of(algorithm))
    counting = algorithm.works[EVALUATE]

    def working(payload: Params, local: Local, site: SiteContext) -> Any:
        local, update = counting(payload, local, site)
        if not isinstance(update, Update):
            return local, update
        cells = update.params["cells"]
        # by the counts alone: who asks a run again hears the same, and whoever changes a row hears other noise
        name = site.secret("dp_metrics", "cells", digest(update.params))
        drawn = discrete_normals(name, cells.size, z) if z else np.zeros(cells.size)
        made = cells + drawn.reshape(cells.shape)
        return local, Update(Params({"cells": made}), update.weight, {"cells": made} if update.metrics else {})

    round = partial(algorithm.round, noise=z)  # type: ignore[call-arg]
    return algorithm._replace(works={**algorithm.works, EVALUATE: working}, round=round)


def _part(told: str, site: SiteContext) -> Any:
    prefix = next((p for p in PREFIXES if told.startswith(p)), "")
    return site.split.test if "test_" in prefix else site.split.valid


def _whole(metric: Metric, sums: Array, examples: int, site: str) -> Array:
    """Raises JobError for sums that are no counts, or to which an example adds more than the metric says."""
    if sums.dtype.kind not in "iu":
        raise JobError(f"dp_metrics: at {site!r} {metric.name!r} is {sums.dtype}, and noise is for whole numbers")
    if sums.sum() > (metric.sensitivity or 0) ** 2 * examples * (1 + 1e-9):
        raise JobError(
            f"dp_metrics: at {site!r} {metric.name!r} counts more than one number an example, such as pixels: "
            f"leave it out of metrics=…"
        )
    return sums.astype(np.int64)


@cache
def _noise(epsilon: float, releases: int, delta: float) -> float:
    return accounting.noise_multiplier(epsilon, 1.0, releases, delta, "rdp")
