"""Boosted trees from sums: those of XGBoost on pooled rows, whatever the division, in XGBoost's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.metrics import roc_auc_score

import foedus as fd
from federations import finished, joined
from foedus import jobfile, launch
from foedus.data import Pairs, take
from foedus.errors import FoedusError, JobError, Paused
from foedus.trees import counting, histogram_boosting, predict

RNG = np.random.default_rng(0)
N = 1500
X = RNG.integers(0, 40, (N, 5)).astype(float)
X[RNG.random((N, 5)) < 0.05] = np.nan
NAMES = [f"f{i}" for i in range(5)]
_Z = (np.nan_to_num(X, nan=20) - 20) / 10
CLASS = (_Z[:, 0] + _Z[:, 1] * (_Z[:, 2] > 0) + RNG.normal(size=N) > 0).astype(int)
NUMBER = _Z[:, 0] * _Z[:, 1] + _Z[:, 3] + RNG.normal(size=N) / 5
THREE = np.digitize(NUMBER, [-0.7, 0.7])
CLASSES = {"objective": "multi:softprob", "num_class": 3, "max_depth": 3, "eta": 0.4, "base_score": 0.5}
BINARY = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.3, "base_score": 0.5}
SQUARES = {"objective": "reg:squarederror", "max_depth": 3, "eta": 0.5, "base_score": 0.5}
CUTS = {"one": [N], "three": [100, 900, N], "uneven": [3, 4, N]}


def sites(y: Any, cuts: list[int]) -> dict[str, fd.Split]:
    parts = [slice(a, b) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    return {f"s{i}": fd.Split(train=(X[at], y[at]), valid=(X[at], y[at])) for i, at in enumerate(parts)}


def trained(params: dict[str, Any], y: Any, cuts: str = "three", rounds: int = 8, **more: Any) -> fd.Result:
    return fd.Job(histogram_boosting(params, bins=64), rounds=rounds, **more).run(sites=sites(y, CUTS[cuts]))


def pooled(params: dict[str, Any], y: Any, rounds: int = 8, types: Any = None, **more: Any) -> Any:
    data = xgboost.DMatrix(X, y, feature_names=NAMES, feature_types=types, enable_categorical=True, **more)
    return xgboost.train({**params, "tree_method": "hist", "max_bin": 64, "nthread": 1}, data, rounds).predict(data)


@pytest.mark.parametrize(
    ("params", "y"),
    [
        (BINARY, CLASS),
        ({**BINARY, "scale_pos_weight": 3.0, "lambda": 5.0, "min_child_weight": 4.0}, CLASS),
        ({**BINARY, "monotone_constraints": {"f0": -1, "f1": 1}}, CLASS),
        (SQUARES, NUMBER),
        ({**SQUARES, "max_depth": 6, "monotone_constraints": {"f3": 1}}, NUMBER),
        ({**BINARY, "gamma": 2.0, "reg_alpha": 1.5}, CLASS),
        ({**CLASSES, "max_depth": 3}, THREE),
    ],
    ids=["binary", "weights", "monotone", "squares", "monotone squares", "gamma and alpha", "three classes"],
)
def test_the_model_is_that_of_xgboost_on_the_pooled_rows(params: dict[str, Any], y: Any) -> None:
    """Each of 40 values has a bin of its own here as there, so both may choose between the same splits.

    After more rounds two gains may be as good as equal, and XGBoost, which sums in float32, may take the other one.
    """
    found = predict(trained(params, y, rounds=6), X)
    np.testing.assert_allclose(found, pooled(params, y, 6), atol=2e-6)


@pytest.mark.parametrize(
    ("params", "y", "how"),
    [
        (BINARY, CLASS, {}),
        ({**BINARY, "max_cat_to_onehot": 100}, CLASS, {}),
        ({**SQUARES, "max_cat_threshold": 9}, NUMBER, {}),
        (CLASSES, THREE, {}),
        ({**BINARY, "alpha": 1.0}, CLASS, {"weight": "w"}),
    ],
    ids=["partitions", "one at a time", "fewer in a set", "three classes", "weights"],
)
def test_categories_and_weights_are_those_of_xgboost(params: dict[str, Any], y: Any, how: dict[str, Any]) -> None:
    weight = np.arange(N) % 4 / 2
    names, x = ["f0", "f1", "w", "f2", "f3", "f4"], np.insert(X, 2, weight, axis=1)
    train = Pairs(x if how else X, y, names if how else ())
    parts = [take(train, at) for at in np.array_split(np.arange(N), 3)]
    algorithm = histogram_boosting(params, 64, categories={"f0": 40, "f3": 40}, **how)
    held = {f"s{i}": fd.Split(part, part) for i, part in enumerate(parts)}
    made = fd.Job(algorithm, rounds=4, evaluate=0).run(sites=held)
    more = {"weight": weight} if how else {}
    theirs = pooled(params, y, 4, ["c", "q", "q", "c", "q"], **more)
    seen = weight > 0 if how else np.full(N, True)  # where a row without weight goes decides nothing
    np.testing.assert_allclose(predict(made, X)[seen], theirs[seen], atol=2e-6)


def test_a_file_of_categories_and_classes_is_loaded_by_xgboost(tmp_path: Path) -> None:
    algorithm = histogram_boosting(CLASSES, 64, categories={"f0": [f"level {i}" for i in range(40)]})
    result = fd.Job(algorithm, rounds=4, metrics=["accuracy"]).run(sites=sites(THREE, CUTS["three"]))
    booster = xgboost.Booster(model_file=result.save(tmp_path / "model.json"))
    types = ["c", "q", "q", "q", "q"]
    data = xgboost.DMatrix(X, feature_names=[f"f{i}" for i in range(5)], feature_types=types, enable_categorical=True)
    found = predict(result, X)
    np.testing.assert_allclose(booster.predict(data), found, atol=1e-6)
    assert found.shape == (N, 3) and result.metrics["accuracy"] == pytest.approx((found.argmax(1) == THREE).mean())
    with pytest.raises(FoedusError, match="column 'f0' holds more than the codes 0 to 39"):
        predict(result, X + 0.5)


def test_the_bits_are_the_same_however_the_rows_are_divided() -> None:
    assert len({trained(BINARY, CLASS, cuts, rounds=4).digest for cuts in CUTS}) == 1


def test_the_saved_file_is_one_that_xgboost_loads(tmp_path: Path) -> None:
    result = trained({**BINARY, "base_score": 0.3}, CLASS)
    booster = xgboost.Booster(model_file=result.save(tmp_path / "model.json"))
    data = xgboost.DMatrix(X, feature_names=[f"f{i}" for i in range(5)])
    np.testing.assert_allclose(booster.predict(data), predict(result, X), atol=1e-6)
    assert booster.num_boosted_rounds() == 8 and len(booster.get_dump()) == 8


def test_smooth_columns_come_within_a_thousandth_of_pooled_auc() -> None:
    """Edges are chosen otherwise than XGBoost does, so trees are others, and as good."""
    rng = np.random.default_rng(3)
    x = rng.lognormal(size=(4000, 4))
    y = (np.log(x[:, 0]) + x[:, 1] / 3 + rng.normal(size=4000) > 0.5).astype(int)
    held = {"a": fd.Split(train=(x[:1000], y[:1000])), "b": fd.Split(train=(x[1000:3000], y[1000:3000]))}
    held = {name: fd.Split(split.train, split.train) for name, split in held.items()}
    found = fd.Job(histogram_boosting(BINARY), rounds=20).run(sites=held)
    data = xgboost.DMatrix(x[:3000], y[:3000])
    theirs = xgboost.train({**BINARY, "tree_method": "hist", "nthread": 1}, data, 20).predict(xgboost.DMatrix(x[3000:]))
    ours = roc_auc_score(y[3000:], predict(found, x[3000:]))
    assert ours > roc_auc_score(y[3000:], theirs) - 5e-3  # of 1,000 rows; both are within noise of one another
    assert abs(ours - roc_auc_score(y[3000:], theirs)) < 1e-2


@pytest.mark.parametrize("column", ["one value far away", "many powers of ten"])
def test_a_column_with_a_heavy_tail_is_cut_where_its_rows_are(column: str) -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(size=(6000, 2))
    y = (z[:, 0] - z[:, 1] + rng.normal(size=6000) > 0).astype(int)
    x = np.exp(z if column == "one value far away" else 4 * z)
    if column == "one value far away":
        x[0] = 1e9
    held = {"a": fd.Split(train=(x[:1000], y[:1000])), "b": fd.Split(train=(x[1000:3000], y[1000:3000]))}
    found = fd.Job(histogram_boosting(BINARY), rounds=20, evaluate=0).run(sites=held)
    data = xgboost.DMatrix(x[:3000], y[:3000])
    theirs = xgboost.train({**BINARY, "tree_method": "hist", "nthread": 1}, data, 20).predict(xgboost.DMatrix(x[3000:]))
    # the edges differ, so that trees do: of even steps alone, all rows would be in one bin, at an AUC of 0.5
    assert roc_auc_score(y[3000:], predict(found, x[3000:])) == pytest.approx(roc_auc_score(y[3000:], theirs), abs=5e-3)


def test_cuts_are_laid_closer_where_rows_crowd_and_left_where_they_do_not() -> None:
    # 100 rows between 0 and 1 of 0 to 400, cut at 100, 200, 300: the even shares of 104 rows, 26 each, lie at 26, 52
    # and 78 hundredths of the way from 0 to 100
    cuts = np.float32([100, 200, 300])
    found = counting.finer(cuts, np.array([100.0, 0, 0, 4]), 0.0, 400.0, bins=4)
    assert found.tolist() == pytest.approx([26, 52, 78])
    assert counting.finer(cuts, np.array([26.0, 26, 26, 26]), 0.0, 400.0, bins=4) is None
    # no float32 lies between 1 and the next one
    one = np.float32([1, np.nextafter(np.float32(1), np.float32(2))])
    assert counting.finer(one[1:], np.array([50.0, 0]), 1.0, 2.0, bins=4) is None


def test_metrics_early_stopping_and_the_best_model_are_those_of_the_valid_part() -> None:
    result = trained(BINARY, CLASS, rounds=6, metrics=["auc", "pr_auc", fd.recall_at(0.1)], best="auc")
    assert result.metrics["auc"] == pytest.approx(roc_auc_score(CLASS, predict(result, X)), abs=1e-3)
    assert result.best is not None and {"pr_auc", "recall_at_0.1", "loss"} <= set(result.metrics)
    stopped = trained(BINARY, CLASS, rounds=30, metrics=["auc"], stop=fd.target("auc", 0.88))
    assert stopped.rounds < 30 and stopped.metrics["auc"] >= 0.88


def test_frames_give_columns_their_names(tmp_path: Path) -> None:
    frame = pd.DataFrame(X[:, :2], columns=["income", "debt"]).assign(default=CLASS, opened=np.arange(N))
    split = fd.Split.from_frame(frame, label="default", test=fd.after(1200, on="opened"))
    how = histogram_boosting({**BINARY, "monotone_constraints": {"income": 1}}, bins=64)
    result = fd.Job(how, rounds=3, metrics=["auc"]).run(sites={"alpha": split, "beta": split})
    booster = xgboost.Booster(model_file=result.save(tmp_path / "model.json"))
    assert booster.feature_names == ["income", "debt"] and result.metrics["test_auc"] > 0.7
    wrong = histogram_boosting({**BINARY, "monotone_constraints": {"age": 1}})
    with pytest.raises(JobError, match="there is no column 'age': choose from income, debt"):
        fd.Job(wrong, rounds=1).run(sites={"alpha": split})


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({**BINARY, "max_dept": 3}, "'max_dept' is not known here; did you mean 'max_depth'\\? it takes objective"),
        ({"objective": "count:poisson"}, "it is one of .*; LightGBMLearner has poisson and gamma"),
        ({"objective": "reg:gamma"}, "it is one of .*; LightGBMLearner has poisson and gamma"),
        ({**BINARY, "subsample": 0.5}, "'subsample' is not known here; it takes objective, max_depth"),
        ({**BINARY, "eval_metric": "auc"}, r"'eval_metric' is not known here; say the Job's metrics=\[…\]"),
        ({**BINARY, "eta": "0.1"}, "eta='0.1'; it must be a number"),
        ({"objective": "rank:ndcg"}, "it is one of binary:logistic, reg:squarederror, multi:softprob"),
        ({"objective": "multi:softprob"}, "and num_class, 2 or more, go together"),
        ({**BINARY, "num_class": 2}, "and num_class, 2 or more, go together"),
        ({**BINARY, "max_depth": 0}, "max_depth=0"),
        ({**BINARY, "eta": 0}, "eta=0; it must be positive"),
        ({**BINARY, "base_score": 1.0}, "it is a probability"),
        ({**BINARY, "monotone_constraints": {"f0": 2}}, "to -1, 0 or 1"),
    ],
)
def test_parameters_that_would_mean_something_else_are_refused(params: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError, match=why):
        histogram_boosting(params)


YES = np.where(CLASS > 0, "yes", "no")
ODD = {  # params, y -> what the site is told
    "text": (BINARY, YES, "y holds text: number them as the classes 0 to 1 of binary:logistic, in load, the same way"),
    "text of numbers": ({**BINARY, "objective": "reg:squarederror"}, YES, "y holds text: give numbers"),
    "dates": (BINARY, np.full(N, "2020-01-01", "datetime64[D]"), "y holds dates: number them as the classes"),
    "complex": ({"objective": "reg:squarederror"}, CLASS + 1j, "y holds complex numbers: give numbers"),
    "NaN": (BINARY, np.where(np.arange(N) < 7, np.nan, CLASS), f"y holds NaN or Inf in 7 of {N} rows: leave rows"),
    "1 and 2": (
        BINARY,
        CLASS + 1,
        f"y holds more than the classes 0 to 1 of .*: numbers above 1 in {sum(CLASS)} of {N} rows",
    ),
    "-1 and 1": (BINARY, 2 * CLASS - 1, f"numbers below 0 in {N - sum(CLASS)} of {N} rows; number them so in load"),
    "fractions": (BINARY, CLASS / 2, f"fractions in {sum(CLASS)} of {N} rows"),
    "a column": (BINARY, CLASS[:, None], rf"y has the shape \[{N}, 1\]: give one target for each row, as y\[:, 0\]"),
}


@pytest.mark.parametrize(("params", "y", "why"), ODD.values(), ids=ODD)
def test_targets_that_are_none_are_told_by_their_kind_and_not_by_their_values(params: Any, y: Any, why: str) -> None:
    odd = {"north": fd.Split(train=(X, CLASS)), "south": fd.Split(train=(X, y), valid=(X, y))}
    with pytest.raises(Paused, match=rf"south: declined \(size: JobError: south: .*{why}") as told:
        fd.Job(histogram_boosting(params), rounds=1).run(sites=odd)
    assert "yes" not in str(told.value) and "2020" not in str(told.value)


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_a_site_of_few_rows_or_of_one_class_takes_part(rows: int) -> None:
    few = fd.Split(train=(X[:rows], np.ones(rows)), valid=(X[:3], np.ones(3)))
    held = {"north": fd.Split(train=(X, CLASS), valid=(X[:99], CLASS[:99])), "south": few}
    result = fd.Job(histogram_boosting(BINARY), rounds=1, metrics=["auc"], min_sites=2).run(sites=held)
    assert result.metrics["auc"] > 0.5 and result.per_site["south"]["auc"] is None


def test_parameters_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(JobError, match="give XGBoost's parameters as a mapping"):
        histogram_boosting([3])  # type: ignore[arg-type]


def test_bad_data_is_told_with_the_site() -> None:
    held = sites(CLASS, CUTS["three"])
    other = {**held, "s1": fd.Split(train=(np.full((5, 5), np.inf), CLASS[:5]))}
    with pytest.raises(Paused, match="s1: x holds Inf"):
        fd.Job(histogram_boosting(BINARY), rounds=1).run(sites=other)
    fewer = {**held, "s2": fd.Split(train=(X[:9, :3], CLASS[:9]))}
    with pytest.raises(JobError, match="sites s0 and s2 have other columns"):
        fd.Job(histogram_boosting(BINARY), rounds=1).run(sites=fewer)
    with pytest.raises(FoedusError, match="no trees of histogram_boosting"):
        predict({"w": np.zeros(3)}, X)


def test_a_column_without_values_and_one_of_one_value_are_never_split() -> None:
    x = np.column_stack([np.full(N, np.nan), np.ones(N), X[:, 0]])
    held = {"a": fd.Split(train=(x[:700], CLASS[:700])), "b": fd.Split(train=(x[700:], CLASS[700:]))}
    result = fd.Job(histogram_boosting(BINARY, bins=64), rounds=3, evaluate=0).run(sites=held)
    assert set(result.params["feature"].ravel().tolist()) <= {-1, 2}


FILE = """
import numpy as np
import foedus as fd
from foedus.trees import histogram_boosting


