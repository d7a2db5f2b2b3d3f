"""Linear mixed effects with a random intercept for each site, from sums at a few ratios of variances.
Laird and Ware 1982; what is profiled is the ratio of the sites' variance to the residual one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.analytics import design
from foedus.analytics.analysis import Table, analysis, answer
from foedus.analytics.asking import Asking, Sent, ask, whole, work
from foedus.analytics.design import Coded, Wanted
from foedus.analytics.held import Held
from foedus.analytics.solving import confidence, kept, two_sided
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array

CONST = "const"
RATIOS = np.concatenate([[0.0], np.logspace(-6, 6, 25)])  # looked at first
WITHIN, TURNS, CLOSE = 40, 12, 1e-13  # then so many between two, so often, until they are as close


class Fit(NamedTuple):
    """At one ratio: the coefficients, X'V⁻¹X, the residual variance, the log likelihood and its slope by the ratio."""

    b: Array
    information: Array
    residual: float
    loglik: float
    slope: float


def mixed(
    *,
    target: str,
    features: str | Sequence[str],
    reml: bool = True,
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 1,
) -> Algorithm:
    """A linear model with an intercept of its own at every site, drawn from a normal law; REML, or maximum likelihood.

    Features are coded as for `glm`, and `const` is added; rows with gaps are left out. `.pandas`: by term `coef`, `se`,
    `z`, `p`, `low`, `high`. `.per_site`: rows, used, `intercept` (best linear unbiased prediction). Facts: n,
    site_variance, residual_variance, icc, loglik.

    Leaves a site: its xx', xy, yy, and those about its own means, in sums weighted by a function of its rows; in clear
    its intercept.
    """
    asked = design.wanted(numbers=target, features=features, categories=categories, least=least)
    if CONST in asked.features:
        raise JobError(f"a feature is named {CONST!r}, as the intercept that is added: leave it out, or rename it")
    works = {"sums": work(partial(_sums, asked)), "intercept": work(partial(_intercept, asked))}
    return analysis(partial(_round, asked, reml), design.works(asked) | works)


def _round(asked: Wanted, reml: bool, state: State, context: RoundContext, every: bool = True) -> Any:
    coded = yield from design.learn(asked, context.cohort, every)
    if coded.some < 2:
        raise JobError("a variance between sites needs two sites with complete rows: take glm('gaussian') for one")
    first = yield from _asked(coded, np.zeros(1))
    use = kept(first[0][0][:-1, :-1], coded.used)
    if coded.used <= use.sum() + 1:
        raise JobError(f"{coded.used} complete rows are too few for {int(use.sum())} terms: leave features out")
    ratio, here = yield from _best(coded, use, reml)
    if reml:  # whose likelihood depends on the columns' units
        here = here._replace(loglik=here.loglik - float(np.log(coded.scale[use[1:]]).sum()))
    payload = {**coded.payload(), "b": here.b, "mean": coded.means, "ratio": np.float64(ratio)}
    told = yield from ask("intercept", coded.sites, payload)
    own = [float(told.shown[site]["intercept"]) for site in coded.per_site]
    return _answer(coded, use, ratio, here, own)


def _asked(coded: Coded, ratios: Array) -> Asking[list[tuple[Array, ...]]]:
    """At each ratio: X'V⁻¹X, X'V⁻¹y, y'V⁻¹y and log |V|, and their slopes, V in units of the residual variance."""
    p, k = len(coded.terms) + 2, len(ratios)
    payload = {**coded.payload(), "mean": coded.means, "ratios": ratios}
    shapes = {"cross": (k, p, p), "slope": (k, p, p), "logdet": (k,), "logdet_slope": (k,)}
    found = (yield from ask("sums", coded.sites, payload, shapes)).of
    return [tuple(found[name][i] for name in shapes) for i in range(k)]


