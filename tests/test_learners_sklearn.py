"""foedus.sklearn: numbers of pooled fits, or of sklearn's own steps; trees as arrays; what is wrong with the data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesRegressor, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron, Ridge, SGDClassifier, SGDRegressor
from sklearn.metrics import log_loss
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import SVC

import foedus
from foedus import Job, Split, analytics, cyclic, fedavg, fedprox, frames, key, launch, secagg, summed, union
from foedus.errors import FoedusError, JobError, Paused
from foedus.journal import Journal, Memory
from foedus.params import Params, digest
from foedus.sklearn import SklearnLearner, estimator
from tiny import played, working

RNG = np.random.default_rng(7)
Y = RNG.integers(0, 3, 90)
X = RNG.normal(size=(90, 4)) * [1, 2, 0.5, 1] + Y[:, None] * [1, -2, 0.5, 0]
COUNTS = RNG.poisson(1 + Y[:, None] * [1, 0, 2, 1])
PARTS = {"north": np.arange(40), "south": np.arange(40, 89), "tiny": np.array([89])}


def held(x: Any = X, y: Any = Y) -> dict[str, Split]:
    """Three sites of 40, 49 and 1 rows; all of a site's rows train and are measured."""
    return {name: Split(train=(x[rows], y[rows]), valid=(x[rows], y[rows])) for name, rows in PARTS.items()}


def learned(made: Any, sites: Mapping[str, Split], rounds: int = 1, **more: Any) -> tuple[Any, SklearnLearner]:
    """(how it ended, the learner) after rounds of the algorithm that the estimator needs."""
    learner = SklearnLearner(made, **{"features": 4, **more})
    way = {"mean": fedavg, "sums": summed, "union": lambda: union(learner)}[learner.by]
    return played(Job(way(), learner, rounds=rounds, min_sites=len(sites)), sites)[0], learner


def fitted(made: Any, sites: Mapping[str, Split], rounds: int = 1, **more: Any) -> Any:
    ended, learner = learned(made, sites, rounds, **more)
    return learner.estimator(ended)


# Naive Bayes.


def test_naive_bayes_of_five_rows_by_hand() -> None:
    """Ages 1, 3, 5 are well: mean 3, variance 8/3. 10 and 14 are ill: mean 12, variance 4. All: variance 22.64."""
    rows = {
        "north": (np.array([[1.0], [3.0]]), ["well", "well"]),
        "south": ([[5.0], [10], [14]], ["well", "ill", "ill"]),
    }
    sites = {name: Split(train=pair, valid=pair) for name, pair in rows.items()}
    made = fitted(GaussianNB(), sites, features=1, classes=["well", "ill"])
    assert made.classes_.tolist() == ["ill", "well"] and made.class_count_.tolist() == [2, 3]
    assert made.theta_.tolist() == [[12], [3]] and made.class_prior_ == pytest.approx([0.4, 0.6])
    assert made.var_[:, 0] == pytest.approx([4 + 22.64e-9, 8 / 3 + 22.64e-9], rel=1e-13)
    assert made.predict([[2.0], [11.0]]).tolist() == ["well", "ill"]


@pytest.mark.parametrize(
    ("made", "x"),
    [
        (GaussianNB(), X),
        (GaussianNB(priors=[0.2, 0.3, 0.5]), X),
        (MultinomialNB(alpha=0.5), COUNTS),
        (ComplementNB(), COUNTS),
        (BernoulliNB(binarize=1.5), COUNTS),
        (BernoulliNB(fit_prior=False), X),
    ],
    ids=lambda x: type(x).__name__ if hasattr(x, "fit") else "",
)
def test_naive_bayes_is_that_of_pooled_data(made: Any, x: Any) -> None:
    """One round, one site with a single row, so without two of the classes."""
    found, pooled = fitted(made, held(x), classes=[0, 1, 2]), clone(made).fit(x, Y)
    for name in ("theta_", "var_", "class_count_", "feature_count_", "feature_log_prob_", "class_log_prior_"):
        if hasattr(pooled, name):
            np.testing.assert_allclose(getattr(found, name), getattr(pooled, name), rtol=1e-8, err_msg=name)
    np.testing.assert_allclose(found.predict_proba(x), pooled.predict_proba(x), rtol=1e-8)
    assert found.get_params() == made.get_params()


