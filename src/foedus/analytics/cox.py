"""Proportional hazards: Cox 1972; ties by Breslow 1974 or Efron 1977. Newton steps from sums over those at risk.
Times, the design and the way to ask for sums may come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from foedus.analytics import design, survival
from foedus.analytics.analysis import Table, Tail, analysis, answer
from foedus.analytics.asking import Asking, Sent, ask, whole, work
from foedus.analytics.design import Coded
from foedus.analytics.held import Held
from foedus.analytics.solving import confidence, endless, kept, newton_step, two_sided
from foedus.analytics.survival import Survival
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array, Params

Ties = Literal["efron", "breslow"]
STEPS, HALVINGS, CLOSE = 50, 30, 1e-11
AT_ONCE = 1_000_000  # numbers in one answer of a site
FAR = 100.0


class Model(NamedTuple):
    survival: Survival
    ties: Ties
    strata: str | None
    l2: float


class Risk(NamedTuple):
    """Sums at each time over those at risk, exp(xb) times 1, x and xx' (the upper half): (times, 1 + p + p(p+1)/2).

    `died`: the same over those whose event is at this time; `events` how many these are, `moved` the sum of their x.
    """

    risk: Array
    died: Array
    events: Array
    moved: Array


class Fit(NamedTuple):
    b: Array
    loglik: float
    score: Array
    information: Array


def cox(
    *,
    time: str,
    event: str,
    features: str | Sequence[str],
    ties: Ties = "efron",
    strata: Literal["site"] | None = None,
    l2: float = 0.0,
    grid: Sequence[float] | None = None,
    categories: Mapping[str, Sequence[Any]] | None = None,
    least: int = 1,
) -> Algorithm:
    """Cox's model, as on pooled data. Features are coded as for `glm`; rows with gaps are left out.

    `strata="site"` gives every site a baseline hazard of its own, and then sites send p + p² sums and no time at all.
    On a `grid` times are rounded up to its points. `l2`: a penalty l2/2 |b|², without standard errors.

    `.pandas`: by term `coef`, `se`, `z`, `p`, `low`, `high`, `hazard_ratio`; NaN for a term that others determine,
    and no `se` for one whose coefficient grows without end (the fact `infinite` names them).
    `baseline`: by time the hazard, cumulative hazard and survival at the features' means (Breslow), without strata.
    `.per_site`: rows, used, events. Facts: n, events, loglik, null_loglik, lr, df, lr_p, iterations, converged.

    Leaves a site: its distinct event times, in clear, unless there is a grid or strata; at each time the number of
    events, and over those at risk the sums of exp(xb), x exp(xb), xx' exp(xb). With strata: the score and information.
    """
    if ties not in ("efron", "breslow"):
        raise JobError(f"cox(ties={ties!r}): it is 'efron' or 'breslow'")
    if strata not in (None, "site"):
        raise JobError(f"cox(strata={strata!r}): it is 'site' or None")
    if not 0 <= l2 < math.inf:
        raise JobError(f"cox(l2={l2!r}): a penalty is not negative")
    made = survival.survival(time, event, grid, features=features, categories=categories, least=least)
    model = Model(made, ties, strata, float(l2))
    answers = {"events": _events, "risk": _risk, "own": _own}
    asked = {name: work(partial(of, model)) for name, of in answers.items()}
    return analysis(partial(_round, model), survival.works(made) | asked)


def _round(model: Model, state: State, context: RoundContext, every: bool = True) -> Any:
    made = model.survival
    coded = yield from design.learn(made.asked, context.cohort, every)
    if not coded.terms:
        raise JobError("no feature has two levels: name another one")
    times = np.zeros(0) if model.strata else (yield from survival.times(made, coded))
    p, k = len(coded.terms), len(times)
    shapes = {"events": (k,), "moved": (k, p), "came": ()}
    seen = yield from ask("events", coded.sites, {**coded.payload(), "times": times}, shapes)
    known = whole(seen.of["events"]), seen.of["moved"]
    own = [int(seen.shown[site]["events"]) for site in coded.per_site]
    came = int(whole(seen.of["came"]))
    if not came:
        raise JobError(f"no site has an event in {made.asked.numbers[1]!r}: there is nothing to estimate")
    null = yield from _at(model, coded, times, known, np.zeros(p))
    use = kept(null[0].information, came)
    here, steps, infinite = yield from _climb(model, coded, times, known, null, use)
    facts = {
        "n": coded.used,
        "events": came,
        "iterations": steps,
        "converged": steps < STEPS and not infinite.any(),
    }
    baseline = {} if model.strata else {"baseline": _baseline(times, known[0], here[1])}
    tables = {"per_site": design.per_site(coded, events=own), **baseline}
    return _answer(model, coded, here[0], null[0].loglik, use, infinite, facts, tables)


def _climb(model: Model, coded: Coded, times: Array, known: Any, start: Any, use: Array) -> Asking[Any]:
    """Where Newton's method ends: the fit and its sums, the steps, and which terms grow without end."""
    ridge, none = model.l2 / coded.scale**2, np.zeros(len(use))
    here, objective = start, start[0].loglik
    for step in range(1, STEPS + 1):
        b = newton_step(here[0].information, here[0].score, here[0].b, ridge, none, use)
        for _ in range(HALVINGS):
            moved = yield from _at(model, coded, times, known, b)
            now = moved[0].loglik - (ridge * b**2).sum() / 2
            if now >= objective - 1e-9 * max(1.0, abs(objective)):
                break
            b = (b + here[0].b) / 2
        way, infinite = moved[0].b - here[0].b, endless(objective, now, moved[0].b - here[0].b)
        here, objective = moved, now
        if infinite.any() or np.abs(way).max() <= CLOSE * max(1.0, float(np.abs(b).max())):
            return here, step, infinite
    return here, STEPS, np.zeros(len(use), bool)


