"""A boosted model as arrays, its scores, and the JSON file of it that XGBoost loads.
Trees come in; XGBoost compares in float32, and so does everything here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from foedus.errors import FoedusError
from foedus.params import Array, Params
from foedus.trees.growing import Tree
from foedus.trees.settings import Settings

KEPT = ("feature", "threshold", "gaps_left", "value", "gain", "hessian")  # of each tree, (trees, nodes)
VERSION = [2, 1, 0]


def empty(nodes: int) -> dict[str, Array]:
    """No tree."""
    kinds = {"feature": np.int32, "threshold": np.float32, "gaps_left": np.int32}
    return {name: np.zeros((0, nodes), kinds.get(name, np.float64)) for name in KEPT}


def grown(trees: dict[str, Array], tree: Tree) -> dict[str, Array]:
    """One more tree."""
    return {name: np.concatenate([trees[name], getattr(tree, name)[None]]) for name in KEPT}


def leaves(feature: Array, threshold: Array, gaps_left: Array, x: Array) -> Array:
    """The number of the node in which each row ends: a leaf, or a node that is not split yet."""
    at, rows = np.zeros(len(x), np.int64), np.arange(len(x))
    while len(rows):
        inner = feature[at[rows]] >= 0
        rows = rows[inner]
        node = at[rows]
        values = x[rows, feature[node]]
        left = np.where(np.isnan(values), gaps_left[node] > 0, values < threshold[node])
        at[rows] = 2 * node + np.where(left, 1, 2)
    return at


def margins(trees: Any, x: Array, first: int = 0) -> Array:
    """The sum of the trees' values from tree `first` on, before the base score; x is float32."""
    found = np.zeros(len(x))
    for i in range(first, len(trees["feature"])):
        at = leaves(trees["feature"][i], trees["threshold"][i], trees["gaps_left"][i], x)
        found += trees["value"][i][at]
    return found


def base(how: Settings) -> float:
    """The base score as a margin."""
    return float(np.log(how.base_score / (1 - how.base_score))) if how.logistic else how.base_score


def scored(margin: Array, how: Settings) -> Array:
    """Probabilities of class 1, or values."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-margin)) if how.logistic else margin


def told(how: Settings, names: Sequence[str]) -> Array:
    """The settings and the columns' names, as bytes that are kept beside the trees."""
    return np.frombuffer(json.dumps({"how": how._asdict(), "names": list(names)}).encode(), np.uint8)


def about(params: Any) -> tuple[Settings, list[str]]:
    """The settings and names of a model. Raises FoedusError for what is none."""
    if "about" not in params or "feature" not in params:
        raise FoedusError("these are no trees of histogram_boosting: give the Result of such a run, or its params")
    found = json.loads(bytes(np.asarray(params["about"], np.uint8)))
    monotone = tuple((name, sign) for name, sign in found["how"].pop("monotone"))
    return Settings(**found["how"], monotone=monotone), found["names"]


def predict(result: Any, x: Any) -> Array:
    """Probabilities of class 1 (binary:logistic) or values, of a Result or its params, for rows (n, features)."""
    params = getattr(result, "params", result)
    how, names = about(params)
    rows = np.asarray(x, np.float32)
    if rows.ndim != 2 or rows.shape[1] != len(names):
        raise FoedusError(f"x is {list(rows.shape)}, and the model has the columns {', '.join(names)}")
    return scored(base(how) + margins(params, rows), how)


def model_json(result: Any) -> bytes:
    """The model as XGBoost's JSON, which `xgboost.Booster(model_file=…)` loads."""
    params: Params = getattr(result, "params", result)
    how, names = about(params)
    count = len(params["feature"])
    model = {
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(count)},
        "iteration_indptr": list(range(count + 1)), "tree_info": [0] * count,
        "trees": [_tree(params, i, len(names)) for i in range(count)],
    }  # fmt: skip
    learner = {
        "attributes": {}, "feature_names": names, "feature_types": ["float"] * len(names),
        "gradient_booster": {"model": model, "name": "gbtree"},
        "learner_model_param": {
            "base_score": repr(float(how.base_score)), "boost_from_average": "0", "num_class": "0",
            "num_feature": str(len(names)), "num_target": "1",
        },
        "objective": {"name": how.objective, "reg_loss_param": {"scale_pos_weight": repr(float(how.scale_pos_weight))}},
    }  # fmt: skip
    return json.dumps({"learner": learner, "version": VERSION}).encode()


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

    nodes = zip(there, inner, strict=True)
    left, right = (
        [number[2 * n + side] if split else -1 for n, split in [*zip(there, inner, strict=True)]] for side in (1, 2)
    )
    parents = [2147483647, *(number[(n - 1) // 2] for n in there[1:])]
    conditions = [t if split else v for t, v, split in zip(of("threshold"), of("value"), inner, strict=True)]
    del nodes
    return {
        "base_weights": of("value"), "categories": [], "categories_nodes": [], "categories_segments": [],
        "categories_sizes": [], "default_left": [int(x) for x in of("gaps_left")], "id": i,
        "left_children": left, "loss_changes": of("gain"), "parents": parents, "right_children": right,
        "split_conditions": conditions, "split_indices": [max(0, x) for x in of("feature")],
        "split_type": [0] * len(there), "sum_hessian": of("hessian"),
        "tree_param": {"num_deleted": "0", "num_feature": str(features), "num_nodes": str(len(there)),
                       "size_leaf_vector": "1"},
    }  # fmt: skip
