"""A boosted model as arrays, its scores, and the JSON file of it that XGBoost loads.
Trees come in; XGBoost compares in float32, and so does everything here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.errors import FoedusError
from foedus.params import Array, Params
from foedus.trees.growing import Tree
from foedus.trees.settings import Settings

WAYS = ("feature", "threshold", "gaps_left", "right")  # what says where a row goes
KEPT = (*WAYS, "value", "gain", "hessian")  # of each tree, (trees, nodes)
VERSION = [2, 1, 0]


def empty(how: Settings, trees: int = 0) -> dict[str, Array]:
    """So many trees of one leaf that says 0; tree i is of class i modulo the classes."""
    kinds = {"feature": np.int32, "threshold": np.float32, "gaps_left": np.int32}
    made = {name: np.zeros((trees, how.nodes), kinds.get(name, np.float64)) for name in KEPT}
    made["feature"][:] = -1
    return made | {"right": np.zeros((trees, how.nodes, how.levels), np.uint8)}


def grown(trees: dict[str, Array], new: Sequence[Tree]) -> dict[str, Array]:
    """More trees."""
    return joined([trees, {name: np.array([getattr(tree, name) for tree in new]) for name in KEPT}])


def joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The trees of all parts, one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in KEPT}


def leaves(tree: Any, x: Array) -> Array:
    """The number of the node in which each row ends: a leaf, or a node that is not split yet. `tree`: WAYS by name."""
    feature, threshold, gaps_left, right = (tree[name] for name in WAYS)
    by_code = right.any(-1)
    at, rows = np.zeros(len(x), np.int64), np.arange(len(x))
    while len(rows):
        inner = feature[at[rows]] >= 0
        rows = rows[inner]
        node = at[rows]
        values = x[rows, feature[node]]
        left = values < threshold[node]
        coded = np.flatnonzero(by_code[node] & ~np.isnan(values))
        left[coded] = right[node[coded], values[coded].astype(np.int64)] == 0
        left = np.where(np.isnan(values), gaps_left[node] > 0, left)
        at[rows] = 2 * node + np.where(left, 1, 2)
    return at


def margins(trees: Any, x: Array, how: Settings, first: int = 0) -> Array:
    """The sums of the trees' values from tree `first` on, (rows, classes), before the base score; x is float32."""
    found = np.zeros((len(x), how.groups))
    for i in range(first, len(trees["feature"])):
        at = leaves({name: trees[name][i] for name in WAYS}, x)
        found[:, i % how.groups] += trees["value"][i][at]
    return found


def base(how: Settings) -> float:
    """The base score as a margin."""
    return float(np.log(how.base_score / (1 - how.base_score))) if how.logistic else how.base_score


def scored(margin: Array, how: Settings) -> Array:
    """Of margins (rows, classes) probabilities of class 1, values, or probabilities of all classes (rows, classes)."""
    if how.num_class:
        whole = np.exp(margin - margin.max(1, keepdims=True))
        return np.asarray(whole / whole.sum(1, keepdims=True))
    margin = margin[:, 0]
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-margin)) if how.logistic else margin


def features(x: Array, names: Sequence[str], how: Settings) -> Array:
    """The rows as float32. Raises FoedusError for a code that is none of a column's levels."""
    rows = np.asarray(x, np.float32)
    for name, levels in how.categories:
        if name not in names:
            raise FoedusError(f"categories: there is no column {name!r}: choose from {', '.join(names)}")
        values = rows[:, names.index(name)]
        values = values[~np.isnan(values)]
        if not ((values >= 0) & (values < levels) & (values == np.floor(values))).all():
            raise FoedusError(f"column {name!r} holds more than the codes 0 to {levels - 1} of its levels, and gaps")
    return rows


def told(how: Settings, names: Sequence[str]) -> Array:
    """The settings and the columns' names, as bytes that are kept beside the trees."""
    return np.frombuffer(json.dumps({"how": how._asdict(), "names": list(names)}).encode(), np.uint8)


