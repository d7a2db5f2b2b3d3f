"""SklearnLearner: a site's work on a scikit-learn estimator, whose fitted numbers travel as plain arrays.
Metrics, data and the contract may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, is_classifier

from foedus import metrics as measures
from foedus.core import Correct, Fit
from foedus.data import Split
from foedus.errors import FoedusError, JobError
from foedus.keys import Key, key
from foedus.params import Array, Params, Spec, digest
from foedus.progress import progress
from foedus.sklearn import bayes, clusters, forest, moments, steps
from foedus.sklearn.kinds import Asked, Kind
from foedus.tabular import Table, classes_of, names_of, read, stated, surprise


class SklearnLearner:
    """A learner of `estimator`, which stays as it is; `estimator(result)` gives a fitted one.

    features: how many columns x has, or their names, which errors then say. classes: all labels that any site may have,
    for classifiers. epochs: passes over a site's rows a round, where the estimator takes steps.

    `by` says which algorithm combines it: "mean" (fd.fedavg and others that average: SGDClassifier, SGDRegressor,
    Perceptron, MLPClassifier, MLPRegressor), "sums" (fd.summed(): GaussianNB, MultinomialNB, ComplementNB, BernoulliNB,
    KMeans, MiniBatchKMeans, PCA, LinearRegression, Ridge), "union" (fd.union(learner): random forests, extra trees).

    >>> from sklearn.naive_bayes import GaussianNB
    >>> learner = SklearnLearner(GaussianNB(), features=["age", "dose"], classes=["ill", "well"])
    >>> learner.by, [leaf.name for leaf in learner.init(key(0)).spec]
    ('sums', ['count', 'first', 'second', 'centre'])
    """

    def __init__(
        self,
        estimator: Any,
        features: int | Sequence[str],
        classes: Sequence[Any] | None = None,
        *,
        epochs: int = 1,
        metrics: Sequence[Any] = (),
    ) -> None:
        self.kind = _kind(estimator)
        known = _classes(estimator, self.kind, classes)
        self.asked = Asked(estimator, names_of("SklearnLearner", features), known, epochs)
        self.feature_names, self.metrics = stated(features), list(metrics)
        if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
            raise JobError(f"SklearnLearner(epochs={epochs!r}): it must be a whole number of at least 1")
        if self.metrics and self.kind.target == "none":
            raise JobError(
                f"{self.asked.name} has no targets to measure by: its one metric is the loss; leave metrics out"
            )
        self.kind.first(self.asked, key(0))

    @property
    def by(self) -> str:
        """What the sites' models are combined by: "mean", "sums" or "union"."""
        return self.kind.by

    @property
    def _table(self) -> Table:
        return Table(self.asked.names, self.kind.target, self.asked.classes, self.kind.gaps)

    def describe(self) -> dict[str, Any]:
        """The settings, for the Job's description."""
        settings = {name: _plain(x) for name, x in self.asked.estimator.get_params(deep=False).items()}
        classes = None if self.asked.classes is None else self.asked.classes.tolist()
        found = {"estimator": self.asked.name, "settings": settings, "features": list(self.asked.names)}
        return found | {"classes": classes, "epochs": self.asked.epochs}

    def init(self, key: Key) -> Params:
        """The first model's Params."""
        return self.kind.first(self.asked, key)

    def train(self, params: Params, split: Split, key: Key, correct: Correct | None) -> Fit:
        """What the site's training makes of `params`: a model, sums, or trees of its own. Raises JobError."""
        if correct is not None:
            raise JobError(
                f"this algorithm corrects gradients, and {self.asked.name} shows none: take fd.fedavg or one of the "
                "server's optimizers (fd.fedadam, …), or a TorchLearner, JaxLearner or NumpyLearner"
            )
        x, y = read(self._table, split.train)
        made, steps = self.kind.train(self.asked, params, x, y, key)
        progress()
        seen = self._sums(made, x, y, ["loss"]) if self.by == "mean" else {}
        return Fit(made, len(x), steps, float("nan"), {f"train_{name}": sums for name, sums in seen.items()})

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over `data` for these metrics; no loss where the estimator has no probabilities."""
        return self._sums(params, *read(self._table, data), metrics)

    def estimator(self, result: Any) -> Any:
        """A fitted estimator of a Result, of its params, or of arrays read from a file. Raises FoedusError."""
        params = getattr(result, "params", result)
        params = params if isinstance(params, Params) else Params(params, self.init(key(0)).kinds)
        wanted, have = {*self.init(key(0))}, {*params}
        if wanted != have:
            raise FoedusError(f"these are no arrays of {self.asked.name}: {sorted(have)}, not {sorted(wanted)}")
        return self.kind.fitted(self.asked, params)

    @property
    def piece(self) -> Spec:
        """What a site returns, where that is no model: see `fd.union`."""
        assert self.kind.piece is not None
        return self.kind.piece(self.asked)

    def checked(self, piece: Params) -> Params:
        """The trees that a site returned. Raises FoedusError for what are none."""
        return forest.checked(self.asked, piece)

    def joined(self, model: Params, pieces: Sequence[Params], shares: Sequence[float]) -> Params:
        """The model with these trees added; all of them count alike, whatever their sites' shares of examples."""
        return forest.joined(model, pieces)

    def _sums(self, params: Params, x: Array, y: Array, metrics: Sequence[Any]) -> dict[str, Array]:
        made = self.kind.fitted(self.asked, params)
        outputs, losses, reads = _measured(made, self.kind, x, y)
        wanted = [m for m in map(measures.metric, metrics) if m.name != "loss" or losses is not None]
        return measures.measure(wanted, outputs, y, losses, reads)


