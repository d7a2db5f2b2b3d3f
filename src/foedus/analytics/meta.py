"""Meta-analysis: every site fits its own model, and what is pooled are coefficients by their variances.
Random effects by DerSimonian and Laird 1986. The models of `glm` come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from foedus.analytics import design, glm
from foedus.analytics.analysis import Table, Tail, analysis, answer
from foedus.analytics.asking import Asking, Sent, ask, unpacked, whole, work
from foedus.analytics.design import Coded
from foedus.analytics.held import Held
from foedus.analytics.solving import confidence, two_sided
from foedus.core import Algorithm, Outcome, RoundContext, State, Task, Total
from foedus.errors import JobError
from foedus.params import Array, Params

Effects = Literal["random", "fixed"]


def meta(
    family: str,
    *,
    target: str,
    features: str | Sequence[str],
    effects: Effects = "random",
    link: str | None = None,
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 1,
) -> Algorithm:
    """The mean of the sites' own generalised linear models, term by term, weighted by their precision.

    A site is left out of a term that it cannot estimate: too few rows, a constant column, a coefficient without end.
    `effects`: "random" (DerSimonian and Laird), or "fixed". `.pandas`: by term `coef`, `se`, `z`, `p`, `low`, `high`,
    `sites`, Cochran's `q` with its `q_df` and `q_p`, `i2`, `tau2`. `.per_site`: by site and term `coef` and `se`.

    Leaves a site: its coefficients and standard errors, in clear; their sums weighted by precision.
    """
    if effects not in ("random", "fixed"):
        raise JobError(f"meta(effects={effects!r}): it is 'random' or 'fixed'")
    model = glm.model(family, target, features, link, categories, least)
    works = design.works(model.asked) | {"own": work(partial(_own, model)), "pool": work(partial(_pool, model))}
    return analysis(partial(_round, model, effects), works)


def _round(model: glm.Model, effects: Effects, state: State, context: RoundContext, every: bool = True) -> Any:
    coded = yield from design.learn(model.asked, context.cohort, every)
    first = yield from _asked(coded, "own", np.zeros(len(coded.terms) + 1))
    w, wb, q, df, tau2 = _heterogeneity(first.of)
    if effects == "random":
        second = yield from _asked(coded, "pool", tau2)
        w, wb = second.of["w"], second.of["wb"]
    w = np.where(first.of["sites"] > 0, w, math.nan)
    coef, se = wb / w, 1 / np.sqrt(w)
    columns = {"coef": coef, "se": se, "z": coef / se, "p": two_sided(coef / se)} | confidence(coef, se)
    i2 = np.where(q > 0, np.maximum(0, (q - df) / np.where(q > 0, q, 1)), 0.0)
    columns |= {"sites": whole(first.of["sites"]), "q": q, "q_df": df, "i2": i2, "tau2": tau2}
    terms = [glm.CONST, *coded.terms]
    rows = [(site, term) for site in sorted(first.shown) for term in terms]
    own = {name: np.array([x for _, s in sorted(first.shown.items()) for x in s[name]]) for name in ("coef", "se")}
    return answer("meta", {
        "pandas": Table(terms, columns, ("term",), [Tail("q_p", "chi2", "q", "q_df")]),
        "per_site": Table(rows, own, ("site", "term")),
    }, {"n": coded.used})  # fmt: skip


def _asked(coded: Coded, name: str, tau2: Array) -> Asking[Any]:
    p = len(coded.terms) + 1
    shapes = {word: (p,) for word in ("sites", "w", "ww", "wb", "wbb")}
    return (yield from ask(name, coded.sites, {**coded.payload(), "tau2": tau2}, shapes))


def _heterogeneity(sums: Mapping[str, Array]) -> tuple[Array, Array, Array, Array, Array]:
    """Weights, weighted coefficients, Cochran's Q, its degrees of freedom, and the variance between sites."""
    w, ww, wb, wbb = (sums[name] for name in ("w", "ww", "wb", "wbb"))
    safe = np.where(w > 0, w, 1.0)
    df = np.maximum(whole(sums["sites"]) - 1, 0)
    q = np.where(df > 0, np.maximum(0, wbb - wb**2 / safe), 0.0)
    spread = w - ww / safe
    tau2 = np.where(df > 0, np.maximum(0, (q - df) / np.where(df > 0, spread, 1.0)), 0.0)
    return w, wb, q, df, tau2


def _own(model: glm.Model, table: Held, payload: Mapping[str, Array]) -> Sent:
    coef, se = estimated(model, table, payload)
    return Sent(_weighted(coef, se, payload["tau2"]), {}, {"coef": coef, "se": se})


def _pool(model: glm.Model, table: Held, payload: Mapping[str, Array]) -> Sent:
    return Sent(_weighted(*estimated(model, table, payload), payload["tau2"]))


def _weighted(coef: Array, se: Array, tau2: Array) -> dict[str, Array]:
    there = np.isfinite(se) & np.isfinite(coef) & (se > 0)
    w = np.where(there, 1 / (np.where(there, se, 1.0) ** 2 + tau2), 0.0)
    b = np.where(there, coef, 0.0)
    return {"sites": there, "w": w, "ww": w**2, "wb": w * b, "wbb": w * b**2}


def estimated(model: glm.Model, table: Held, payload: Mapping[str, Array]) -> tuple[Array, Array]:
    """A site's own coefficients and standard errors; NaN for those that it cannot estimate."""
    rows = design.read(model.asked, table, payload)
    p = rows.x.shape[1]
    nothing = np.full(p + 1, math.nan)
    if rows.used < 2:
        return nothing, nothing
    y = rows.numbers.mean(axis=0)
    levels = unpacked(payload["levels"])
    coded = Coded(["here"], levels, range(p), payload["centre"], payload["scale"], y, rows.used, {})  # type: ignore[arg-type]
    try:
        here, steps = _alone(glm.fit(model, coded), model, table)
    except (JobError, np.linalg.LinAlgError):
        return nothing, nothing
    if steps == glm.STEPS:
        return nothing, nothing
    coef, cov, _ = glm.estimates(model, coded, here)
    return coef, np.sqrt(np.diag(cov))


def _alone(steps: Any, model: glm.Model, table: Held) -> Any:
    """What the fit ends with where this site alone answers its Tasks."""
    total = None
    while True:
        try:
            task: Task = steps.send(total)
        except StopIteration as end:
            return end.value
        sent = glm.score(model, table, task.payload)
        sums = Params({name: np.asarray(x, np.float64) for name, x in sent.sums.items()})
        total = Total(sums, 1.0, 1, {}, [Outcome("here", "counted", "", 1.0, sent.shown)])
