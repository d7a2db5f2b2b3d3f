"""Forests by the union of trees: each site trains some, and its trees travel as plain arrays that are checked.
Only the kinds may come in; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.tree._tree import NODE_DTYPE, Tree

from foedus.errors import FoedusError, JobError
from foedus.keys import Key
from foedus.params import Array, Params, Spec
from foedus.sklearn.kinds import Asked, Kind, seeded

CLASSIFIERS = (ExtraTreesClassifier, RandomForestClassifier)
KINDS = (*CLASSIFIERS, ExtraTreesRegressor, RandomForestRegressor)
MOST_NODES = 1 << 16  # of a tree
FAR = 1e100  # a threshold beyond all float32 numbers, in place of the Inf that parts gaps from all else
WHOLE = {"left": np.int32, "right": np.int32, "feature": np.int32, "missing_left": np.uint8}
REAL = ("threshold", "impurity", "share")  # share: of the tree's rows, as much as importances need


def kind(estimator: Any) -> Kind:
    """The kind of a forest."""
    target: Any = "class" if isinstance(estimator, CLASSIFIERS) else "number"
    return Kind("union", target, _first, _train, _fitted, gaps=True, piece=_piece)


def room(asked: Asked) -> int:
    """How many nodes a tree can have. Raises JobError where nothing bounds them."""
    leaves, depth = asked.estimator.max_leaf_nodes, asked.estimator.max_depth
    limits = [2 * leaves - 1] if leaves else []
    limits += [2 ** (depth + 1) - 1] if depth and depth < 32 else []
    if not limits or min(limits) > MOST_NODES:
        raise JobError(
            f"{asked.name} may grow trees of any size: say max_leaf_nodes=…, or max_depth=… of at most 15, "
            "for what a site sends has a size that is known before"
        )
    return int(min(limits))


def _outputs(asked: Asked) -> int:
    return 1 if asked.classes is None else len(asked.classes)


def _empty(asked: Asked, trees: int) -> Params:
    """So many trees without nodes; those that a tree does not have are zero."""
    n = room(asked)
    arrays: dict[str, Array] = {name: np.zeros((trees, n), dtype) for name, dtype in WHOLE.items()}
    arrays |= {name: np.zeros((trees, n)) for name in REAL} | {"value": np.zeros((trees, n, _outputs(asked)))}
    return Params(arrays | {"nodes": np.zeros(trees, np.int32)})


def _first(asked: Asked, key: Key) -> Params:
    made = asked.estimator
    if getattr(made, "warm_start", False) or getattr(made, "oob_score", False):
        raise JobError(f"{asked.name}: leave out warm_start and oob_score, which no union of trees has")
    return _empty(asked, 0)


def _piece(asked: Asked) -> Spec:
    return _empty(asked, asked.estimator.n_estimators).spec


def _train(asked: Asked, params: Params, x: Array, y: Array, key: Key) -> tuple[Params, int]:
    """New trees of this site's rows, whatever the others have."""
    made = asked.clone(random_state=seeded(key("trees")), n_jobs=1).fit(x, y)
    found = _empty(asked, len(made.estimators_))
    columns = made.classes_ if asked.classes is not None else [0]  # a site may lack classes
    for i, grown in enumerate(made.estimators_):
        tree, n = grown.tree_, grown.tree_.node_count
        found["left"][i, :n], found["right"][i, :n] = tree.children_left, tree.children_right
        found["feature"][i, :n], found["threshold"][i, :n] = tree.feature, np.clip(tree.threshold, -FAR, FAR)
        found["missing_left"][i, :n], found["nodes"][i] = tree.missing_go_to_left, n
        found["impurity"][i, :n] = tree.impurity
        found["share"][i, :n] = tree.weighted_n_node_samples / tree.weighted_n_node_samples[0]
        found["value"][i, :n, columns] = tree.value[:, 0, :].T
    return found, len(made.estimators_)