def load(site):
    table = np.genfromtxt(site.data / "rows.csv", delimiter=",")
    return fd.Split(train=(table[:, :5], table[:, 5].astype(int)), valid=(table[:9, :5], table[:9, 5].astype(int)))


job = fd.Job(histogram_boosting({"objective": "binary:logistic", "max_depth": 3}, bins=32), data=load, rounds=3,
             metrics=["auc"], privacy="none")
"""


@pytest.mark.long
@pytest.mark.processes
def test_real_sites_grow_the_trees_of_a_simulation(tmp_path: Path) -> None:
    places = {name: tmp_path / "data" / name for name in ("north", "south")}
    for place, rows in zip(places.values(), (slice(0, 900), slice(900, N)), strict=True):
        place.mkdir(parents=True)
        np.savetxt(place / "rows.csv", np.column_stack([X, CLASS])[rows], delimiter=",")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.py").write_text(FILE)
    with joined(tmp_path / "home", places) as made:
        real = finished(made.remote().submit(tmp_path / "job" / "job.py"))
    simulated = launch.run(jobfile.load(tmp_path / "job" / "job.py").job, dict(places), folder=tmp_path / "simulated")
    assert real.digest == simulated.digest and real.metrics["auc"] == simulated.metrics["auc"]
    assert xgboost.Booster(model_file=real.save(tmp_path / "model.json")).num_boosted_rounds() == 3
