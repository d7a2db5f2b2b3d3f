"""Generalised linear models by Fisher scoring: Nelder and Wedderburn 1972; each step is a sum over sites.
L1 by proximal Newton steps: Lee, Sun and Saunders 2014. The design and the way to ask for sums may come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.analytics import design
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Asking, Sent, Sums, ask, work
from foedus.analytics.design import Coded, Wanted, per_site
from foedus.analytics.families import FAMILIES, LINKS, checked, family
from foedus.analytics.held import Held
from foedus.analytics.solving import DEPENDENT, confidence, endless, free, kept, newton_step, two_sided
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array, Params

STEPS, HALVINGS = 100, 30
CLOSE = 1e-11  # of a step, beside the largest coefficient
SEPARATED = 1e-9  # of half the deviance, for each row
CONST = "const"


class Model(NamedTuple):
    """What is fitted: -2 log likelihood / 2 + l2/2 |b|² + l1 |b|, the intercept free."""

    family: str
    link: str
    asked: Wanted
    l2: float
    l1: float


class Here(NamedTuple):
    """Where the fit stands, in centred and scaled columns."""

    b: Array
    sums: Sums
    objective: float
    use: Array  # which columns are no combination of others
    infinite: Array  # whose coefficients grow without end


def glm(
    family: str,
    *,
    target: str,
    features: str | Sequence[str],
    link: str | None = None,
    l2: float = 0.0,
    l1: float = 0.0,
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 1,
) -> Algorithm:
    """A generalised linear model, as on pooled data; an intercept named `const` is added.

    `family`: binomial, gaussian, poisson or gamma; `link`: identity, logit, log or inverse (logit, identity, log and
    log by default). Texts and columns of `categories` become indicators `column_level` of every level but the first.
    Rows with gaps are left out. `l2`, `l1`: penalties l2/2 |b|² + l1 |b| beside the negative log likelihood of
    dispersion 1, the intercept free; such fits have no standard errors. `least`: fewer rows of a site are not used.

    `.pandas`: by term `coef`, `se`, `z`, `p`, `low`, `high` (95 %), and exp(coef) where it has a name; NaN for a term
    that others determine, and no `se` for one whose coefficient grows without end (the fact `infinite` names them).
    `.per_site`: rows, used, deviance. Facts: n, deviance, null_deviance, pearson_chi2, scale, loglik, aic, df_resid,
    iterations, converged, infinite. Frame `cov`.

    Leaves a site: X'WX and X'Wz of each step, the sums of y, x and x², deviance; in clear rows and deviance.
    """
    made = model(family, target, features, link, categories, least, l2, l1)
    return analysis(partial(_round, made), design.works(made.asked) | {"score": work(partial(score, made))})


def model(
    family: str, target: str, features: Any, link: str | None, categories: Any, least: int, l2: float = 0, l1: float = 0
) -> Model:
    """What is fitted, checked. Raises JobError."""
    asked = design.wanted(numbers=target, features=features, categories=categories, least=least)
    if CONST in asked.features:
        raise JobError(f"a feature is named {CONST!r}, as the intercept that is added: leave it out, or rename it")
    if not (0 <= l2 < math.inf and 0 <= l1 < math.inf):
        raise JobError(f"glm(l2={l2!r}, l1={l1!r}): penalties are not negative")
    return Model(family, _link(family, link), asked, float(l2), float(l1))


def _link(name: str, given: str | None) -> str:
    usual = family(name).link
    if given is not None and (given not in LINKS or (name != "gamma" and given == "inverse")):
        raise JobError(f"glm(link={given!r}): {name} goes with {usual!r}" + (", 'inverse'" if name == "gamma" else ""))
    return given or usual


def _round(model: Model, state: State, context: RoundContext, every: bool = True) -> Any:
    coded = yield from design.learn(model.asked, context.cohort, every)
    here, steps = yield from fit(model, coded)
    return _answer(model, coded, here, steps)


def score(model: Model, table: Held, payload: Mapping[str, Array]) -> Sent:
    """A site's part of a step at the point `b`; before the first step at the family's own start."""
    rows = design.read(model.asked, table, payload)
    kind, link = FAMILIES[model.family], LINKS[model.link]
    y, mean = checked(model.family, model.asked.numbers[0], rows.numbers[:, 0]), float(payload["mean"])
    x = np.concatenate([np.ones((len(y), 1)), rows.x], axis=1)
    begin = bool(payload["begin"])
    eta = link.eta(kind.start(y, mean)) if begin else x @ payload["b"]
    mu = link.mean(eta)
    slope, var = link.slope(eta, mu), kind.variance(mu)
    sums = _step_sums(x, y - mu, slope, var, eta if begin else 0.0)
    dev = float(kind.deviance(y, mu).sum())
    loglik = kind.loglik(y, mu).sum() if kind.loglik else 0.0
    null = kind.deviance(y, np.full_like(y, mean)).sum()
    return Sent(sums | {"deviance": dev, "null": null, "loglik": loglik}, {}, {"deviance": np.float64(dev)})


def _step_sums(x: Array, residual: Array, slope: Array, var: Array, eta: Any) -> dict[str, Any]:
    """X'WX, X'W(z - Xb) with the working response z = eta + residual / slope, and Pearson's chi squared."""
    weight = slope**2 / var
    return {
        "information": (x.T * weight) @ x,
        "score": x.T @ (weight * eta + slope / var * residual),
        "pearson": (residual**2 / var).sum(),
    }


