"""LightGBM's trees as plain arrays, checked, and as the text of a model that LightGBM loads.
Params and errors may come in; text is read of this process's own boosters alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.errors import FoedusError
from foedus.params import Array, Params

FAR = 1e100  # a threshold beyond this is as good as this: updates have no room for more
SPLITS = {"feature": np.int32, "left": np.int32, "right": np.int32, "decision": np.int32}
NAMES = {  # ours -> LightGBM's
    "feature": "split_feature", "left": "left_child", "right": "right_child", "decision": "decision_type",
    "threshold": "threshold", "gain": "split_gain", "value": "leaf_value",
}  # fmt: skip
DECISIONS = {0, 2, 4, 6, 8, 10}  # a number; gaps are none, zeros or NaN, and go right or left


def empty(trees: int, leaves: int) -> Params:
    """So many trees of one leaf that says 0, with room for `leaves`."""
    arrays: dict[str, Array] = {name: np.zeros((trees, leaves - 1), dtype) for name, dtype in SPLITS.items()}
    arrays |= {name: np.zeros((trees, leaves - 1)) for name in ("threshold", "gain")}
    return Params(arrays | {"value": np.zeros((trees, leaves)), "leaves": np.ones(trees, np.int32)})


def read(text: str, into: Params) -> Params:
    """The trees of a model's text, at the beginning of `into`; what it has no trees for stays as it is."""
    blocks = text.partition("\nend of trees")[0].split("\nTree=")[1:]
    for i, block in enumerate(blocks):
        told = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        n = into["leaves"][i] = int(told["num_leaves"])
        for name, theirs in NAMES.items():
            numbers = np.array(told.get(theirs, "").split(), np.float64)
            into[name][i, : n if name == "value" else n - 1] = np.clip(numbers, -FAR, FAR)
    return into


def checked(piece: Params, features: int, most: int) -> Params:
    """The same trees. Raises FoedusError for what is no tree: LightGBM follows these numbers without looking."""
    for i, n in enumerate(piece["leaves"]):
        why = _odd({name: piece[name][i] for name in NAMES}, int(n), features, most)
        if why:
            raise FoedusError(f"tree {i}: {why}")
    return piece


def _odd(tree: Mapping[str, Array], n: int, features: int, most: int) -> str:
    """What is wrong with these nodes, if anything: children come after their parents, each of one parent alone."""
    if not 1 <= n <= most:
        return f"it has {n} leaves, not 1 to {most}"
    inner = np.arange(n - 1)
    left, right = (tree[name][: n - 1].astype(np.int64) for name in ("left", "right"))
    if sorted([*left.tolist(), *right.tolist()]) != [*range(-n, 0), *range(1, n - 1)] and n > 1:
        return "its nodes are not joined as a tree's"
    if ((left >= 0) & (left <= inner)).any() or ((right >= 0) & (right <= inner)).any():
        return "a node comes before its parent"
    if ((tree["feature"][: n - 1] < 0) | (tree["feature"][: n - 1] >= features)).any():
        return f"it asks for a feature beyond the {features} there are"
    if not {*tree["decision"][: n - 1].tolist()} <= DECISIONS:
        return "it decides by something other than numbers"
    if not all(np.isfinite(tree[name]).all() for name in ("threshold", "gain", "value")):
        return "it holds NaN or Inf"
    return ""


def joined(model: Params, pieces: Sequence[Params], shares: Sequence[float]) -> Params:
    """The trees of a model and of these pieces, whose leaves count by their shares."""
    scaled = [Params({**part, "value": share * part["value"]}) for part, share in zip(pieces, shares, strict=True)]
    return Params({name: np.concatenate([part[name] for part in (model, *scaled)]) for name in model})


def text(params: Params, names: Sequence[str], objective: str, classes: int) -> str:
    """A model file (version 4) of these trees, `classes` of them an iteration; numbers to the last digit."""
    head = [
        "tree", "version=v4", f"num_class={classes}", f"num_tree_per_iteration={classes}", "label_index=0",
        f"max_feature_idx={len(names) - 1}", f"objective={objective}", f"feature_names={' '.join(names)}",
        f"feature_infos={' '.join(['none'] * len(names))}",
    ]  # fmt: skip
    blocks = [_block(params, i) for i in range(len(params["leaves"]))]
    return "\n".join([*head, "", *blocks, "end of trees", ""])


def _block(params: Params, i: int) -> str:
    n = int(params["leaves"][i])
    lines: dict[str, Any] = {"Tree": i, "num_leaves": n, "num_cat": 0}
    for name, theirs in NAMES.items():
        numbers = params[name][i, : n if name == "value" else n - 1].tolist()
        lines[theirs] = " ".join(map(repr, numbers))
    return "\n".join(f"{name}={x}" for name, x in (lines | {"is_linear": 0, "shrinkage": 1}).items()) + "\n\n"
