"""Trees from histograms of gradients, level by level (Chen and Guestrin 2016, algorithm 3 and equations 6 and 7).
Sums come in; nobody's rows are known here. Nodes are numbered as in a heap: the children of i are 2i + 1 and 2i + 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from foedus.params import Array
from foedus.trees.settings import Settings

LEAST_GAIN = 1e-6  # XGBoost's kRtEps


class Tree(NamedTuple):
    """One tree, whole or on its way: a node whose `feature` is -1 is a leaf, or is not there yet.

    `threshold` (float32): rows below it go left, gaps where `gaps_left` says; of a column of categories, those go right
    whose codes `right` has (nodes, levels). `low`, `high`: what a node's value has to lie between, for monotone
    features.
    """

    feature: Array
    threshold: Array
    gaps_left: Array
    value: Array
    gain: Array
    hessian: Array
    right: Array
    low: Array
    high: Array


class Columns(NamedTuple):
    """What is known of the columns: edges (features, bins - 1) float32, infinite where there are fewer; of each its
    sign for monotone constraints, and how many levels it has (0: it is a number)."""

    edges: Array
    signs: Array
    levels: Sequence[int]


class Found(NamedTuple):
    """A split: column, threshold or codes that go right, where gaps go, its gain, both children's weights."""

    feature: int
    threshold: float
    right: Sequence[int]
    gaps_left: bool
    gain: float
    weights: tuple[float, float]


def seed(how: Settings) -> Tree:
    """A tree whose root is all there is."""
    nodes, zeros = how.nodes, np.zeros(how.nodes)
    return Tree(
        np.full(nodes, -1, np.int32), np.zeros(nodes, np.float32), np.zeros(nodes, np.int32), zeros, zeros.copy(),
        zeros.copy(), np.zeros((nodes, how.levels), np.uint8), np.full(nodes, -np.inf), np.full(nodes, np.inf),
    )  # fmt: skip


def level(depth: int) -> range:
    """The nodes of a level."""
    return range((1 << depth) - 1, (1 << (depth + 1)) - 1)


