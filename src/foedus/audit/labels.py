"""Labels from the gradient of the last layer's bias, mean(p) - n / N: p is the model's softmax, n the counts.
One record: the one negative entry (Zhao et al. 2020, iDLG). Several: counts (Wainakh et al. 2021; Yin et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foedus.audit.matching import Known
from foedus.data import Pairs
from foedus.keys import Key
from foedus.params import Array, Params

Gradient = Callable[[Params, Pairs, Key], Params]
MOST = 512  # records of others that tell what the model says on average


def classes(*targets: Array) -> int:
    """How many classes these targets have; 0 where they are none."""
    if not all(y.ndim == 1 and y.dtype.kind in "biu" and (not len(y) or y.min() >= 0) for y in targets):
        return 0
    return max(int(y.max(initial=0)) for y in targets) + 1


def last_bias(model: Params, count: int) -> str | None:
    """The bias of the last dense layer, if it has a number for each of `count` classes (for two, one may do)."""
    leaves = [leaf for leaf in model.spec if leaf.kind == "trainable"]
    weights = [i for i, leaf in enumerate(leaves) if len(leaf.shape) == 2]
    vectors = [i for i, leaf in enumerate(leaves) if len(leaf.shape) < 2]
    if not vectors or (weights and weights[-1] > vectors[-1] and "." in leaves[weights[-1]].name):
        return None  # in modules a bias comes after its weight: this last layer has none
    last = leaves[vectors[-1]]
    return last.name if last.size >= count or (last.size == 1 and count == 2) else None


def counts(slope: Params, model: Params, bias: str, records: int, known: Known, gradient: Gradient, key: Key) -> Array:
    """How many records of each class: of one its negative entry, of several N (p̄ - g), rounded to N in all.

    p̄, what the model says on average, is learned from records of others at the model that the site was sent.
    """
    g = slope[bias].reshape(-1).astype(np.float64)
    if records == 1 and g.size > 1:
        found: Array = np.eye(g.size, dtype=np.int64)[g.argmin()]
        return found
    y = known.y[:MOST]
    there = gradient(model, Pairs(known.x[:MOST], y), key)[bias].reshape(-1).astype(np.float64)
    if g.size == 1:
        ones = int(np.clip(np.rint(records * (there[0] + y.mean() - g[0])), 0, records))
        return np.array([records - ones, ones])
    shares = there + np.bincount(y.astype(np.int64), minlength=g.size)[: g.size] / len(y)
    return rounded(shares - g, records)


def rounded(shares: Array, total: int) -> Array:
    """Whole numbers that sum to `total`, in proportion to the shares; those below 0 count as 0."""
    kept = np.maximum(np.nan_to_num(shares), 0)
    exact = kept / kept.sum() * total if kept.sum() > 0 else np.full(len(kept), total / len(kept))
    whole: Array = np.floor(exact).astype(np.int64)
    rest = np.argsort(whole - exact, kind="stable")[: total - whole.sum()]
    whole[rest] += 1
    return whole


def shared(found: Array, truth: Array) -> float:
    """The share of records whose label is among those found: Σ min(found, true) / N."""
    size = max(len(found), len(truth))
    a, b = (np.pad(x, (0, size - len(x))) for x in (found, truth))
    return float(np.minimum(a, b).sum() / b.sum())


def sums_to_zero(bias: Array) -> bool:
    """Whether this may be the gradient of a softmax's bias: all such sum to 0, and noise hardly does."""
    return bias.size > 1 and abs(float(bias.sum())) <= 0.02 * float(np.abs(bias).sum())


def chance(right: float, usual: Array, records: int, draws: int = 2000) -> float:
    """How often labels that are drawn by the usual frequencies share as many with others drawn so."""
    random = np.random.default_rng(0)
    found, truth = (random.multinomial(records, usual / usual.sum(), draws) for _ in range(2))
    return float((np.minimum(found, truth).sum(1) / records >= right).mean())