def fit(model: Model, coded: Coded) -> Asking[tuple[Here, int]]:
    """Where Fisher scoring ends, and how many steps it took."""
    p = len(coded.terms) + 1
    first = yield from _ask(model, coded, np.zeros(p), True)
    here = Here(np.zeros(p), first, math.inf, _usable(model, first.of["information"], coded.used), np.zeros(p, bool))
    for step in range(1, STEPS + 1):
        target = _target(model, coded, here, step == 1)
        moved = yield from _search(model, coded, here, target)
        size, here = np.abs(moved.b - here.b).max(), moved
        if model.family == "binomial" and not (model.l1 or model.l2) and here.objective < SEPARATED * coded.used:
            raise JobError(
                f"the features tell {model.asked.numbers[0]!r} without error, so coefficients grow without end: "
                "leave a feature out, or give l2=1.0"
            )
        if here.infinite.any() or size <= CLOSE * max(1.0, float(np.abs(here.b).max())):
            return here, step
    return here, STEPS


def _ask(model: Model, coded: Coded, b: Array, begin: bool = False) -> Asking[Sums]:
    p = len(b)
    shapes = {"information": (p, p), "score": (p,), "pearson": (), "deviance": (), "null": (), "loglik": ()}
    payload = {**coded.payload(), "b": b, "mean": np.float64(coded.means[0]), "begin": np.int64(begin)}
    return (yield from ask("score", coded.sites, payload, shapes))


def _target(model: Model, coded: Coded, here: Here, first: bool) -> Array:
    """Where a full step leads: the minimum of the quadratic model and the penalties."""
    start = np.zeros_like(here.b) if first else here.b
    ridge, lasso = _penalties(model, coded)
    return newton_step(here.sums.of["information"], here.sums.of["score"], start, ridge, lasso, here.use)


def _usable(model: Model, information: Array, n: int) -> Array:
    """Which columns have a coefficient of their own; a penalty leaves it to all that are not constant."""
    if model.l1 or model.l2:
        return np.asarray(np.diag(information) > DEPENDENT**2 * n)
    return kept(information, n)


def _penalties(model: Model, coded: Coded) -> tuple[Array, Array]:
    """l2 and l1 of each scaled column: a coefficient here is the scale times the one that is penalised."""
    return free(model.l2 / coded.scale**2), free(model.l1 / coded.scale)


def _objective(model: Model, coded: Coded, b: Array, deviance: float) -> float:
    ridge, lasso = _penalties(model, coded)
    return float(deviance / 2 + (ridge * b**2).sum() / 2 + (lasso * np.abs(b)).sum())