def alive(tree: Tree, depth: int) -> list[int]:
    """The nodes of a level that have rows: the root, and the children of what was split."""
    return [i for i in level(depth) if i == 0 or tree.feature[(i - 1) // 2] >= 0]


def grow(tree: Tree, depth: int, sums: Array, columns: Columns, how: Settings) -> Tree:
    """The tree after a level: each of its nodes has its value, and is split where that gains.

    sums: (nodes of the level, features, bins + 1, 2) of gradients and Hessians, the last bin of gaps.
    """
    there = set(alive(tree, depth))
    for at, node in enumerate(level(depth)):
        if node not in there:
            continue
        g, h = sums[at, 0].sum(0)  # any feature has all rows
        weight = _weight(g, h, tree.low[node], tree.high[node], how)
        tree.value[node], tree.hessian[node] = weight * how.eta, h
        if depth < how.max_depth:
            _split(tree, node, sums[at], (g, h), columns, how)
    return tree


def leaf(g: Array, h: Array, how: Settings) -> Array:
    """What leaves of these sums say, after the learning rate; 0 where nobody is."""
    return np.asarray(_weight(g, h, -np.inf, np.inf, how) * how.eta)


def _split(tree: Tree, node: int, sums: Array, whole: tuple[Any, Any], columns: Columns, how: Settings) -> None:
    bounds = tree.low[node], tree.high[node]
    parent = float(_score(*whole, _weight(*whole, *bounds, how), how))
    found: Found | None = None
    for split in _splits(sums, whole, bounds, columns, how):
        gain = split.gain - parent
        if gain > (found.gain if found else LEAST_GAIN) and gain >= how.gamma:
            found = split._replace(gain=gain)
    if found is None:
        return
    tree.feature[node], tree.threshold[node] = found.feature, found.threshold
    tree.right[node, list(found.right)] = 1
    tree.gaps_left[node], tree.gain[node] = found.gaps_left, found.gain
    sign = columns.signs[found.feature]
    for child, side in ((2 * node + 1, 0), (2 * node + 2, 1)):
        tree.low[child], tree.high[child] = bounds
        if sign:
            upper = (sign > 0) != bool(side)  # whether the middle is the child's upper bound
            (tree.high if upper else tree.low)[child] = sum(found.weights) / 2


def _splits(
    sums: Array, whole: tuple[Any, Any], bounds: tuple[float, float], columns: Columns, how: Settings
) -> Iterator[Found]:
    """The best split of numbers for gaps on either side, and those of each column of categories."""
    number = np.array([not levels for levels in columns.levels])
    gaps, below = sums[:, -1], sums[:, :-1].cumsum(1)[:, :-1]  # (features, bins - 1, 2): what lies below each edge
    allowed = np.isfinite(columns.edges) & number[:, None]
    for gaps_left in (False, True):
        left = below + gaps[:, None] if gaps_left else below
        gains, ours, theirs = _gains(left, whole, bounds, how)
        gains = np.where(allowed & (columns.signs[:, None] * (theirs - ours) >= 0), gains, -np.inf)
        at = int(gains.argmax())
        feature, edge = divmod(at, gains.shape[1])
        weights = float(ours.flat[at]), float(theirs.flat[at])
        yield Found(feature, columns.edges[feature, edge], (), gaps_left, float(gains.flat[at]), weights)
    for feature in np.flatnonzero(~number).tolist():
        for order, gaps_left, right in _partitions(sums[feature], columns.levels[feature], how):
            gains, ours, theirs = _gains(np.asarray(whole) - right, whole, bounds, how)
            at = int(gains.argmax())
            yield Found(feature, 0.0, order[at], gaps_left, float(gains[at]), (float(ours[at]), float(theirs[at])))


def _partitions(sums: Array, levels: int, how: Settings) -> Iterator[tuple[list[list[int]], bool, Array]]:
    """Sets of codes that may go right, whether gaps go left, and the sums of what goes right.

    Few levels: each one alone. Many: the first of them in the order of their weights (Fisher 1958), with gaps left
    those from its beginning, with gaps right those that stay when the last ones are taken away.
    """
    own, gaps = sums[:levels], sums[-1]
    if levels < how.max_cat_to_onehot:
        alone = [[code] for code in range(levels)]
        yield alone, True, own
        yield alone, False, own + gaps
        return
    weights = _weight(own[:, 0], own[:, 1], -np.inf, np.inf, how)
    order = np.argsort(np.where(own[:, 1] < how.min_child_weight, 0, weights), kind="stable")  # as XGBoost has it
    heads, most = own[order].cumsum(0), min(how.max_cat_threshold, levels)
    first = [order[: n + 1].tolist() for n in range(levels)]
    forward, backward = slice(0, most - 1), slice(levels - most, levels - 1)
    if most > 1:
        yield first[forward], True, heads[forward]
        yield first[backward][::-1], False, heads[backward][::-1] + gaps  # of equal gains the first one counts


def _gains(
    left: Array, whole: tuple[Any, Any], bounds: tuple[float, float], how: Settings
) -> tuple[Array, Array, Array]:
    """What both sides score, minus infinity where one is too light, and their weights; left: (…, 2) sums."""
    g, h = left[..., 0], left[..., 1]
    rest = whole[0] - g, whole[1] - h
    ours, theirs = _weight(g, h, *bounds, how), _weight(*rest, *bounds, how)
    fits = (np.minimum(h, rest[1]) >= how.min_child_weight) & (h > 0) & (rest[1] > 0)
    return np.where(fits, _score(g, h, ours, how) + _score(*rest, theirs, how), -np.inf), ours, theirs


def _weight(g: Array, h: Array, low: float, high: float, how: Settings) -> Array:
    """Equation 5 with L1, within a node's bounds."""
    whole = h + how.lambda_
    return np.clip(np.divide(-_shrunk(g, how), whole, out=np.zeros_like(whole * 1.0), where=whole > 0), low, high)


def _score(g: Array, h: Array, weight: Array, how: Settings) -> Array:
    """Minus twice what a leaf of that weight adds to the loss: equation 6, for weights within bounds too."""
    made: Array = -(2 * _shrunk(g, how) * weight + (h + how.lambda_) * weight * weight)
    return made


def _shrunk(g: Array, how: Settings) -> Array:
    return np.asarray(np.sign(g) * np.maximum(np.abs(g) - how.alpha, 0)) if how.alpha else g