def test_a_second_round_counts_from_the_means_and_loses_no_digits() -> None:
    """Far from zero, squares of one round have lost the variance: 1e16 has room for steps of 2."""
    far = X + 1e8
    pooled = GaussianNB().fit(far, Y)
    once, twice = (fitted(GaussianNB(), held(far), rounds, classes=[0, 1, 2]) for rounds in (1, 2))
    assert np.abs(once.var_ / pooled.var_ - 1).max() > 0.01
    np.testing.assert_allclose(twice.var_, pooled.var_, rtol=1e-8)


def test_sums_go_under_a_seal() -> None:
    """To half a step of the ring, 1000 / (2^31 / 3) / 2 = 7e-7, in the centre, and thrice that over 20 rows or more."""
    learner = SklearnLearner(GaussianNB(), 4, [0, 1, 2])
    ended, _ = played(Job(summed(), learner, rounds=2, privacy=secagg(bound=1000.0, wmax=1)), held())
    np.testing.assert_allclose(learner.estimator(ended).theta_, GaussianNB().fit(X, Y).theta_, rtol=0, atol=8.1e-7)


# k-means, PCA, linear regression.


def test_a_round_of_kmeans_is_lloyds_step_by_hand() -> None:
    """0 and 2 are nearer to 1, 8 and 10 to 7: the centres go to 1 and 9. Nobody is near 100, which stays."""
    sites = {"north": Split(train=np.array([[0.0], [10]])), "south": Split(train=np.array([[2.0], [8]]))}
    for split in sites.values():
        object.__setattr__(split, "valid", split.train)
    for kind in (KMeans, MiniBatchKMeans):
        ended, learner = learned(kind(3, init=[[1.0], [7], [100]]), sites, features=1)
        made = learner.estimator(ended)
        assert made.cluster_centers_.tolist() == [[1], [9], [100]], kind
        assert made.predict([[3.0], [60]]).tolist() == [0, 2]
        assert ended.history[-1]["loss"] == 1  # each row is 1 from its centre


def test_kmeans_and_pca_and_linear_models_are_those_of_pooled_data() -> None:
    y = X @ [1.0, 2, 3, 4] + RNG.normal(size=90)
    lloyd = KMeans(3, init=X[:3], n_init=1, tol=0)
    found = fitted(lloyd, held(), rounds=20)
    np.testing.assert_allclose(found.cluster_centers_, clone(lloyd).fit(X).cluster_centers_, rtol=1e-8)
    for made in (PCA(2), PCA(), Ridge(alpha=3.0), LinearRegression(), LinearRegression(fit_intercept=False)):
        found, pooled = fitted(made, held(X, y), rounds=2), clone(made).fit(X, y)
        for name in (
            n for n in vars(pooled) if n.endswith("_") and n not in ("n_iter_", "rank_", "singular_", "solver_")
        ):
            np.testing.assert_allclose(getattr(found, name), getattr(pooled, name), rtol=1e-8, atol=1e-12, err_msg=name)


def test_mini_batches_of_kmeans_end_near_lloyds() -> None:
    ended, _ = learned(MiniBatchKMeans(3, init=X[:3], batch_size=10), held(), rounds=10)
    exact = KMeans(3, init=X[:3], n_init=1, tol=0).fit(X).inertia_ / 90
    assert exact <= ended.history[-1]["loss"] < 1.1 * exact


def test_answers_of_analytics_become_estimators() -> None:
    frames_ = {name: pandas.DataFrame(X[rows], columns=list("abcd")) for name, rows in PARTS.items()}
    found = estimator(analytics.kmeans(list("abcd"), k=3, centres=X[:3], sites=frames_))
    lloyd = KMeans(3, init=X[:3], n_init=1, tol=0).fit(X)
    np.testing.assert_allclose(found.cluster_centers_, lloyd.cluster_centers_, rtol=1e-8)
    for scale in (False, True):
        found = estimator(analytics.pca(list("abcd"), components=2, scale=scale, sites=frames_))
        pooled = PCA(2).fit((X - X.mean(0)) / X.std(0, ddof=1) if scale else X)
        here = (X - X.mean(0)) / X.std(0, ddof=1) if scale else X
        np.testing.assert_allclose(np.abs(found.transform(X)), np.abs(pooled.transform(here)), rtol=1e-7, atol=1e-9)
    with pytest.raises(FoedusError, match="is no k-means and no PCA"):
        estimator(analytics.describe(sites=frames_))