def about(params: Any) -> tuple[Settings, list[str]]:
    """The settings and names of a model. Raises FoedusError for what is none."""
    if "about" not in params or "feature" not in params:
        raise FoedusError("these are no trees of histogram_boosting: give the Result of such a run, or its params")
    found = json.loads(bytes(np.asarray(params["about"], np.uint8)))
    pairs = {name: tuple((column, x) for column, x in found["how"].pop(name)) for name in ("monotone", "categories")}
    return Settings(**(found["how"] | pairs)), found["names"]


def predict(result: Any, x: Any) -> Array:
    """Scores of a Result or its params for rows (n, features): probabilities of class 1 (binary:logistic), of all
    classes (multi:softprob), or values. Raises FoedusError."""
    params = getattr(result, "params", result)
    how, names = about(params)
    rows = np.asarray(x, np.float32)
    if rows.ndim != 2 or rows.shape[1] != len(names):
        raise FoedusError(f"x is {list(rows.shape)}, and the model has the columns {', '.join(names)}")
    return scored(base(how) + margins(params, features(rows, names, how), how), how)


def model_json(result: Any) -> bytes:
    """The model as XGBoost's JSON, which `xgboost.Booster(model_file=…)` loads."""
    params: Params = getattr(result, "params", result)
    how, names = about(params)
    count = len(params["feature"])
    model = {
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(count)},
        "iteration_indptr": list(range(0, count + 1, how.groups)), "tree_info": [i % how.groups for i in range(count)],
        "trees": [_tree(params, i, len(names)) for i in range(count)],
    }  # fmt: skip
    learner = {
        "attributes": {}, "feature_names": names,
        "feature_types": ["c" if name in dict(how.categories) else "float" for name in names],
        "gradient_booster": {"model": model, "name": "gbtree"},
        "learner_model_param": {
            "base_score": repr(float(how.base_score)), "boost_from_average": "0", "num_class": str(how.num_class),
            "num_feature": str(len(names)), "num_target": "1",
        },
        "objective": {"name": how.objective, **_loss(how)},
    }  # fmt: skip
    return json.dumps({"learner": learner, "version": VERSION}).encode()


def _loss(how: Settings) -> dict[str, Any]:
    if how.num_class:
        return {"softmax_multiclass_param": {"num_class": str(how.num_class)}}
    return {"reg_loss_param": {"scale_pos_weight": repr(float(how.scale_pos_weight))}}


def _tree(params: Any, i: int, features: int) -> dict[str, Any]:
    """One tree, its nodes in the order of the heap, those that are there numbered anew."""
    feature = params["feature"][i]
    there = [0]
    for node in there:
        there += [2 * node + 1, 2 * node + 2] if feature[node] >= 0 else []
    number = {node: n for n, node in enumerate(there)}
    inner = [bool(feature[node] >= 0) for node in there]

    def of(name: str) -> list[Any]:
        return [params[name][i][node].item() for node in there]

    left, right = (
        [number[2 * n + side] if split else -1 for n, split in [*zip(there, inner, strict=True)]] for side in (1, 2)
    )
    codes = {number[n]: np.flatnonzero(params["right"][i][n]).tolist() for n in there if params["right"][i][n].any()}
    sizes = [len(found) for found in codes.values()]
    parents = [2147483647, *(number[(n - 1) // 2] for n in there[1:])]
    conditions = [t if split else v for t, v, split in zip(of("threshold"), of("value"), inner, strict=True)]
    return {
        "base_weights": of("value"), "categories": [code for found in codes.values() for code in found],
        "categories_nodes": list(codes), "categories_segments": np.cumsum([0, *sizes])[:-1].tolist(),
        "categories_sizes": sizes, "default_left": [int(x) for x in of("gaps_left")], "id": i,
        "left_children": left, "loss_changes": of("gain"), "parents": parents, "right_children": right,
        "split_conditions": conditions, "split_indices": [max(0, x) for x in of("feature")],
        "split_type": [int(n in codes) for n in range(len(there))], "sum_hessian": of("hessian"),
        "tree_param": {"num_deleted": "0", "num_feature": str(features), "num_nodes": str(len(there)),
                       "size_leaf_vector": "1"},
    }  # fmt: skip
