"""Trees that sites grow by XGBoost itself, on their own rows: side by side, or one site after another.
The contract and aggregators may come in; xgboost is needed where trees are grown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.aggregators import each
from foedus.algorithms.cyclic import cyclic
from foedus.core import Algorithm, Local, Opened, RoundContext, SiteContext, State, Task, Update, Work
from foedus.errors import FoedusError, JobError, Missing
from foedus.params import Params
from foedus.trees import counting
from foedus.trees.model import KEPT, empty, joined, model_json, told
from foedus.trees.scoring import TreeScorer
from foedus.trees.settings import Settings, settings

OURS = ("seed", "random_state", "booster", "num_parallel_tree", "grow_policy", "max_leaves", "nthread", "n_jobs",
        "num_boost_round", "n_estimators", "process_type", "refresh_leaf", "updater", "device",
        "multi_strategy")  # fmt: skip
BESIDE = ("subsample", "sampling_method", "colsample_bytree", "colsample_bylevel", "colsample_bynode",
          "max_delta_step", "max_bin", "tree_method", "interaction_constraints", "max_cached_hist_node",
          "seed_per_iteration", "validate_parameters", "verbosity", "disable_default_eval_metric")  # fmt: skip


def xgboost_bagging(
    params: Mapping[str, Any],
    *,
    trees: int = 1,
    categories: Mapping[str, int | Sequence[Any]] = {},
    weight: str | None = None,
) -> Algorithm:
    """Each round every site grows `trees` trees (of each class) on its own rows, from the model that all have.

    Leaves count by their sites' examples, so that a round is one step of boosting. `params` are XGBoost's own, with the
    objectives of `histogram_boosting`, by which `categories` and `weight` are said, too. Sites need xgboost;
    `result.save("model.json")` is a file that XGBoost loads. A site's trees reach server and sites.
    """
    return _boosting("xgboost_bagging", params, trees, categories, weight)


def _boosting(
    whose: str, params: Mapping[str, Any], trees: int, categories: Mapping[str, Any], weight: str | None
) -> Algorithm:
    """`xgboost_bagging`, where errors say whose arguments these are."""
    if not isinstance(trees, int) or trees < 1:
        raise JobError(f"{whose}(trees={trees!r}): it must be a whole number of at least 1")
    if isinstance(params, Mapping) and (odd := [name for name in params if name in OURS]):
        raise JobError(f"{whose}: leave out {odd[0]!r}: trees are plain gbtree, and the seed is the run's")
    how = settings(params, 256, categories, weight, whose, BESIDE)
    works: dict[str, Work] = {name: partial(getattr(counting, name), how) for name in ("size", "columns", "measured")}
    works["boost"] = partial(_boost, how, dict(params), trees)
    return Algorithm(
        lambda params: {"trees": empty(how)}, partial(_round, how, trees), works, partial(model, how),
        ("fresh", "union"), None, partial(measure, how), TreeScorer(),
    )  # fmt: skip


def xgboost_cyclic(
    params: Mapping[str, Any],
    *,
    trees: int = 1,
    shuffle: bool = False,
    categories: Mapping[str, int | Sequence[Any]] = {},
    weight: str | None = None,
) -> Algorithm:
    """One site after another adds `trees` trees (of each class) to the model that those before it made: see `cyclic`.

    The rest is said as for `xgboost_bagging`.
    """
    return cyclic(_boosting("xgboost_cyclic", params, trees, categories, weight), shuffle)


def model(how: Settings, state: State) -> Params:
    """The trees, and what they are about."""
    if "names" not in state:
        return Params({})
    return Params({"about": told(how, state["names"]), **state["trees"]})


def measure(how: Settings, state: State, context: RoundContext) -> Any:
    """All sites of the round measure the model."""
    yield Task("measured", model(how, state), context.cohort, late="drop", returns=())
    return state


def _round(how: Settings, count: int, state: State, context: RoundContext) -> Any:
    if "names" not in state:
        names = yield from _names(context)
        state = {**state, "names": names}
    piece = Params(empty(how, count * how.groups)).spec
    opened = Opened(piece, partial(checked, how, state["names"]))
    total = yield Task("boost", model(how, state), context.cohort, each()._replace(opened=opened), returns=piece)
    shares = {outcome.site: outcome.weight / total.weight for outcome in total.outcomes}
    new = [{**tree, "value": shares[site] * tree["value"]} for site, tree in sorted(total.apart.items())]
    return {**state, "trees": joined([state["trees"], *new])}


def _names(context: RoundContext) -> Any:
    """The columns of one of the sites; the others find out at home whether theirs are the same."""
    size = (yield Task("size", Params({}), context.cohort, returns=Params({"size": np.int64(0)}).spec)).params["size"]
    like = Params({"names": np.zeros(int(size)), "digest": np.zeros(32)}).spec
    total = yield Task("columns", Params({"size": np.int64(size)}), context.cohort, each(), returns=like)
    text = total.apart[min(total.apart)]["names"]
    try:
        return [str(name) for name in json.loads(np.clip(text, 0, 255).astype(np.uint8).tobytes())]
    except ValueError as error:
        raise JobError(f"site {min(total.apart)} says no names of columns ({error}): look at its data") from None


def _boost(
    how: Settings, params: Mapping[str, Any], count: int, payload: Params, local: Local, site: SiteContext
) -> tuple[Local, Update]:
    try:
        import xgboost
    except ImportError as error:
        raise Missing("xgboost", "xgboost") from error
    x, y, weight = counting.rows(how, site)
    names = json.loads(bytes(payload["about"]))["names"]
    if counting.names(how, site) != names:
        raise JobError(
            f"{site.name}: its columns are {', '.join(counting.names(how, site))}, and those of the model "
            f"{', '.join(names)}: load the same ones in the same order"
        )
    types = ["c" if name in dict(how.categories) else "q" for name in names]
    data = xgboost.DMatrix(
        x, y, weight=weight, feature_names=names, feature_types=types, enable_categorical=True, nthread=1
    )
    before = xgboost.Booster(model_file=bytearray(model_json(payload))) if len(payload["feature"]) else None
    own = {"base_score": how.base_score, "max_depth": how.max_depth, "nthread": 1, "verbosity": 0}
    seeded = {"tree_method": "hist", **params, **own, "seed": site.key("trees").number() % 2**31}
    made = xgboost.train(seeded, data, count, xgb_model=before)
    grown = json.loads(bytes(made.save_raw("json")))["learner"]["gradient_booster"]["model"]["trees"]
    piece = empty(how, count * how.groups)
    for i, tree in enumerate(grown[len(payload["feature"]) :]):
        _read(tree, {name: x[i] for name, x in piece.items()})
    return local, Update(Params(piece), float(len(x)))


def _read(tree: Mapping[str, Any], into: Mapping[str, Any]) -> None:
    """XGBoost's nodes in the places of the heap."""
    codes = dict(zip(tree["categories_nodes"], _pieces(tree), strict=True))
    places = [(0, 0)]
    for node, at in places:
        leaf = tree["left_children"][node] < 0
        into["gain"][at], into["hessian"][at] = tree["loss_changes"][node], tree["sum_hessian"][node]
        into["value"][at] = tree["split_conditions" if leaf else "base_weights"][node]
        if leaf:
            continue
        into["feature"][at], into["gaps_left"][at] = tree["split_indices"][node], tree["default_left"][node]
        if node in codes:
            into["right"][at, codes[node]] = 1
        else:
            into["threshold"][at] = tree["split_conditions"][node]
        places += [(tree[f"{way}_children"][node], 2 * at + n) for n, way in ((1, "left"), (2, "right"))]


def _pieces(tree: Mapping[str, Any]) -> list[list[int]]:
    spans = zip(tree["categories_segments"], tree["categories_sizes"], strict=True)
    return [tree["categories"][begin : begin + size] for begin, size in spans]


def checked(how: Settings, names: Sequence[str], piece: Params) -> Params:
    """The trees that a site returned. Raises FoedusError for what are none."""
    feature, last = piece["feature"], how.nodes // 2
    if ((feature < -1) | (feature >= len(names))).any() or (feature[:, last:] >= 0).any():
        raise FoedusError(f"a tree asks for a column beyond the {len(names)} there are, or goes below {how.max_depth}")
    if not all(np.isfinite(piece[name]).all() for name in KEPT if piece[name].dtype.kind == "f"):
        raise FoedusError("a tree holds NaN or Inf")
    levels = np.array([*(dict(how.categories).get(name, 0) for name in names), 0])  # of a leaf none
    if (piece["right"] > (np.arange(how.levels) < levels[feature][..., None])).any():
        raise FoedusError("a tree decides by codes that its column does not have")
    return piece
