"""Exponential families and their links: what a site needs of each to add up a step of Fisher scoring.
Only numpy may come in. McCullagh and Nelder 1989, chapter 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from foedus.errors import FoedusError, JobError
from foedus.params import Array

FAR = 200.0  # of a linear predictor: beyond, exp() and its squares leave no room for sums
TINY = 1e-300
_lgamma = np.vectorize(math.lgamma, otypes=[float])


class Link(NamedTuple):
    """The mean from the linear predictor, its derivative there, and the predictor from the mean."""

    mean: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]  # (eta, mu) -> d mu / d eta
    eta: Callable[[Any], Any]


class Family(NamedTuple):
    """Variance and deviance of a mean, what its targets may be, and where Fisher scoring begins."""

    link: str
    variance: Callable[[Array], Array]
    deviance: Callable[[Array, Array], Array]  # (y, mu) -> one for each row
    start: Callable[[Array, float], Array]  # (y, pooled mean of y) -> means
    valid: Callable[[Array], Array]
    needs: str
    dispersed: bool  # whether its scale is estimated
    loglik: Callable[[Array, Array], Array] | None = None
    ratio: str = ""


def _sigmoid(eta: Array) -> Array:
    small = np.exp(-np.abs(eta))
    return np.asarray(np.where(eta >= 0, 1.0, small) / (1 + small))


def _positive(eta: Array) -> Array:
    return np.asarray(np.exp(np.clip(eta, -FAR, FAR)))


def _inverse(eta: Array) -> Array:
    return np.asarray(1 / np.maximum(eta, 1e-10))


LINKS = {
    "identity": Link(lambda eta: eta, lambda eta, mu: np.ones_like(mu), lambda mu: mu),
    "logit": Link(_sigmoid, lambda eta, mu: np.maximum(mu * (1 - mu), TINY), lambda mu: np.log(mu / (1 - mu))),
    "log": Link(_positive, lambda eta, mu: mu, np.log),
    "inverse": Link(_inverse, lambda eta, mu: -(mu**2), lambda mu: 1 / mu),
}


def _xlogy(x: Array, y: Array) -> Array:
    """x log y, and 0 where x is."""
    return np.asarray(np.where(x == 0, 0.0, x * np.log(np.where(x == 0, 1.0, np.maximum(y, TINY)))))


def _binomial(y: Array, mu: Array) -> Array:
    return np.asarray(2 * (_xlogy(y, y) - _xlogy(y, mu) + _xlogy(1 - y, 1 - y) - _xlogy(1 - y, 1 - mu)))


def _poisson(y: Array, mu: Array) -> Array:
    return np.asarray(2 * (_xlogy(y, y) - _xlogy(y, mu) - (y - mu)))


def _gamma(y: Array, mu: Array) -> Array:
    return np.asarray(2 * ((y - mu) / mu - np.log(y / mu)))


FAMILIES = {
    "gaussian": Family(
        "identity", np.ones_like, lambda y, mu: (y - mu) ** 2, lambda y, mean: (y + mean) / 2,
        np.isfinite, "a number", True,
    ),
    "binomial": Family(
        "logit", lambda mu: np.maximum(mu * (1 - mu), TINY), _binomial, lambda y, mean: (y + 0.5) / 2,
        lambda y: (y >= 0) & (y <= 1), "0 or 1 (or a share between)", False,
        lambda y, mu: _xlogy(y, mu) + _xlogy(1 - y, 1 - mu), "odds_ratio",
    ),
    "poisson": Family(
        "log", lambda mu: mu, _poisson, lambda y, mean: (y + mean) / 2,
        lambda y: y >= 0, "a count, not negative", False,
        lambda y, mu: _xlogy(y, mu) - mu - _lgamma(y + 1), "rate_ratio",
    ),
    "gamma": Family(
        "log", lambda mu: mu**2, _gamma, lambda y, mean: (y + mean) / 2,
        lambda y: y > 0, "above 0", True,
    ),
}  # fmt: skip


def family(name: str) -> Family:
    """The family of that name. Raises JobError."""
    if name not in FAMILIES:
        raise JobError(f"there is no family {name!r}: choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def checked(name: str, target: str, y: Array) -> Array:
    """The target, if the family has room for it. Raises FoedusError with the remedy."""
    if not FAMILIES[name].valid(y).all():
        raise FoedusError(
            f"the target {target!r} must be {FAMILIES[name].needs} for {name}: recode it, or take another family"
        )
    return y
