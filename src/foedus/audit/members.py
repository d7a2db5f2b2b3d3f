"""Membership inference on a released model: who was in its training data, by the loss (Yeom et al. 2018) and LiRA.
LiRA offline (Carlini et al. 2022): each record's loss beside those under shadow models that never saw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from foedus.data import take
from foedus.errors import Missing
from foedus.params import Array, Params

RATE = 0.001  # of false positives
MOST = 1000  # records of either kind that are looked at
SURE = 0.95


class Rates(NamedTuple):
    """How well scores tell members from others, with 95 % intervals; `passed`: others above the threshold."""

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    passed: int
    fpr_interval: tuple[float, float]
    members: int
    others: int


def rates(inside: Array, outside: Array, rate: float = RATE) -> Rates:
    """The Rates of scores that are higher for members; the threshold lets ⌊rate · others⌋ of the others pass.

    AUC with DeLong's interval, rates with those of Clopper and Pearson.
    """
    m, n = len(inside), len(outside)
    order = np.sort(outside)
    below = (np.searchsorted(order, inside, "left") + np.searchsorted(order, inside, "right")) / (2 * n)
    own = np.sort(inside)
    above = 1 - (np.searchsorted(own, outside, "left") + np.searchsorted(own, outside, "right")) / (2 * m)
    auc = float(below.mean())
    half = 1.959964 * math.sqrt(_variance(below) / m + _variance(above) / n)
    threshold = order[n - 1 - int(rate * n)]
    right, passed = int((inside > threshold).sum()), int((outside > threshold).sum())
    return Rates(
        auc,
        (max(0.0, auc - half), min(1.0, auc + half)),
        right / m,
        clopper_pearson(right, m),
        passed,
        clopper_pearson(passed, n),
        m,
        n,
    )


def clopper_pearson(right: int, of: int, sure: float = SURE) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934). Raises Missing without scipy."""
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise Missing("scipy", "audit") from error
    tail = (1 - sure) / 2
    low = 0.0 if right == 0 else float(beta.ppf(tail, right, of - right + 1))
    return low, 1.0 if right == of else float(beta.ppf(1 - tail, right + 1, of - right))


def losses(learner: Any, model: Params, data: Any) -> Array | None:
    """The loss of each example under the model, as evaluation measures it; None where the learner knows none."""
    each = [learner.evaluate(model, take(data, np.array([i])), ["loss"]) for i in range(len(data))]
    return np.array([float(sums["loss"][0]) for sums in each]) if all("loss" in sums for sums in each) else None


def confidence(loss: Array) -> Array:
    """log(p / (1 - p)) of p = exp(-loss), which is near normal (Carlini et al. 2022, section IV.C); increasing in p."""
    kept = np.clip(loss, 1e-12, 1e3)
    found: Array = -kept - np.log(-np.expm1(-kept))
    return found


def lira(observed: Array, shadows: Array, drawn: Array) -> Array:
    """Scores: how far each record's confidence is above that under models that never saw it, in their spread.

    observed: (records,); shadows: (models, records) of confidences; drawn: (models, records), which were trained on.
    One spread for all, as few models need; a record that every model saw is judged by the others' mean.
    """
    unseen = np.where(drawn, np.nan, shadows)
    seen = np.isnan(unseen).all(0)
    unseen[:, seen] = np.nanmean(unseen)
    mean = np.nanmean(unseen, 0)
    spread = math.sqrt(float(np.nanmean(np.square(unseen - mean)))) or 1.0
    found: Array = (observed - mean) / spread
    return found


def halves(draws: Sequence[np.random.Generator], records: int) -> Array:
    """(models, records): a random half of the records for each shadow model."""
    found = np.zeros((len(draws), records), bool)
    for row, draw in zip(found, draws, strict=True):
        row[draw.permutation(records)[: max(1, records // 2)]] = True
    return found


def _variance(x: Array) -> float:
    return float(x.var(ddof=1)) if len(x) > 1 else 0.0
