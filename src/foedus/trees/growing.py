"""Trees from histograms of gradients, level by level (Chen and Guestrin 2016, algorithm 3 and equations 6 and 7).
Sums come in; nobody's rows are known here. Nodes are numbered as in a heap: the children of i are 2i + 1 and 2i + 2."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from foedus.params import Array
from foedus.trees.settings import Settings

LEAST_GAIN = 1e-6  # XGBoost's kRtEps


class Tree(NamedTuple):
    """One tree, whole or on its way: a node whose `feature` is -1 is a leaf, or is not there yet.

    `threshold` (float32): rows below it go left, gaps where `gaps_left` says. `low`, `high`: what a node's value has to
    lie between, for monotone features.
    """

    feature: Array
    threshold: Array
    gaps_left: Array
    value: Array
    gain: Array
    hessian: Array
    low: Array
    high: Array


def seed(nodes: int) -> Tree:
    """A tree whose root is all there is."""
    zeros = np.zeros(nodes)
    return Tree(
        np.full(nodes, -1, np.int32), np.zeros(nodes, np.float32), np.zeros(nodes, np.int32), zeros, zeros.copy(),
        zeros.copy(), np.full(nodes, -np.inf), np.full(nodes, np.inf),
    )  # fmt: skip


def level(depth: int) -> range:
    """The nodes of a level."""
    return range((1 << depth) - 1, (1 << (depth + 1)) - 1)


def alive(tree: Tree, depth: int) -> list[int]:
    """The nodes of a level that have rows: the root, and the children of what was split."""
    return [i for i in level(depth) if i == 0 or tree.feature[(i - 1) // 2] >= 0]


def grow(tree: Tree, depth: int, sums: Array, edges: Array, signs: Array, how: Settings) -> Tree:
    """The tree after a level: each of its nodes has its value, and is split where that gains.

    sums: (nodes of the level, features, bins + 1, 2) of gradients and Hessians, the last bin of gaps. edges: (features,
    bins - 1) float32, infinite where there are fewer. signs: of each feature, -1, 0 or 1.
    """
    for at, node in enumerate(level(depth)):
        if node not in alive(tree, depth):
            continue
        g, h = sums[at, 0].sum(0)  # any feature has all rows
        weight = _weight(g, h, tree.low[node], tree.high[node], how)
        tree.value[node], tree.hessian[node] = weight * how.eta, h
        if depth < how.max_depth:
            _split(tree, node, sums[at], (g, h), edges, signs, how)
    return tree


def _split(
    tree: Tree, node: int, sums: Array, whole: tuple[Any, Any], edges: Array, signs: Array, how: Settings
) -> None:
    best, found = LEAST_GAIN, None
    low, high = tree.low[node], tree.high[node]
    parent = _score(*whole, _weight(*whole, low, high, how), how)
    gaps, below = sums[:, -1], sums[:, :-1].cumsum(1)[:, :-1]  # (features, bins - 1, 2): what lies below each edge
    for gaps_left in (0, 1):
        left = below + gaps[:, None] if gaps_left else below
        g, h = left[..., 0], left[..., 1]
        rest = whole[0] - g, whole[1] - h
        ours, theirs = _weight(g, h, low, high, how), _weight(*rest, low, high, how)
        gains = _score(g, h, ours, how) + _score(*rest, theirs, how) - parent
        fits = (np.minimum(h, rest[1]) >= how.min_child_weight) & (h > 0) & (rest[1] > 0) & np.isfinite(edges)
        fits &= (signs[:, None] * (theirs - ours)) >= 0
        gains = np.where(fits, gains, -np.inf)
        at = int(gains.argmax())
        if gains.flat[at] > best:
            best, where = float(gains.flat[at]), divmod(at, gains.shape[1])
            found = (*where, gaps_left, ours.flat[at], theirs.flat[at])
    if found is None:
        return
    feature, edge, gaps_left, ours, theirs = found
    tree.feature[node], tree.threshold[node] = feature, edges[feature, edge]
    tree.gaps_left[node], tree.gain[node] = gaps_left, best
    for child, side in ((2 * node + 1, 0), (2 * node + 2, 1)):
        tree.low[child], tree.high[child] = low, high
        if signs[feature]:
            upper = (signs[feature] > 0) != bool(side)  # whether the middle is the child's upper bound
            (tree.high if upper else tree.low)[child] = (ours + theirs) / 2


def _weight(g: Array, h: Array, low: float, high: float, how: Settings) -> Array:
    """Equation 5, within a node's bounds."""
    whole = h + how.lambda_
    return np.clip(np.divide(-g, whole, out=np.zeros_like(whole * 1.0), where=whole > 0), low, high)


def _score(g: Array, h: Array, weight: Array, how: Settings) -> Array:
    """Minus twice what a leaf of that weight adds to the loss: equation 6, for weights within bounds too."""
    made: Array = -(2 * g * weight + (h + how.lambda_) * weight * weight)
    return made
