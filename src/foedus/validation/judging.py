"""What counts of scores say of a model: its value with an interval, and whether it is as good as was stated beforehand.
Counts come in, (2, BINS) of negatives and positives by score; no example is known.

A bootstrap of examples draws each of them a Poisson number of times, so a count's is drawn from the Poisson
distribution of that count (Hanley and MacGibbon 2006; Chamandy et al. 2012): it needs the counts alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from foedus.keys import Key
from foedus.metrics import EDGES
from foedus.params import Array

SURE = 0.95


class Claim(NamedTuple):
    """What is to be shown, stated before anybody looks: `metric` is no more than `margin` below `reference`.

    `metric`: auc, sensitivity or specificity, the latter two at `threshold`, a probability; or a metric of single
    examples from 0 to 1, such as `dice` of a segmentation, whose mean is meant. `reference`: a reader's score, a
    published figure, that of the pooled model; None: nothing is claimed, and intervals are all there is.
    """

    metric: str = "auc"
    reference: float | None = None
    margin: float = 0.05
    threshold: float = 0.5


class Judged(NamedTuple):
    """A value with its interval; `p` of its being `margin` below the reference, or more; None: nothing was stated."""

    value: float
    low: float
    high: float
    p: float | None = None


class Sampled(NamedTuple):
    """Counts of replicates, (replicates, 2, bins), and which bins score above the threshold."""

    counts: Array
    above: Array


Statistic = Callable[[Sampled], Array]  # -> (replicates,)


def areas(found: Sampled) -> Array:
    """AUC of each replicate; a tie within a bin counts one half."""
    n, p = found.counts[:, 0], found.counts[:, 1]
    wins = (p[:, 1:] * n.cumsum(1)[:, :-1]).sum(1) + (p * n).sum(1) / 2
    return _ratio(wins, p.sum(1) * n.sum(1))


def sensitivity(found: Sampled) -> Array:
    """The share of positives above the threshold."""
    return _ratio(found.counts[:, 1, found.above].sum(1), found.counts[:, 1].sum(1))


def specificity(found: Sampled) -> Array:
    """The share of negatives that are not above the threshold."""
    return _ratio(found.counts[:, 0, ~found.above].sum(1), found.counts[:, 0].sum(1))


def of_cases(centres: Array) -> Statistic:
    """The mean of values by example, of counts by value."""
    return lambda found: _ratio((found.counts[:, 1] * centres).sum(1), found.counts[:, 1].sum(1))


STATISTICS: Mapping[str, Statistic] = {"auc": areas, "sensitivity": sensitivity, "specificity": specificity}


def judged(counts: Array, key: Key, replicates: int, claim: Claim) -> dict[str, Judged]:
    """Every statistic of these counts with its percentile interval, and the one-sided p of what the claim is about.

    p = (1 + replicates at or below reference - margin) / (1 + replicates) (Davison and Hinkley 1997, 4.11).
    """
    used = np.flatnonzero(counts.sum(0))
    known = STATISTICS if claim.metric in STATISTICS else {claim.metric: of_cases(used / (counts.shape[1] - 1))}
    above = np.append(EDGES, np.inf)[used] > math.log(claim.threshold / (1 - claim.threshold))
    there, found = counts[:, used].astype(np.float64), dict[str, Judged]()
    drawn = Sampled(key.numpy().poisson(there, (replicates, *there.shape)).astype(np.float64), above)
    for name, statistic in known.items():
        value, sample = float(statistic(Sampled(there[None], above))[0]), statistic(drawn)
        sample = sample[~np.isnan(sample)]
        if math.isnan(value) or not len(sample):
            found[name] = Judged(math.nan, math.nan, math.nan)
            continue
        low, high = map(float, np.quantile(sample, [(1 - SURE) / 2, (1 + SURE) / 2]))
        stated = claim.reference is not None and name == claim.metric
        worst = (claim.reference or 0.0) - claim.margin
        p = (1 + int((sample <= worst).sum())) / (1 + len(sample)) if stated else None
        found[name] = Judged(value, low, high, p)
    return found


def _ratio(part: Array, whole: Array) -> Array:
    made: Array = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return made
