"""XGBoost at the sites: their trees side by side (bagging) or one site after another (cyclic), in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

import foedus as fd
from foedus.errors import FoedusError, Incompatible, JobError, Paused
from foedus.params import Params
from foedus.trees import predict, xgboost_bagging, xgboost_cyclic
from foedus.trees.model import empty
from foedus.trees.settings import settings
from foedus.trees.sites import BESIDE, checked
from test_trees import BINARY, CLASS, CLASSES, CUTS, NAMES, THREE, N, X, sites

TYPES = ["c", "q", "q", "q", "q"]


def data(x: Any, y: Any = None) -> Any:
    return xgboost.DMatrix(x, y, feature_names=NAMES, feature_types=TYPES, enable_categorical=True, nthread=1)


def run(algorithm: Any, y: Any, cuts: str = "three", rounds: int = 4, **more: Any) -> fd.Result:
    return fd.Job(algorithm, rounds=rounds, **more).run(sites=sites(y, CUTS[cuts]))


@pytest.mark.parametrize(("params", "y"), [(BINARY, CLASS), (CLASSES, THREE)])
def test_a_federation_of_one_site_has_xgboosts_own_model(params: dict[str, Any], y: Any, tmp_path: Path) -> None:
    plain = {**params, "tree_method": "hist", "nthread": 1}
    theirs = xgboost.train(plain, data(X, y), 8).predict(data(X))
    for algorithm in (xgboost_bagging, xgboost_cyclic):
        result = run(algorithm(params, trees=2, categories={"f0": 40}), y, "one")
        np.testing.assert_allclose(predict(result, X), theirs, atol=2e-6)
        booster = xgboost.Booster(model_file=result.save(tmp_path / f"{algorithm.__name__}.json"))
        np.testing.assert_allclose(booster.predict(data(X)), theirs, atol=2e-6)


def test_cyclic_goes_on_from_what_the_site_before_made() -> None:
    """By xgboost alone: one booster that is trained on, site after site."""
    result = run(xgboost_cyclic(CLASSES, categories={"f0": 40}), THREE, rounds=2)
    booster = None
    for _ in range(2):
        for split in sites(THREE, CUTS["three"]).values():
            part = data(split.train.x, split.train.y)
            params = {**CLASSES, "tree_method": "hist", "nthread": 1}
            booster = xgboost.train(params, part, 1, xgb_model=booster)
    assert booster is not None
    np.testing.assert_allclose(predict(result, X), booster.predict(data(X)), atol=1e-5)


def test_bagging_is_one_step_of_all_sites_by_their_examples() -> None:
    """The margin after a round is the base and the mean of the sites' own first steps, for every class."""
    result = run(xgboost_bagging(CLASSES, categories={"f0": 40}), THREE, rounds=1)
    wanted = np.zeros((N, 3))
    for split in sites(THREE, CUTS["three"]).values():
        params = {**CLASSES, "tree_method": "hist", "nthread": 1}
        own = xgboost.train(params, data(split.train.x, split.train.y), 1)
        wanted += (own.predict(data(X), output_margin=True) - 0.5) * len(split.train) / N
    found = np.exp(wanted) / np.exp(wanted).sum(1, keepdims=True)
    np.testing.assert_allclose(predict(result, X), found, atol=1e-6)


def test_a_site_with_other_columns_neither_trains_nor_measures() -> None:
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "t": CLASS})
    own = fd.Split.from_frame(frame, label="t")
    turned = fd.Split.from_frame(frame[["b", "a", "t"]], label="t")
    job = fd.Job(xgboost_bagging(BINARY), rounds=1, metrics=["auc"])
    result = job.run(sites={"x": own, "y": own, "z": turned}, backend="local")
    assert [site for site, found in sorted(result.per_site.items()) if found] == ["x", "y"]


