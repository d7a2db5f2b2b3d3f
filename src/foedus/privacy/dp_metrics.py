"""Noise on what evaluation tells: counts get a discrete Gaussian at their site, and what has no bound stays there.
Metrics and accounting may come in; each site keeps the secret that names its noise.

Whole-number sums to which one example adds at most `Metric.sensitivity` (L2), or a row the bound of its Block, make
nobody more than (epsilon, delta) surer that it was there, by all evaluations of a run (Canonne, Kamath and Steinke
2020: concentrated as Gaussian noise is).
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
from foedus.keys import Key
from foedus.metrics import PREFIXES, Metric, plain
from foedus.params import Array, Params, digest
from foedus.privacy import accounting
from foedus.privacy.accounting import Steps, check, goal
from foedus.privacy.keystream import discrete_normals

BOUNDED = "bounded "  # the trait of an analysis to whose sums a row adds no more than is known: their blocks
STEPS = 64  # in which the noise of a sum is drawn, of what a row adds to it
LARGE = 2000.0  # steps of noise: tables of more take seconds
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
        if any(t.startswith(BOUNDED) for t in traits):
            return f"dp_metrics: each site adds noise to its sums, {goal(self)} for each row"
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
        z = _fitting(noise_of(how, each * times), "count", "name fewer metrics, or evaluate less often")
        kept = {}
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


class Block(NamedTuple):
    """Sums of whole numbers, of which one row more or less changes one, by at most `bound` (a power of two)."""

    size: int
    bound: int = 1


def trait(blocks: Sequence[Block]) -> str:
    """How an analysis says that these are its sums."""
    return BOUNDED + " ".join(f"{block.size}x{block.bound}" for block in blocks)


def blocks_of(algorithm: Algorithm) -> list[Block]:
    """The sums of an analysis to which a row adds no more than is known; none where it says no bound."""
    said = [t.removeprefix(BOUNDED) for t in algorithm.traits if t.startswith(BOUNDED)]
    return [Block(*map(int, block.split("x"))) for block in said[-1].split()] if said else []


def analysed(algorithm: Algorithm, how: DpMetrics) -> Algorithm:
    """The same analysis, whose sums get noise before they leave a site; each block is a release of its own."""
    blocks = blocks_of(algorithm)
    z = _fitting(noise_of(how, len(blocks)), "sum", "name fewer columns")
    adding = algorithm.works[EVALUATE]

    def working(payload: Params, local: Local, site: SiteContext) -> Any:
        local, update = adding(payload, local, site)
        if not isinstance(update, Update):
            return local, update
        # by the sums alone: who asks a run again hears the same, and whoever changes a row hears other noise
        name = site.secret("dp_metrics", "sums", digest(update.params))
        parts = np.split(np.rint(update.params["sums"]).astype(np.int64), np.cumsum([b.size for b in blocks])[:-1])
        made = [_added(name(i), x, b.bound, z) for i, (x, b) in enumerate(zip(parts, blocks, strict=True))]
        sums = np.concatenate(made).astype(np.float64)
        return local, Update(Params({"sums": sums}), update.weight, {"sums": sums} if update.metrics else {})

    round = partial(algorithm.round, noise=z)  # type: ignore[call-arg]
    return algorithm._replace(works={EVALUATE: working}, round=round)


def _added(name: Key, sums: Array, bound: int, z: float) -> Array:
    """The sums with noise of deviation z bound, in steps of which `bound` is a whole number.

    Rounding to steps moves no two sums further apart than `bound` lies, for it never turns an order about, and a sum
    that is `bound` larger is rounded to one that is.
    """
    steps = min(bound, STEPS)
    while steps > 1 and z * steps > LARGE:
        steps //= 2
    step = bound // steps
    drawn = discrete_normals(name, sums.size, z * steps) if z else np.zeros(sums.size, np.int64)
    return np.asarray(((sums + step // 2) // step + drawn) * step) if z else sums


def _fitting(z: float, what: str, remedy: str) -> float:
    """The noise multiplier. Raises JobError where what is left of a sum would say nothing."""
    if z > MOST:
        raise JobError(f"dp_metrics: each {what} would get noise of {z:.3g}: spend more epsilon, or {remedy}")
    return z


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