def _best(coded: Coded, use: Array, reml: bool) -> Asking[tuple[float, Fit]]:
    """The ratio where the likelihood is highest: where its slope changes sign, ever closer; 0 where it only falls."""
    first = [_fit(sums, use, coded.used, reml) for sums in (yield from _asked(coded, RATIOS))]
    at = int(np.argmax([fit.loglik for fit in first]))
    at -= first[at].slope < 0
    if at < 0 or at == len(RATIOS) - 1:
        return float(RATIOS[max(0, at)]), first[max(0, at)]
    low, high, here = RATIOS[at], RATIOS[at + 1], first[at]
    for _ in range(TURNS):
        ratios = np.linspace(low, high, WITHIN)
        fits = [_fit(sums, use, coded.used, reml) for sums in (yield from _asked(coded, ratios))]
        at = min(max(0, sum(fit.slope > 0 for fit in fits) - 1), WITHIN - 2)
        low, high, here = ratios[at], ratios[at + 1], fits[at]
        if high - low <= CLOSE * high:
            break
    return float(low), here


def _fit(sums: tuple[Array, ...], use: Array, n: int, reml: bool) -> Fit:
    """The profiled likelihood at one ratio (Lindstrom and Bates 1988), with y as the last column of the products."""
    cross, slope, logdet, logdet_slope = sums
    on = np.append(use, False)
    a, da = cross[np.ix_(on, on)], slope[np.ix_(on, on)]
    inverse = np.linalg.inv(a)
    b = inverse @ cross[on, -1]
    rss = float(cross[-1, -1] - b @ cross[on, -1])
    rss_slope = float(slope[-1, -1] - 2 * b @ slope[on, -1] + b @ da @ b)
    df = n - len(b) if reml else n
    more, more_slope = (np.linalg.slogdet(a)[1], float((inverse * da).sum())) if reml else (0.0, 0.0)
    loglik = -(df * (math.log(2 * math.pi * rss / df) + 1) + float(logdet) + more) / 2
    return Fit(b, a, rss / df, loglik, -(df * rss_slope / rss + float(logdet_slope) + more_slope) / 2)


def _columns(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> Array:
    """The intercept, the features and the target about its pooled mean, (rows, terms + 2)."""
    rows = design.read(asked, table, payload)
    y = rows.numbers - payload["mean"]
    return np.concatenate([np.ones((len(y), 1)), rows.x, y], axis=1)


def _sums(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> Sent:
    """V⁻¹ of a site of n rows is I - r / (1 + n r) 11', and log |V| is log(1 + n r)."""
    x = _columns(asked, table, payload)
    n, total, r = len(x), x.sum(axis=0), payload["ratios"]
    mean = total / max(1, n)
    within, between = (x - mean).T @ (x - mean), np.outer(total, total) / max(1, n)
    cross = within + between * (1 / (1 + n * r))[:, None, None]
    slope = -np.outer(total, total) * (1 / (1 + n * r) ** 2)[:, None, None]
    return Sent({"cross": cross, "slope": slope, "logdet": np.log1p(n * r), "logdet_slope": n / (1 + n * r)})


def _intercept(asked: Wanted, table: Held, payload: Mapping[str, Array]) -> Sent:
    x, r = _columns(asked, table, payload), float(payload["ratio"])
    residual = float((x[:, -1] - x[:, :-1] @ payload["b"]).sum())
    return Sent({}, {}, {"intercept": np.float64(r * residual / (1 + len(x) * r))})


def _answer(coded: Coded, use: Array, ratio: float, here: Fit, own: Sequence[float]) -> Any:
    p = len(use)
    b, cov = np.zeros(p), np.zeros((p, p))
    b[use], cov[np.ix_(use, use)] = here.b, np.linalg.inv(here.information) * here.residual
    back = np.diag(np.concatenate([[1.0], 1 / coded.scale]))
    back[0, 1:] = -coded.centre / coded.scale
    coef, cov = back @ b, back @ cov @ back.T
    coef[0] += coded.means[0]
    coef[~use], cov[~use, :], cov[:, ~use] = math.nan, math.nan, math.nan
    se = np.sqrt(np.diag(cov))
    columns = {"coef": coef, "se": se, "z": coef / se, "p": two_sided(coef / se)} | confidence(coef, se)
    facts = {
        "n": int(whole(coded.used)), "site_variance": ratio * here.residual, "residual_variance": here.residual,
        "icc": ratio / (1 + ratio), "loglik": here.loglik,
    }  # fmt: skip
    return answer("mixed", {
        "pandas": Table([CONST, *coded.terms], columns, ("term",)),
        "per_site": design.per_site(coded, intercept=own),
    }, facts)  # fmt: skip
