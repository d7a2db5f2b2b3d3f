"""foedus.lightgbm: one site has LightGBM's own booster; means of steps by hand; classes in order; what is no tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

import foedus
from foedus import Job, Split, cyclic, fedprox, key, launch, union
from foedus.errors import FoedusError, JobError, Paused
from foedus.journal import Journal, Memory
from foedus.lightgbm import LightGBMLearner
from foedus.params import Params
from tiny import played, working

RNG = np.random.default_rng(5)
Y = RNG.integers(0, 3, 240)
X = np.where(RNG.random((240, 4)) < 0.05, np.nan, RNG.normal(size=(240, 4)) + Y[:, None] * [1, -1, 0.5, 0])
PARTS = {"north": np.arange(100), "south": np.arange(100, 239), "tiny": np.array([239])}
GIVEN = {"num_leaves": 5, "min_data_in_leaf": 5, "learning_rate": 0.3}
KINDS: dict[str, tuple[Any, Any]] = {
    "binary": ((Y > 0).astype(int), [0, 1]),
    "multiclass": (np.array(["b", "a", "c"])[Y], ["a", "b", "c"]),
    "regression": (X[:, 1] ** 2 + Y, None),
    "poisson": (Y, None),
}
KINDS = {name: (np.nan_to_num(y) if name == "regression" else y, known) for name, (y, known) in KINDS.items()}


def held(kind: str = "multiclass") -> dict[str, Split]:
    y = KINDS[kind][0]
    return {name: Split(train=(X[rows], y[rows]), valid=(X[rows], y[rows])) for name, rows in PARTS.items()}


def made(kind: str = "multiclass", **more: Any) -> LightGBMLearner:
    return LightGBMLearner({"objective": kind, **GIVEN}, 4, KINDS[kind][1], **more)


def plain(kind: str, rows: Any, trees: int, seed: int = 0, start: Any = None) -> Any:
    """What LightGBM itself makes of these rows, without an average to begin from where there are classes."""
    y, known = KINDS[kind]
    own = {"objective": kind, "verbosity": -1, "num_threads": 1, "deterministic": True, "force_row_wise": True}
    own |= {"num_class": 3} if kind == "multiclass" else {}
    own |= {"seed": seed, "boost_from_average": known is None}
    target = y[rows] if known is None else np.searchsorted(known, y[rows])
    return lightgbm.train({**GIVEN, **own}, lightgbm.Dataset(X[rows], target), trees, init_model=start)


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_of_one_site_are_lightgbms_own_booster(kind: str) -> None:
    """Four rounds of two iterations, each from the text of what was there, are eight iterations at once."""
    learner, rows = made(kind, trees=2), PARTS["north"]
    ended, _ = played(Job(union(learner), learner, rounds=4), {"north": held(kind)["north"]})
    np.testing.assert_allclose(learner.booster(ended).predict(X), plain(kind, rows, 8).predict(X), rtol=1e-9)


def test_a_round_is_the_mean_of_the_sites_steps_by_examples() -> None:
    """Raw scores of a step add up: 100/240 of north's and 139/240 of south's; one row has nothing to split."""
    learner = made("binary", trees=3)
    ended, _ = played(Job(union(learner), learner, rounds=1), held("binary"))
    north, south = (plain("binary", PARTS[name], 3).predict(X, raw_score=True) for name in ("north", "south"))
    found = learner.booster(ended)
    np.testing.assert_allclose(found.predict(X, raw_score=True), (100 * north + 139 * south) / 240, rtol=1e-9)
    assert found.num_trees() == 9


def test_one_site_after_another_goes_on_from_what_is_there() -> None:
    learner = made(trees=2)
    ended, _ = played(Job(cyclic(union(learner)), learner, rounds=1), held())
    booster = None
    for name in ("north", "south"):
        booster = plain("multiclass", PARTS[name], 2, start=booster)
    np.testing.assert_allclose(learner.booster(ended).predict(X), booster.predict(X), rtol=1e-9)


def test_every_class_has_its_trees_where_sites_lack_some() -> None:
    y, known = KINDS["multiclass"]
    sites = {name: np.flatnonzero(y != name) for name in known}  # none has all classes
    splits = {f"no {n}": Split(train=(X[rows], y[rows]), valid=(X, y)) for n, rows in sites.items()}
    learner = made(trees=2, metrics=["accuracy", "auc"])
    ended, _ = played(Job(union(learner), learner, rounds=10), splits)
    booster = learner.booster(ended)
    assert booster.num_trees() == 3 * 2 * 10 * 3 and booster.num_model_per_iteration() == 3
    shares = booster.predict(X)
    right = shares.argmax(1) == np.searchsorted(known, y)
    assert ended.history[-1]["accuracy"] == pytest.approx(right.mean()) and right.mean() > 0.85
    own = shares[np.arange(240), np.searchsorted(known, y)]
    assert ended.history[-1]["loss"] == pytest.approx(-np.log(own).mean())


def test_a_saved_booster_is_an_ordinary_one(tmp_path: Path) -> None:
    learner = made(trees=2)
    ended, _ = played(Job(union(learner), learner, rounds=2), held())
    booster = learner.booster(ended)
    booster.save_model(tmp_path / "model.txt")
    again = lightgbm.Booster(model_file=tmp_path / "model.txt")
    np.testing.assert_array_equal(again.predict(X), booster.predict(X))
    assert again.feature_name() == ["Column_0", "Column_1", "Column_2", "Column_3"]
    assert booster.feature_importance("gain").sum() > 0


class Stop(BaseException):
    """What ends a run in the middle."""


def test_a_run_that_goes_on_after_a_crash_has_the_bits_of_a_calm_one(tmp_path: Path) -> None:
    def stop(row: Mapping[str, Any]) -> None:
        if row["round"] == 1:
            raise Stop

    learner, log = made(trees=2), Memory()
    job = Job(union(learner), learner, rounds=3)
    calm = played(job, held())[0]
    with pytest.raises(Stop):
        played(job, held(), journal=Journal(log), folder=tmp_path, told=stop)
    ended, _ = played(job, held(), journal=Journal(log), folder=tmp_path)
    assert foedus.digest(ended.params) == foedus.digest(calm.params)


@pytest.mark.processes
def test_processes_have_the_bits_of_local(tmp_path: Path) -> None:
    learner = made()
    job = Job(union(learner), learner, rounds=3)
    here = launch.run(job, held(), backend="local", folder=tmp_path / "local")
    there = launch.run(job, held(), backend="processes", workers=2, folder=tmp_path / "there")
    assert there.digest == here.digest and there.per_site == here.per_site


@pytest.mark.parametrize(
    ("name", "place", "value", "why"),
    [
        ("leaves", 0, 0, "has 0 leaves, not 1 to 5"),
        ("leaves", 0, 9999, "has 9999 leaves"),
        ("left", (0, 0), 9999, "not joined"),
        ("left", (0, 0), 0, "not joined"),
        ("right", (0, 0), -99, "not joined"),
        ("feature", (0, 0), 4, "beyond the 4"),
        ("feature", (0, 0), -1, "beyond the 4"),
        ("decision", (0, 0), 1, "something other than numbers"),
        ("threshold", (0, 0), np.inf, "NaN or Inf"),
        ("value", (0, 0), np.nan, "NaN or Inf"),
    ],
)
def test_what_is_no_tree_is_refused_and_the_others_count(name: str, place: Any, value: float, why: str) -> None:
    learner = made()

    def lying(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        local, update = usual()
        if site.name == "south":
            update.params[name][place] = value
        return local, update

    ended, journal = played(Job(working(lying, union(learner)), learner, rounds=1), held())
    outcomes = {o[0]: o for o in journal.find("close", round=0, task=0)["outcomes"]}
    assert outcomes["south"][1] == "refused" and why in outcomes["south"][2]
    assert learner.booster(ended).num_trees() == 2 * 3


def test_children_that_lead_back_to_their_parents_are_no_tree() -> None:
    learner = made("binary")
    piece = learner.train(learner.init(key(0)), held("binary")["north"], key(0), None).params
    for name in ("left", "right"):  # node 0 has the children of the last node, and is its own descendant
        piece[name][0, [0, 3]] = piece[name][0, [3, 0]]
    with pytest.raises(FoedusError, match="tree 0: a node comes before its parent"):
        learner.checked(piece)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (np.nan_to_num(X[:50], nan=np.inf), KINDS["multiclass"][0][:50], r"column '\d' holds Inf in \d+ of 50 rows"),
        (X[:50, :3], KINDS["multiclass"][0][:50], r"x has 3 columns, the learner features=4: load the same columns"),
        (X[:50], np.full(50, "d"), r"y holds 'd' in 50 of 50 rows, which is none of classes=\['a', 'b', 'c'\]"),
    ],
    ids=["Inf", "columns", "class"],
)
def test_bad_data_is_told_with_the_site_and_the_remedy(x: Any, y: Any, why: str) -> None:
    learner, sites = made(), {**held(), "south": Split(train=(x, y), valid=(X[:5], KINDS["multiclass"][0][:5]))}
    with pytest.raises(Paused, match=rf"south: declined \(.*{why}"):
        played(Job(union(learner), learner, rounds=1, min_sites=3), sites)


@pytest.mark.parametrize(
    ("given", "more", "why"),
    [
        ({"objective": "lambdarank"}, {}, "objective='lambdarank'; it is one of binary, multiclass"),
        ({}, {}, "objective=''"),
        ({"objective": "binary"}, {"classes": [0, 1, 2]}, r"'binary' has two classes, not \[0, 1, 2\]"),
        ({"objective": "multiclass"}, {}, r"objective 'multiclass' needs classes=\[…\]"),
        ({"objective": "regression", "num_trees": 5}, {}, "leave out 'num_trees': iterations are trees="),
        ({"objective": "regression", "boosting": "dart"}, {}, "leave out 'boosting'"),
        ({"objective": "regression", "boosting_type": "dart"}, {}, "leave out 'boosting_type'"),
        ({"objective": "regression", "num_leafs": 4}, {}, r"'num_leafs' is none of .* did you mean 'num_leaves'"),
        ({"objective": "regression", "max_leaves": 4}, {}, "say num_leaves in place of 'max_leaves'"),
        ({"objective": "regression", "qqqq": 4}, {}, "'qqqq' is none of .*; look it up"),
        ({"objective": "regression", "num_leaves": 1}, {}, "num_leaves=1 is no whole number from 2"),
        ({"objective": "regression"}, {"trees": 0}, "trees=0"),
        ({"objective": "regression"}, {"features": ["a b"]}, "'a b' has signs that no model file holds"),
    ],
    ids=range(13),
)
def test_what_cannot_be_federated_is_told_when_the_learner_is_made(
    given: dict[str, Any], more: dict[str, Any], why: str
) -> None:
    with pytest.raises(JobError, match=why):
        LightGBMLearner(given, **{"features": 4, **more})


@pytest.mark.parametrize(
    ("objective", "y", "why"),
    [
        ("poisson", [-1.0, 2, 3, -4], "numbers below 0 in 2 of 4 rows, and objective 'poisson' takes none"),
        ("poisson", [0.0, 0, 0, 0], "y is 0 in all of this site's 4 rows, and objective 'poisson' takes the logarithm"),
        ("gamma", [0.0, 2, 3, 4], "numbers that are 0 or below in 1 of 4 rows, and objective 'gamma' takes none"),
        ("gamma", [np.nan, 2, 3, 4], "y holds something other than finite numbers"),
        ("gamma", ["a", "b", "c", "d"], "y holds something other than finite numbers"),
    ],
)
def test_targets_that_an_objective_does_not_take_are_told(objective: str, y: Any, why: str, capfd: Any) -> None:
    learner = LightGBMLearner({"objective": objective, "num_leaves": 4}, features=4)
    fine = Split(train=(X[:50], np.ones(50)), valid=(X[:5], np.ones(5)))
    odd = Split(train=(X[:4], np.array(y)), valid=(X[:5], np.ones(5)))
    with pytest.raises(Paused, match=rf"south: declined \(.*{why}"):
        played(Job(union(learner), learner, rounds=1, min_sites=2), {"north": fine, "south": odd})
    assert "Fatal" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("objective", ["poisson", "gamma", "regression"])
def test_a_site_of_two_rows_trains(objective: str) -> None:
    learner = LightGBMLearner({"objective": objective, "num_leaves": 4}, features=4)
    two = Split(train=(X[:2], np.array([1.0, 2.0])), valid=(X[:2], np.array([1.0, 2.0])))
    assert len(played(Job(union(learner), learner, rounds=2, min_sites=1), {"north": two})[0].history) == 2


def test_gradients_and_boosters_that_are_not_there_are_told() -> None:
    learner = made()
    with pytest.raises(FoedusError, match="has no trees yet"):
        learner.booster(learner.init(key(0)))
    with pytest.raises(FoedusError, match=r"no trees of LightGBM: \['w'\]"):
        learner.booster({"w": np.zeros(1)})
    with pytest.raises(FoedusError, match=r"trees have no mean: write fd.union\(learner\)"):
        Job(fedprox(0.1), learner, rounds=1)
    with pytest.raises(JobError, match=r"union\(str\): give the Job's learner"):
        union("learner")