def _search(model: Model, coded: Coded, here: Here, target: Array) -> Asking[Here]:
    """The first point of target, half way, a quarter … that is no worse, but for rounding."""
    b = target
    for _ in range(HALVINGS):
        sums = yield from _ask(model, coded, b)
        now = _objective(model, coded, b, float(sums.of["deviance"]))
        if now <= here.objective + 1e-9 * max(1.0, abs(here.objective)):
            break
        b = (b + here.b) / 2
    return Here(b, sums, now, here.use, _infinite(coded, here.objective, now, b - here.b))


def _infinite(coded: Coded, before: float, after: float, step: Array) -> Array:
    """Which terms are infinite. The intercept of columns as they are is so only where a term of the scaled ones is."""
    scaled = endless(before, after, step)
    own = endless(before, after, _uncentred(coded, step))
    return np.asarray(np.concatenate([own[:1] & scaled.any(), scaled[1:]]))


def estimates(model: Model, coded: Coded, here: Here) -> tuple[Array, Array, float]:
    """Coefficients for the columns as they are, their covariance, and the scale; NaN where there is none."""
    n, rank = coded.used, int(here.use.sum())
    scale = 1.0
    if FAMILIES[model.family].dispersed:
        scale = float(here.sums.of["pearson"]) / (n - rank) if n > rank else math.nan
    coef, cov = _original(coded, here.b, here.sums.of["information"], here.use & ~here.infinite)
    return np.where(here.use, coef, math.nan), cov * (math.nan if model.l1 or model.l2 else scale), scale


def _answer(model: Model, coded: Coded, here: Here, steps: int) -> Params:
    sums, n, kind, rank = here.sums.of, coded.used, FAMILIES[model.family], int(here.use.sum())
    coef, cov, scale = estimates(model, coded, here)
    se, deviance = np.sqrt(np.diag(cov)), float(sums["deviance"])
    columns = {"coef": coef, "se": se, "z": coef / se, "p": two_sided(coef / se)} | confidence(coef, se)
    if kind.ratio and model.link in ("logit", "log"):
        columns[kind.ratio] = np.exp(coef)
    terms = [CONST, *coded.terms]
    loglik = _loglik(model, n, deviance, float(sums["loglik"]))
    facts = {
        "n": n, "deviance": deviance, "null_deviance": float(sums["null"]),
        "pearson_chi2": float(sums["pearson"]), "scale": scale, "loglik": loglik,
        "aic": 2 * rank - 2 * loglik, "df_resid": n - rank, "iterations": steps,
        "converged": steps < STEPS and not here.infinite.any(),
        "infinite": [t for t, far in zip(terms, here.infinite, strict=True) if far],
    }  # fmt: skip
    deviances = [float(here.sums.shown[site]["deviance"]) for site in coded.per_site]
    tables = {
        "pandas": Table(terms, columns, ("term",)),
        "per_site": per_site(coded, deviance=deviances),
        "cov": Table(terms, {term: cov[:, i] for i, term in enumerate(terms)}, ("term",)),
    }
    return answer("glm", tables, facts)


def _uncentred(coded: Coded, b: Array) -> Array:
    """The same with the intercept that belongs to columns which are not centred."""
    return np.concatenate([[b[0] - (coded.centre / coded.scale) @ b[1:]], b[1:]])


def _original(coded: Coded, b: Array, information: Array, sure: Array) -> tuple[Array, Array]:
    """Coefficients and unscaled covariance for the columns as they are; NaN for terms that others determine."""
    p = len(b)
    back = np.diag(np.concatenate([[1.0], 1 / coded.scale]))
    back[0, 1:] = -coded.centre / coded.scale
    inverse = np.zeros((p, p))
    inverse[np.ix_(sure, sure)] = np.linalg.inv(information[np.ix_(sure, sure)])
    cov = back @ inverse @ back.T
    cov[~sure, :] = cov[:, ~sure] = math.nan
    return back @ b, cov


def _loglik(model: Model, n: int, deviance: float, sum_of_sites: float) -> float:
    if FAMILIES[model.family].loglik:
        return sum_of_sites
    if model.family == "gaussian" and deviance > 0:
        return -n / 2 * (math.log(2 * math.pi * deviance / n) + 1)
    return math.nan