def _at(model: Model, coded: Coded, times: Array, known: Any, b: Array) -> Asking[tuple[Fit, Array]]:
    """The likelihood and its derivatives at b, and sum exp(xb) of those at risk at each time."""
    p, payload = len(b), {**coded.payload(), "b": b, "times": times}
    if model.strata:
        own = yield from ask("own", coded.sites, payload, {"loglik": (), "score": (p,), "information": (p, p)})
        return Fit(b, float(own.of["loglik"]), own.of["score"], own.of["information"]), times
    events, moved = known
    width, tied = _width(p), np.flatnonzero(events > 1) if model.ties == "efron" else np.zeros(0, np.int64)
    risk, died = np.zeros((len(times), width)), np.zeros((len(times), width))
    block = max(1, AT_ONCE // (2 * width))
    for at in range(0, len(times), block):
        part = slice(at, min(at + block, len(times)))
        ties = tied[(tied >= part.start) & (tied < part.stop)]
        shapes = {"risk": (part.stop - part.start, width), "died": (len(ties), width)}
        asked = {**payload, "part": np.array([part.start, part.stop]), "tied": ties}
        found = yield from ask("risk", coded.sites, asked, shapes)
        risk[part], died[ties] = found.of["risk"], found.of["died"]
    return likelihood(b, Risk(risk, died, events, moved), model.ties), risk[:, 0]


def _width(p: int) -> int:
    return 1 + p + p * (p + 1) // 2


def moments(x: Array, w: Array) -> Array:
    """Of each row w, w x and the upper half of w xx': (rows, 1 + p + p(p+1)/2)."""
    i, j = np.triu_indices(x.shape[1])
    return np.asarray(np.concatenate([np.ones((len(x), 1)), x, x[:, i] * x[:, j]], axis=1) * w[:, None])


def _events(model: Model, table: Held, payload: Mapping[str, Array]) -> Sent:
    found = survival.placed(model.survival, table, payload)
    came = int(survival.checked(model.survival, found.rows)[1].sum())
    x, k, on = found.rows.x, len(payload["times"]), found.event >= 0
    moved = survival.summed(found.event, k, x.shape[1], lambda part: x[part])
    sums = {"events": np.bincount(found.event[on], minlength=k)[:k], "moved": moved, "came": came}
    return Sent(sums, {}, {"events": came})


def _risk(model: Model, table: Held, payload: Mapping[str, Array]) -> Sent:
    found, (first, end) = survival.placed(model.survival, table, payload), payload["part"]
    x, tied = found.rows.x, payload["tied"]
    w = np.exp(np.clip(x @ payload["b"], -FAR, FAR))
    last = np.minimum(found.last, end - 1) - first  # who is at risk later is at risk at the end of this part
    died = np.where(np.isin(found.event, tied), np.searchsorted(tied, found.event), -1)
    risk = survival.backwards(_moments(last, int(end - first), x, w))
    return Sent({"risk": risk, "died": _moments(died, len(tied), x, w)})


def _moments(at: Array, size: int, x: Array, w: Array) -> Array:
    """The moments of those at each time: (size, 1 + p + p(p+1)/2)."""
    return survival.summed(at, size, _width(x.shape[1]), lambda part: moments(x[part], w[part]))


def _own(model: Model, table: Held, payload: Mapping[str, Array]) -> Sent:
    """A stratum's likelihood and derivatives, by its own event times or the grid."""
    made, b = model.survival, payload["b"]
    rows = design.read(made.asked, table, payload)
    t, came = survival.checked(made, rows)
    times = np.array(made.grid) if made.grid else np.unique(t[came])
    last, event = survival.among(times, t, came, bool(made.grid))
    w = np.exp(np.clip(rows.x @ b, -FAR, FAR))
    risk = survival.backwards(_moments(last, len(times), rows.x, w))
    moved = survival.summed(event, len(times), len(b), lambda part: rows.x[part])
    events = np.bincount(event[event >= 0], minlength=len(times))
    fit = likelihood(b, Risk(risk, _moments(event, len(times), rows.x, w), events, moved), model.ties)
    return Sent({"loglik": fit.loglik, "score": fit.score, "information": fit.information})


def likelihood(b: Array, sums: Risk, ties: Ties) -> Fit:
    """The partial likelihood, its gradient and minus its Hessian. Of d tied events, the l-th sees l/d of them gone."""
    p = len(b)
    loglik, score = float(sums.moved.sum(axis=0) @ b), sums.moved.sum(axis=0)
    information, (i, j) = np.zeros((p, p)), np.triu_indices(p)
    for k in np.flatnonzero(sums.events):
        d = int(sums.events[k])
        gone = np.arange(d) / d if ties == "efron" else np.zeros(d)
        at = sums.risk[k] - gone[:, None] * sums.died[k]  # (d, width)
        mean = at[:, 1 : p + 1] / at[:, :1]
        square = np.zeros((p, p))
        square[i, j] = square[j, i] = (at[:, p + 1 :] / at[:, :1]).sum(axis=0)
        loglik -= float(np.log(at[:, 0]).sum())
        score = score - mean.sum(axis=0)
        information += square - mean.T @ mean
    return Fit(b, loglik, score, information)


def _answer(
    model: Model, coded: Coded, here: Fit, null: float, use: Array, infinite: Array, facts: dict[str, Any],
    tables: dict[str, Table],
) -> Params:  # fmt: skip
    terms, coef = coded.terms, np.where(use, here.b / coded.scale, math.nan)
    cov, sure = np.full((len(use), len(use)), math.nan), np.flatnonzero(use & ~infinite)
    if not model.l2:
        cov[np.ix_(sure, sure)] = np.linalg.inv(here.information[np.ix_(sure, sure)])
    cov = cov / np.outer(coded.scale, coded.scale)
    se = np.sqrt(np.diag(cov))
    columns = {"coef": coef, "se": se, "z": coef / se, "p": two_sided(coef / se)} | confidence(coef, se)
    facts |= {"loglik": here.loglik, "null_loglik": null, "lr": 2 * (here.loglik - null), "df": int(use.sum())}
    facts |= {"infinite": [t for t, far in zip(terms, infinite, strict=True) if far]}
    facts |= {"tails": [Tail("lr_p", "chi2", "lr", "df")]}
    with np.errstate(over="ignore"):
        table = Table(terms, columns | {"hazard_ratio": np.exp(coef)}, ("term",))
    matrix = Table(terms, {t: cov[:, i] for i, t in enumerate(terms)}, ("term",))
    return answer("cox", {"pandas": table, "cov": matrix, **tables}, facts)


def _baseline(times: Array, events: Array, risk: Array) -> Table:
    hazard = np.where(risk > 0, events / np.where(risk > 0, risk, 1.0), 0.0)
    total = np.cumsum(hazard)
    return Table(times.tolist(), {"hazard": hazard, "cumulative": total, "survival": np.exp(-total)}, ("time",))