def checked(asked: Asked, piece: Params) -> Params:
    """The same trees. Raises FoedusError for what is no tree: scikit-learn follows these numbers without looking."""
    for i, n in enumerate(piece["nodes"]):
        why = _odd(asked, {name: x[i, :n] for name, x in piece.items() if name != "nodes"}, int(n), room(asked))
        if why:
            raise FoedusError(f"tree {i}: {why}")
    return piece


def _odd(asked: Asked, tree: dict[str, Array], n: int, most: int) -> str:
    """What is wrong with these nodes, if anything: children come after their parents, each of one parent alone."""
    if not 1 <= n <= most:
        return f"it has {n} nodes, not 1 to {most}"
    left, right, value = tree["left"].astype(np.int64), tree["right"].astype(np.int64), tree["value"]
    inner = left != -1
    children = np.concatenate([left[inner], right[inner]])
    if ((right == -1) == inner).any() or sorted(children.tolist()) != list(range(1, n)):
        return "its nodes are not joined as a tree's"
    if (np.minimum(left, right)[inner] <= np.flatnonzero(inner)).any():
        return "a node comes before its parent"
    if ((tree["feature"][inner] < 0) | (tree["feature"][inner] >= len(asked.names))).any():
        return f"it asks for a feature beyond the {len(asked.names)} there are"
    if not all(np.isfinite(tree[name]).all() for name in (*REAL, "value")):
        return "it holds NaN or Inf"
    if tree["share"][0] != 1 or (tree["share"] < 0).any() or (tree["share"] > 1).any():
        return "its nodes hold more rows than there are"
    if asked.classes is not None and ((value < 0).any() or (abs(value.sum(axis=1) - 1) > 1e-6).any()):
        return "its values are no shares of classes"
    return ""


def joined(model: Params, pieces: Sequence[Params]) -> Params:
    """The forest of all these trees, in this order."""
    return Params({name: np.concatenate([part[name] for part in (model, *pieces)]) for name in model})


def _fitted(asked: Asked, params: Params) -> Any:
    """The forest that scikit-learn would have of these trees."""
    if not len(params["nodes"]):
        raise JobError(f"this {asked.name} has no trees yet: run a round first")
    checked(asked, params)
    made = asked.clone()
    made.estimator_ = type(made)().estimator
    made.n_outputs_, made.n_features_in_ = 1, len(asked.names)
    made.estimators_ = [_tree(asked, params, i) for i in range(len(params["nodes"]))]
    if asked.classes is not None:
        made.classes_, made.n_classes_ = asked.classes, len(asked.classes)
    return made.set_params(n_estimators=len(made.estimators_))


def _tree(asked: Asked, params: Params, i: int) -> Any:
    n, p, k = int(params["nodes"][i]), len(asked.names), _outputs(asked)
    nodes = np.zeros(n, NODE_DTYPE)
    nodes["left_child"], nodes["right_child"] = params["left"][i, :n], params["right"][i, :n]
    nodes["feature"], nodes["threshold"] = params["feature"][i, :n], params["threshold"][i, :n]
    nodes["missing_go_to_left"] = params["missing_left"][i, :n]
    nodes["impurity"], nodes["weighted_n_node_samples"] = params["impurity"][i, :n], params["share"][i, :n]
    tree = Tree(p, np.array([k], np.intp), 1)
    values = np.ascontiguousarray(params["value"][i, :n, None, :], np.float64)
    tree.__setstate__({"max_depth": _depth(nodes), "node_count": n, "nodes": nodes, "values": values})
    made = type(type(asked.estimator)().estimator)()
    made.tree_, made.n_features_in_, made.n_outputs_ = tree, p, 1
    made.classes_, made.n_classes_ = np.arange(k, dtype=np.float64), k
    made.max_features_ = p
    return made


def _depth(nodes: Array) -> int:
    depth = np.zeros(len(nodes), np.int64)
    for i in np.flatnonzero(nodes["left_child"] >= 0):
        depth[[nodes["left_child"][i], nodes["right_child"][i]]] = depth[i] + 1
    return int(depth.max())