def _measured(made: Any, kind: Kind, x: Array, y: Array) -> tuple[Array, Array | None, measures.Reads]:
    """(outputs, losses if there are any, how outputs are read); columns are in the order of the classes."""
    if kind.target == "none":
        return y, _distances(made, x), "logits"
    if kind.target == "number":
        found = np.asarray(made.predict(x), np.float64)
        return found, np.square(found - y), "logits"
    if hasattr(made, "decision_function"):
        return _decided(made, made.decision_function(x), y)
    shares = np.clip(made.predict_proba(x), 0, 1)
    return shares, surprise(shares, y), "probabilities"


def _decided(made: Any, margins: Array, y: Array) -> tuple[Array, Array | None, measures.Reads]:
    """Margins are logits where they are fitted as such: of two classes, or of each class against the rest."""
    if getattr(made, "loss", "") != "log_loss":
        return margins, None, "logits"
    if margins.ndim == 1:
        return margins, np.logaddexp(0, np.where(y == 1, -margins, margins)), "logits"
    each = -np.logaddexp(0, -margins)  # of their shares sklearn makes probabilities: a softmax of these logarithms
    return each, np.logaddexp.reduce(each, axis=1) - each[np.arange(len(y)), y], "logits"


def _distances(made: Any, x: Array) -> Array:
    """Squared, of each row from what the model makes of it: the nearest centre, or its projection."""
    if hasattr(made, "cluster_centers_"):
        return np.asarray(np.square(x - made.cluster_centers_[clusters.nearest(x, made.cluster_centers_)]).sum(axis=1))
    return np.asarray(np.square(x - made.inverse_transform(made.transform(x))).sum(axis=1))


def _kind(estimator: Any) -> Kind:
    if not isinstance(estimator, BaseEstimator):
        name = getattr(estimator, "__name__", type(estimator).__name__)
        raise JobError(f"SklearnLearner({name}): give an estimator of scikit-learn, as GaussianNB()")
    for room in (bayes, clusters, moments, forest):
        if isinstance(estimator, room.KINDS):
            made: Kind = room.kind(estimator)
            return made
    if not hasattr(estimator, "partial_fit"):
        raise JobError(
            f"{type(estimator).__name__} has no partial_fit and no sums that it could be made of: take an "
            "SGDClassifier, SGDRegressor, MLP, naive Bayes, KMeans, PCA, linear regression or forest; "
            "foedus.analytics.glm is exact"
        )
    return steps.kind(estimator)


def _classes(estimator: Any, kind: Kind, classes: Sequence[Any] | None) -> Array | None:
    name = type(estimator).__name__
    if not is_classifier(estimator):
        if classes is not None:
            raise JobError(f"{name} is no classifier: leave out classes=…")
        return None
    return classes_of(name, classes)


def _plain(x: Any) -> Any:
    """A setting as plain data."""
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, (np.ndarray, np.generic)):
        return digest({"": np.asarray(x)})
    if isinstance(x, (list, tuple)):
        return [_plain(part) for part in x]
    if isinstance(x, Mapping):
        return {str(name): _plain(part) for name, part in x.items()}
    return getattr(x, "__qualname__", type(x).__qualname__)
