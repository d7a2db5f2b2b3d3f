"""Estimators that take steps (SGDClassifier, SGDRegressor, Perceptron, MLPClassifier, MLPRegressor), by partial_fit.
Only the kinds may come in."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from sklearn.base import is_classifier

from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import Array, Params
from foedus.sklearn.kinds import Asked, Kind, seeded


def kind(estimator: Any) -> Kind:
    """The kind of an estimator with partial_fit."""
    return Kind("mean", "class" if is_classifier(estimator) else "number", _first, _train, _fitted)


def _is_net(estimator: Any) -> bool:
    return hasattr(estimator, "hidden_layer_sizes")


def _blank(asked: Asked, random: np.random.RandomState) -> Any:
    """The estimator after a step of no size over a row of zeros for each class: all its arrays have their shapes."""
    own = asked.estimator.get_params(deep=False)
    still = {"learning_rate_init": sys.float_info.min, "batch_size": "auto"} if _is_net(asked.estimator) else {}
    made = asked.clone(random_state=random, **still)
    rows = 1 if asked.classes is None else len(asked.classes)
    x, more = np.zeros((rows, len(asked.names))), {} if asked.classes is None else {"classes": np.arange(rows)}
    made.partial_fit(x, np.arange(rows), **more)
    return made.set_params(**{name: own[name] for name in still})


def _first(asked: Asked, key: Key) -> Params:
    """A net's weights as scikit-learn draws them, by key; linear models begin at zero."""
    if getattr(asked.estimator, "average", False):
        raise JobError(f"{asked.name}(average=…): the sites' models are averaged already; leave it out")
    if getattr(asked.estimator, "solver", "") == "lbfgs":
        raise JobError(f"{asked.name}(solver='lbfgs') trains to its end, not step by step: take 'sgd' or 'adam'")
    try:
        made = _blank(asked, seeded(key))
    except (ValueError, AttributeError) as error:
        raise JobError(f"{asked.name} cannot be trained step by step: {error}") from error
    if _is_net(made):
        return Params({name: x for i in range(len(made.coefs_)) for name, x in _layer(made, i)})
    if not all(hasattr(made, name) for name in ("coef_", "intercept_", "t_")):
        raise JobError(f"{asked.name} has other arrays than coef_ and intercept_: no way is known to average it")
    zeros = {"coef": np.zeros_like(made.coef_), "intercept": np.zeros_like(made.intercept_)}
    return Params({**zeros, "t": np.int64(1)})


def _layer(made: Any, i: int) -> list[tuple[str, Array]]:
    return [(f"coefs.{i}", made.coefs_[i]), (f"intercepts.{i}", made.intercepts_[i])]


def _placed(asked: Asked, params: Params, random: np.random.RandomState) -> Any:
    """An estimator that has these arrays, and an optimizer that begins."""
    made = _blank(asked, np.random.RandomState(0)).set_params(random_state=random)
    if _is_net(made):
        for i in range(len(made.coefs_)):
            made.coefs_[i], made.intercepts_[i] = params[f"coefs.{i}"].copy(), params[f"intercepts.{i}"].copy()
        del made._optimizer  # it holds the blank's arrays; the next step makes one
        made.t_, made.n_iter_, made.loss_curve_ = 0, 0, []
        return made
    made.coef_, made.intercept_, made.t_ = params["coef"].copy(), params["intercept"].copy(), float(params["t"])
    return made


def _train(asked: Asked, params: Params, x: Array, y: Array, key: Key) -> tuple[Params, int]:
    made, steps = _placed(asked, params, seeded(key("order"))), 0
    if _is_net(made):
        size = min(200 if made.batch_size == "auto" else made.batch_size, len(x))
        made.set_params(batch_size=size)
    for _ in range(asked.epochs):
        made.partial_fit(x, y)
        steps += -(-len(x) // size) if _is_net(made) else len(x)
    if _is_net(made):
        return Params({name: a for i in range(len(made.coefs_)) for name, a in _layer(made, i)}), steps
    return Params({"coef": made.coef_, "intercept": made.intercept_, "t": np.int64(made.t_)}), steps


def _fitted(asked: Asked, params: Params) -> Any:
    made = _placed(asked, params, np.random.RandomState(0))
    made.set_params(random_state=asked.estimator.random_state)
    if asked.classes is not None:
        made.classes_ = asked.classes
        if _is_net(made):
            made._label_binarizer.fit(asked.classes)
    return made
