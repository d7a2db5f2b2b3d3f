"""LightGBMLearner: a site adds trees to the booster that all have, by LightGBM itself.
Metrics, tables and the contract may come in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import lightgbm
import numpy as np

from foedus import metrics as measures
from foedus.core import Correct, Fit
from foedus.data import Split
from foedus.errors import FoedusError, JobError
from foedus.keys import Key
from foedus.lightgbm import trees
from foedus.params import Array, Params, Spec
from foedus.progress import progress
from foedus.tabular import Table, classes_of, names_of, read, stated, surprise

LEAVES = 31  # LightGBM's own default
MOST_LEAVES = 1 << 15
NUMBERS = ("regression", "regression_l1", "poisson", "gamma")
OURS = {"verbosity": -1, "num_threads": 1, "deterministic": True, "force_row_wise": True}
REFUSED = ("num_iterations", "num_class", "categorical_feature", "linear_tree", "seed", "boosting")


class LightGBMLearner:
    """A learner of a booster by `params` of LightGBM, to which a site adds `trees` iterations a round.

    `fd.union(learner)`: all sites train from the same booster, and their trees count by their examples, so that a round
    is one step (bagging). `fd.cyclic(fd.union(learner))`: one site after another (cyclic). objective: "binary",
    "multiclass", "regression", "regression_l1", "poisson" or "gamma". features: how many columns, or their names.
    classes: all labels that any site may have. Rows may have gaps (NaN). `booster(result)` is an ordinary Booster.

    >>> learner = LightGBMLearner({"objective": "binary", "num_leaves": 7}, features=4, classes=[0, 1], trees=5)
    >>> learner.init(Key((0,)))["value"].shape, [leaf.shape for leaf in learner.piece if leaf.name == "value"]
    ((0, 7), [(5, 7)])
    """

    by = "union"  # what its models are combined by

    def __init__(
        self,
        params: Mapping[str, Any],
        features: int | Sequence[str],
        classes: Sequence[Any] | None = None,
        *,
        trees: int = 1,
        metrics: Sequence[Any] = (),
    ) -> None:
        self.given, self.trees, self.metrics = dict(params), trees, list(metrics)
        self.objective, self.leaves = self.given.get("objective", ""), self.given.get("num_leaves", LEAVES)
        names, self.feature_names = names_of("LightGBMLearner", features), stated(features)
        self.names = tuple(f"Column_{name}" if name.isdecimal() else name for name in names)
        _check(self)
        known = None if self.objective in NUMBERS else classes_of(f"objective {self.objective!r}", classes)
        if known is not None and self.objective == "binary" and len(known) != 2:
            raise JobError(f"objective 'binary' has two classes, not {known.tolist()}: write 'multiclass'")
        self.table = Table(names, "number" if known is None else "class", known, gaps=True)

    def describe(self) -> dict[str, Any]:
        """The settings, for the Job's description."""
        classes = None if self.table.classes is None else self.table.classes.tolist()
        params = {name: x if isinstance(x, (int, float, str)) else repr(x) for name, x in self.given.items()}
        return {"params": params, "features": list(self.names), "classes": classes, "trees": self.trees}

    @property
    def columns(self) -> int:
        """How many trees an iteration has: one a class, where there are more than two."""
        return len(self.table.classes) if self.objective == "multiclass" and self.table.classes is not None else 1

    def init(self, key: Key) -> Params:
        """A booster without trees."""
        return trees.empty(0, self.leaves)

    @property
    def piece(self) -> Spec:
        """What a site returns; an iteration in which it found nothing to split has trees that say 0."""
        return trees.empty(self.trees * self.columns, self.leaves).spec

    def train(self, params: Params, split: Split, key: Key, correct: Correct | None) -> Fit:
        """This site's new trees, which go on from the booster that came. Raises JobError."""
        if correct is not None:
            raise JobError("this algorithm corrects gradients, and trees have none: take fd.union(learner)")
        x, y = read(self.table, split.train)
        _check_targets(self.objective, y)
        before = self._booster(params) if len(params["leaves"]) else None
        start = {"boost_from_average": self.table.target == "number"}  # a class that a site lacks has no average
        own = {"seed": key("trees").number() % 2**31, "num_class": self.columns, "num_leaves": self.leaves}
        seeded = {**start, **self.given, **OURS, **own}
        data = lightgbm.Dataset(x, y, feature_name=list(self.names), params=seeded)
        made = lightgbm.train(seeded, data, self.trees, init_model=before)
        past = 0 if before is None else before.current_iteration()
        progress()
        piece = trees.empty(self.trees * self.columns, self.leaves)
        if made.current_iteration() > past:
            trees.read(made.model_to_string(start_iteration=past), piece)
        if self.table.target == "class":
            piece["value"][piece["leaves"] == 1] = 0  # LightGBM writes the log odds of a site's classes there
        return Fit(piece, len(x), self.trees, float("nan"))

    def checked(self, piece: Params) -> Params:
        """The trees that a site returned. Raises FoedusError for what are none."""
        return trees.checked(piece, len(self.names), self.leaves)

    def joined(self, model: Params, pieces: Sequence[Params], shares: Sequence[float]) -> Params:
        """The booster with these trees added: by their shares, for the mean of the sites' steps is one step."""
        return trees.joined(model, pieces, shares)

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over `data` for these metrics."""
        x, y = read(self.table, data)
        outputs = np.asarray(self.booster(params).predict(x, num_threads=1))
        wanted = list(map(measures.metric, metrics))
        if self.table.target == "number":
            return measures.measure(wanted, outputs, y, np.square(outputs - y))
        shares = np.column_stack([1 - outputs, outputs]) if outputs.ndim == 1 else outputs
        return measures.measure(wanted, shares, y, surprise(shares, y), "probabilities")

    def booster(self, result: Any) -> Any:
        """The Booster of a Result, of its params, or of arrays read from a file; its classes are numbers.

        Raises FoedusError.
        """
        params = getattr(result, "params", result)
        if {*params} != {*trees.empty(0, self.leaves)}:
            raise FoedusError(f"these are no trees of LightGBM: {sorted(params)}")
        if not len(params["leaves"]):
            raise JobError("this booster has no trees yet: run a round first")
        return self._booster(Params(params))

    def _booster(self, params: Params) -> Any:
        told = {
            "binary": f"binary sigmoid:{self.given.get('sigmoid', 1)}",
            "multiclass": f"multiclass num_class:{self.columns}",
        }
        objective = told.get(self.objective, self.objective)
        return lightgbm.Booster(model_str=trees.text(self.checked(params), self.names, objective, self.columns))


def _check_targets(objective: str, y: Array) -> None:
    """Raises JobError for numbers of which LightGBM fits nothing by this objective."""
    bad = {"poisson": y < 0, "gamma": y <= 0}.get(objective, np.zeros(1, bool))
    if bad.any():
        what = "below 0" if objective == "poisson" else "that are 0 or below"
        raise JobError(
            f"y holds numbers {what} in {int(bad.sum())} of {len(y)} rows, and objective {objective!r} takes none: "
            "leave these rows out in load, or choose objective 'regression'"
        )
    if objective == "poisson" and not y.any():
        raise JobError(
            f"y is 0 in all of this site's {len(y)} rows, and objective 'poisson' takes the logarithm of their mean: "
            "have the site take part when it has a count above 0, or choose objective 'regression'"
        )


@cache
def _names() -> Mapping[str, str]:
    """Each name that LightGBM knows a parameter by -> its first one."""
    every: Mapping[str, Sequence[str]] = lightgbm.basic._ConfigAliases._get_all_param_aliases()
    return {alias: name for name, others in every.items() for alias in (name, *others)}


def _check_known(given: Mapping[str, Any]) -> None:
    """Raises JobError for a name that LightGBM would pass over, or one that it knows for `num_leaves`."""
    known = _names()
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            meant = f"did you mean {known[near[0]]!r}?" if near else "look it up among LightGBM's parameters"
            raise JobError(f"LightGBMLearner: {name!r} is none of LightGBM's parameters; {meant}")
        if name != known[name] == "num_leaves":
            raise JobError(f"LightGBMLearner: say num_leaves in place of {name!r}")


def _check(learner: LightGBMLearner) -> None:
    known = ("binary", "multiclass", *NUMBERS)
    if learner.objective not in known:
        raise JobError(f"LightGBMLearner: objective={learner.objective!r}; it is one of {', '.join(known)}")
    _check_known(learner.given)
    for name in learner.given:
        if _names()[name] in REFUSED:
            raise JobError(
                f"LightGBMLearner: leave out {name!r}: iterations are trees= and rounds, num_class comes of classes=, "
                "the seed of the run's; categories go in as numbers, and trees are plain gbdt"
            )
    if not isinstance(learner.leaves, int) or not 2 <= learner.leaves <= MOST_LEAVES:
        raise JobError(f"LightGBMLearner: num_leaves={learner.leaves!r} is no whole number from 2 to {MOST_LEAVES}")
    if not isinstance(learner.trees, int) or isinstance(learner.trees, bool) or learner.trees < 1:
        raise JobError(f"LightGBMLearner(trees={learner.trees!r}): it must be a whole number of at least 1")
    odd = [name for name in learner.names if not name.replace("_", "").isalnum()]
    if odd:
        raise JobError(
            f"LightGBMLearner(features=…): {odd[0]!r} has signs that no model file holds: use letters, _ and digits"
        )