# Estimators that take steps.


def seed(site: str, purpose: str, round: int = 0) -> np.random.RandomState:
    return np.random.RandomState(key(0, round, 0, site)("train")(purpose).number() % 2**32)


@pytest.mark.parametrize(
    "made",
    [
        SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01),
        Perceptron(),
        SGDRegressor(),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_linear_model_is_the_mean_of_what_partial_fit_makes_at_each_site(made: Any) -> None:
    known = [0, 1, 2] if hasattr(made, "loss") and not isinstance(made, SGDRegressor) else None
    ended, learner = learned(made, held(), classes=known, epochs=2)
    own = {}
    for name, rows in PARTS.items():
        site = clone(made).set_params(random_state=seed(name, "order"))
        for _ in range(2):
            site.partial_fit(X[rows], Y[rows], **({} if known is None else {"classes": known}))
        own[name] = site
    mean = sum(len(PARTS[name]) * site.coef_ for name, site in own.items()) / 90
    found = learner.estimator(ended)
    np.testing.assert_allclose(found.coef_, mean, rtol=1e-12)
    assert found.t_ == max(site.t_ for site in own.values()) == 1 + 2 * 49  # the largest: schedules go on from there
    assert found.predict(X).shape == (90,) and found.random_state == made.random_state


@pytest.mark.parametrize(
    "made",
    [
        MLPClassifier((5,), solver="sgd", batch_size=16),
        MLPRegressor(hidden_layer_sizes=(5, 3), max_iter=7),
    ],
    ids=["MLPClassifier", "MLPRegressor"],
)
def test_a_net_begins_where_sklearn_would_and_each_round_has_a_new_optimizer(made: Any) -> None:
    known = [0, 1, 2] if isinstance(made, MLPClassifier) else None
    sites = {"north": held()["north"]}
    learner = SklearnLearner(made, 4, known)
    start = learner.init(key(0, 0, 0, "server", "init"))
    plain = clone(made).set_params(
        random_state=np.random.RandomState(key(0, 0, 0, "server", "init").number() % 2**32), learning_rate_init=1e-300
    )
    x, y = X[:40], Y[:40]
    plain.partial_fit(x, y, **({} if known is None else {"classes": known}))
    np.testing.assert_array_equal(plain.coefs_[0], start["coefs.0"])
    plain.set_params(learning_rate_init=made.learning_rate_init)
    for round in (0, 1):
        del plain._optimizer
        plain.t_ = 0
        plain.set_params(random_state=seed("north", "order", round)).partial_fit(x, y)
    found = fitted(made, sites, 2, classes=known)
    for mine, theirs in zip(found.coefs_ + found.intercepts_, plain.coefs_ + plain.intercepts_, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    np.testing.assert_array_equal(found.predict(X), plain.predict(X))
    assert found.get_params() == made.get_params()


def test_metrics_read_classes_by_their_place_and_losses_are_those_of_sklearn() -> None:
    names, known, told = np.array(["b", "a", "c"])[Y], ["a", "b", "c"], ["accuracy"]
    steep, flat = SGDClassifier(loss="log_loss"), SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.001)
    for kind in (steep, flat, GaussianNB()):
        ended, learner = learned(kind, held(X, names), classes=known, metrics=told)
        made = learner.estimator(ended)
        assert ended.history[-1]["accuracy"] == pytest.approx((made.predict(X) == names).mean())
        if kind is not steep:  # of which sklearn's probabilities are 0 and 1
            assert ended.history[-1]["loss"] == pytest.approx(log_loss(names, made.predict_proba(X)))
    two = np.array(["b", "a", "a"])[Y]
    ended, learner = learned(flat, held(X, two), classes=["a", "b"], metrics=told)
    assert ended.history[-1]["loss"] == pytest.approx(log_loss(two, learner.estimator(ended).predict_proba(X)))
    hinge, _ = learned(SGDClassifier(), held(), classes=[0, 1, 2], metrics=["accuracy"])
    assert "loss" not in hinge.history[-1] and 0 < hinge.history[-1]["accuracy"] <= 1


# Forests.


def test_a_forest_predicts_as_the_mean_of_the_sites_forests() -> None:
    """With gaps; a site of one row has one class. Each site's trees are those of sklearn by the same seed."""
    x = np.where(RNG.random(X.shape) < 0.1, np.nan, X)
    made = RandomForestClassifier(5, max_leaf_nodes=6)
    found = fitted(made, held(x), classes=[0, 1, 2])
    mean, importance = np.zeros((90, 3)), np.zeros(4)
    for name, rows in PARTS.items():
        own = clone(made).set_params(random_state=seed(name, "trees")).fit(x[rows], Y[rows])
        mean[:, own.classes_] += own.predict_proba(x) / 3
        importance += own.feature_importances_
    np.testing.assert_allclose(found.predict_proba(x), mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.feature_importances_, importance / importance.sum(), rtol=1e-9)
    assert len(found.estimators_) == found.n_estimators == 15


def test_each_round_adds_trees_and_one_site_after_another_may() -> None:
    made = ExtraTreesRegressor(2, max_depth=3)
    learner = SklearnLearner(made, 4)
    for way in (union(learner), cyclic(union(learner))):
        ended, _ = played(Job(way, learner, rounds=2, metrics=["rmse"]), held())
        assert len(learner.estimator(ended).estimators_) == 2 * 3 * 2
    with pytest.raises(JobError, match="has no trees yet"):
        learner.estimator(learner.init(key(0)))


def odd(name: str, place: Any, value: float, why: str) -> Any:
    return pytest.param(name, place, value, why, id=f"{name} {value}")


@pytest.mark.parametrize(
    ("name", "place", "value", "why"),
    [
        odd("nodes", 0, 0, "has 0 nodes, not 1 to 11"),
        odd("nodes", 0, 10_000, "has 10000 nodes"),
        odd("left", (0, 0), 0, "not joined"),
        odd("left", (0, 0), 10_000, "not joined"),
        odd("right", (0, 0), -1, "not joined"),
        odd("feature", (0, 0), 4, "beyond the 4"),
        odd("feature", (0, 0), -1, "beyond the 4"),
        odd("threshold", (0, 0), np.nan, "NaN or Inf"),
        odd("value", (0, 0, 0), 2.0, "no shares"),
        odd("share", (0, 0), 0.0, "more rows"),
    ],
)
def test_what_is_no_tree_is_refused_and_the_others_count(name: str, place: Any, value: float, why: str) -> None:
    """sklearn follows these numbers without looking, so they are looked at where they arrive."""
    learner = SklearnLearner(RandomForestClassifier(2, max_leaf_nodes=6), 4, [0, 1, 2])

    def lying(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        local, update = usual()
        if site.name == "south":
            update.params[name][place] = value
        return local, update

    base = union(learner)
    ended, journal = played(Job(working(lying, base), learner, rounds=1), held())
    outcomes = {o[0]: o for o in journal.find("close", round=0, task=0)["outcomes"]}
    assert outcomes["south"][1] == "refused" and (why in outcomes["south"][2] or "NaN" in outcomes["south"][2])
    assert len(learner.estimator(ended).estimators_) == 4


def test_children_that_lead_back_to_their_parents_are_no_tree() -> None:
    learner = SklearnLearner(RandomForestClassifier(1, max_leaf_nodes=4), 4, [0, 1, 2])
    piece = learner.train(learner.init(key(0)), held()["north"], key(0), None).params
    swapped = piece.copy()
    left, right = piece["left"][0], piece["right"][0]
    inner = np.flatnonzero(left >= 0)
    for a, b in ((inner[0], inner[1]),):  # the root and its child have one another's children
        swapped["left"][0, [a, b]], swapped["right"][0, [a, b]] = left[[b, a]], right[[b, a]]
    with pytest.raises(FoedusError, match="tree 0: a node comes before its parent"):
        learner.checked(swapped)


# Jobs.

JOBS = {
    "sgd": (SGDClassifier(loss="log_loss"), [0, 1, 2]),
    "net": (MLPClassifier((4,)), [0, 1, 2]),
    "bayes": (GaussianNB(), [0, 1, 2]),
    "clusters": (MiniBatchKMeans(3, init=X[:3], batch_size=8), None),
    "forest": (RandomForestClassifier(3, max_leaf_nodes=5), [0, 1, 2]),
}


def job(name: str) -> Job:
    made, known = JOBS[name]
    learner = SklearnLearner(made, 4, known)
    return Job({"mean": fedavg, "sums": summed, "union": lambda: union(learner)}[learner.by](), learner, rounds=3)


class Stop(BaseException):
    """What ends a run in the middle."""


@pytest.mark.parametrize("name", JOBS)
def test_a_run_that_goes_on_after_a_crash_has_the_bits_of_a_calm_one(name: str, tmp_path: Path) -> None:
    def stop(row: Mapping[str, Any]) -> None:
        if row["round"] == 1:
            raise Stop

    calm, log = played(job(name), held())[0], Memory()
    with pytest.raises(Stop):
        played(job(name), held(), journal=Journal(log), folder=tmp_path, told=stop)
    ended, _ = played(job(name), held(), journal=Journal(log), folder=tmp_path)
    assert foedus.digest(ended.params) == foedus.digest(calm.params)


@pytest.mark.processes
@pytest.mark.parametrize("name", ["sgd", "bayes", "forest"])
def test_processes_have_the_bits_of_local(name: str, tmp_path: Path) -> None:
    here = launch.run(job(name), held(), backend="local", folder=tmp_path / "local")
    there = launch.run(job(name), held(), backend="processes", workers=2, folder=tmp_path / "there")
    assert there.digest == here.digest and there.per_site == here.per_site


def test_a_saved_model_is_read_by_a_learner_of_the_same_estimator(tmp_path: Path) -> None:
    result = launch.run(job("bayes"), held(), backend="local", folder=tmp_path / "run")
    file = result.save(tmp_path / "model.safetensors")
    learner = job("bayes").learner
    assert isinstance(learner, SklearnLearner)
    np.testing.assert_array_equal(learner.estimator(frames.read_model(file)).var_, learner.estimator(result).var_)
    with pytest.raises(FoedusError, match=r"these are no arrays of SGDRegressor: \['centre', .*not \['coef'"):
        SklearnLearner(SGDRegressor(), 4).estimator(result)


# What is wrong.


def spoiled(x: Any = X[40:89], y: Any = Y[40:89]) -> dict[str, Split]:
    return {**held(), "south": Split(train=(x, y), valid=(X[:5], Y[:5]))}


GAPS = np.where(np.arange(49 * 4).reshape(49, 4) % 8 == 2, np.nan, X[40:89])


@pytest.mark.parametrize(
    ("made", "sites", "why"),
    [
        (GaussianNB(), spoiled(GAPS), r"column 'dose' holds NaN or Inf in 25 of 49 rows: fill them in or drop"),
        (
            RandomForestClassifier(2, max_depth=2),
            spoiled(np.where(np.isnan(GAPS), np.inf, GAPS)),
            r"column .* holds Inf in .*: replace them",
        ),
        (SGDClassifier(), spoiled(X[40:89, :3]), r"x has 3 columns, the learner features=4: load the same columns"),
        (
            SGDClassifier(),
            spoiled(y=Y[40:89] + 1),
            r"y holds 3 in \d+ of 49 rows, which is none of classes=\[0, 1, 2\]",
        ),
        (GaussianNB(), spoiled(y=Y[40:89].astype(str)), r"y holds '\d' in \d+ of 49 rows, which is none of classes"),
        (MultinomialNB(), spoiled(), r"column 'age' is negative somewhere: MultinomialNB counts; use GaussianNB"),
        (SGDClassifier(), spoiled(y=np.c_[Y[40:89], Y[40:89]]), r"y has shape \(49, 2\): give one target"),
    ],
    ids=["NaN", "Inf", "columns", "class", "text", "negative", "targets"],
)
def test_bad_data_is_told_with_the_site_and_the_remedy(made: Any, sites: Mapping[str, Split], why: str) -> None:
    with pytest.raises(Paused, match=rf"south: declined \(.*{why}"):
        run = {**sites, "north": held(COUNTS)["north"], "tiny": held(COUNTS)["tiny"]} if "counts" in why else sites
        learned(made, run, features=["age", "weight", "dose", "days"], classes=[0, 1, 2])


def test_a_frames_columns_are_read_by_name_and_a_table_without_names_by_place() -> None:
    frame = pandas.DataFrame(X[:, :3], columns=["age", "weight", "dose"]).assign(y=Y)
    turned = frame[["dose", "age", "weight", "y"]]
    plain = Split(train=(X[:, :3], Y))
    found = []
    for split in (Split.from_frame(frame, label="y"), Split.from_frame(turned, label="y"), plain):
        ended, _ = learned(GaussianNB(), {"north": split}, features=["age", "weight", "dose"], classes=[0, 1, 2])
        found.append(digest(ended.params))
    assert found[0] == found[1] == found[2]
    with pytest.raises(
        Paused, match=r"north: declined \(.*train has no column 'days', which the learner's features name"
    ):
        learned(
            GaussianNB(), {"north": Split.from_frame(frame, label="y")}, features=["age", "weight", "days"],
            classes=[0, 1, 2],
        )  # fmt: skip


def test_a_class_that_no_site_has_is_told() -> None:
    with pytest.raises(Paused, match="no site has an example of class 3: leave it out"):
        learned(GaussianNB(), held(), classes=[0, 1, 2, 3])


@pytest.mark.parametrize(
    ("made", "more", "why"),
    [
        (LogisticRegression(), {"classes": [0, 1]}, r"LogisticRegression has no partial_fit .*SGDClassifier"),
        (SVC(), {"classes": [0, 1]}, r"SVC has no partial_fit"),
        (GaussianNB, {"classes": [0, 1]}, r"SklearnLearner\(GaussianNB\): give an estimator of scikit-learn"),
        (GaussianNB(), {}, r"GaussianNB needs classes=\[…\], at least two"),
        (GaussianNB(), {"classes": [1, 1]}, r"needs classes=\[…\], at least two"),
        (SGDRegressor(), {"classes": [0, 1]}, r"SGDRegressor is no classifier: leave out classes"),
        (KMeans(3), {}, r"KMeans\(init=…\): give 3 centres of 4 numbers"),
        (RandomForestClassifier(2), {"classes": [0, 1]}, r"trees of any size: say max_leaf_nodes"),
        (SGDClassifier(average=True), {"classes": [0, 1]}, r"SGDClassifier\(average=…\)"),
        (SGDClassifier(early_stopping=True), {"classes": [0, 1]}, r"cannot be trained step by step: early_stopping"),
        (MLPRegressor(solver="lbfgs"), {}, r"trains to its end, not step by step"),
        (MLPClassifier(solver="lbfgs"), {"classes": [0, 1]}, r"MLPClassifier has no partial_fit"),
        (PCA("mle"), {}, r"PCA\(n_components='mle'\): give a whole number from 1 to 4"),
        (PCA(2), {"metrics": ["accuracy"]}, r"PCA has no targets to measure by"),
        (SGDRegressor(), {"epochs": 0}, r"epochs=0"),
        (SGDRegressor(), {"features": []}, r"features=\[\]\): give a count"),
    ],
    ids=lambda x: re.sub(r"\W+", " ", str(x))[:30],
)
def test_what_cannot_be_federated_is_told_when_the_learner_is_made(made: Any, more: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError, match=why):
        SklearnLearner(made, **{"features": 4, **more})


def test_an_algorithm_that_corrects_gradients_is_told() -> None:
    learner = SklearnLearner(SGDRegressor(), 4)
    with pytest.raises(Paused, match=r"corrects gradients, and SGDRegressor shows none: take fd\.fedavg"):
        played(Job(fedprox(0.1), learner, rounds=1), held())


def test_the_estimator_that_was_given_stays_as_it_is() -> None:
    made = GaussianNB()
    fitted(made, held(), classes=[0, 1, 2])
    with pytest.raises(NotFittedError):
        made.predict(X)
    one, other = (SklearnLearner(KMeans(1, init=[[at]]), 1).describe() for at in (0.0, 1.0))
    assert one != other