def test_all_classes_are_learnt_though_sites_lack_some() -> None:
    order = np.argsort(THREE, kind="stable")
    parts = {f"s{i}": fd.Split((X[at], THREE[at]), (X[at], THREE[at])) for i, at in enumerate(np.array_split(order, 3))}
    result = fd.Job(xgboost_bagging(CLASSES, trees=2), rounds=6, metrics=["accuracy"], best="accuracy").run(sites=parts)
    assert set(predict(result, X).argmax(1)) == {0, 1, 2} and result.metrics["accuracy"] > 0.5


def test_what_does_not_fit_is_refused_with_a_remedy() -> None:
    with pytest.raises(JobError, match="xgboost_bagging: 'bogus' is not known here; it takes objective, max_depth"):
        xgboost_bagging({**BINARY, "bogus": 1})
    with pytest.raises(JobError, match="xgboost_cyclic: 'subsampel' is not known here; did you mean 'subsample'"):
        xgboost_cyclic({**BINARY, "subsampel": 0.5})
    with pytest.raises(
        JobError, match=r"xgboost_bagging: 'eval_metric' is not known here; say the Job's metrics=\[…\]"
    ):
        xgboost_bagging({**BINARY, "eval_metric": "auc"})
    with pytest.raises(JobError, match="leave out 'seed'"):
        xgboost_bagging({**BINARY, "seed": 3})
    with pytest.raises(JobError, match=r"trees=0"):
        xgboost_bagging(BINARY, trees=0)
    with pytest.raises(JobError, match="is one of binary:logistic"):
        xgboost_cyclic({"objective": "rank:ndcg"})
    with pytest.raises(Incompatible, match="only sums leave"):
        fd.Job(xgboost_bagging(BINARY), rounds=1, privacy="secagg")
    odd = {**sites(CLASS, CUTS["three"]), "s2": fd.Split((X[:50, ::-1][:, :4], CLASS[:50]))}
    with pytest.raises(Paused, match="s2: its columns are f0, f1, f2, f3, and those of the model f0, f1, f2, f3, f4"):
        fd.Job(xgboost_bagging(BINARY), rounds=1, evaluate=0, min_sites=3).run(sites=odd)
    two = {"a": fd.Split((X, THREE), (X, THREE))}
    with pytest.raises(Paused, match=r"y holds more than the classes 0 to 1 of binary:logistic"):
        fd.Job(xgboost_bagging(BINARY), rounds=1).run(sites=two)


def test_xgboost_itself_knows_all_that_is_left_to_it(recwarn: Any) -> None:
    values = {"sampling_method": "uniform", "max_delta_step": 1, "max_bin": 16, "tree_method": "hist",
              "interaction_constraints": [["f0", "f1"]], "max_cached_hist_node": 99, "verbosity": 1,
              "seed_per_iteration": True, "validate_parameters": True, "disable_default_eval_metric": True}  # fmt: skip
    given = {name: values.get(name, 0.5) for name in BESIDE}
    xgboost.train({**BINARY, **given}, xgboost.DMatrix(X[:99], CLASS[:99], feature_names=NAMES), 1)
    assert not [str(x.message) for x in recwarn if "are not used" in str(x.message)]
    assert xgboost_bagging({**BINARY, **given}).traits


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (("feature", 0), 5, "beyond the 5 there are"),
        (("feature", 0), -2, "beyond the 5 there are"),
        (("feature", 30), 1, "goes below 4"),
        (("value", 3), np.nan, "NaN or Inf"),
        (("threshold", 3), np.inf, "NaN or Inf"),
        (("right", 0), 1, "codes that its column does not have"),
    ],
)
def test_a_site_that_returns_no_trees_is_refused(at: tuple[str, int], value: float, why: str) -> None:
    how = settings(BINARY, 256, {"f0": 3})
    piece = Params(empty(how, 2))
    assert checked(how, NAMES, piece) is piece
    piece[at[0]][1, at[1]] = value
    with pytest.raises(FoedusError, match=why):
        checked(how, NAMES, piece)
