"""Stop rules: when a run has gone on for long enough; pure functions of the history, so that a replay stops there too.
Only metrics (for which way is better) and the errors may come in; nothing here reads a clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from foedus import metrics
from foedus.errors import JobError
from foedus.metrics import Metric

History = Sequence[Mapping[str, Any]]  # one mapping a round; metrics of `valid` under their plain names


class Stop(NamedTuple):
    """A rule: `done(history)` is the reason to stop, or None. A reason that was given once stays given.

    `reads`: the metrics of `valid` that it looks at, by their names in the history.
    """

    name: str
    done: Callable[[History], str | None]
    reads: tuple[str, ...] = ()


class Watched(NamedTuple):
    """A metric of `valid` by the name it has in the history; `sign` times its value is better when it is larger."""

    name: str
    sign: int


def plateau(metric: str | Metric, patience: int, min_delta: float = 0.0) -> Stop:
    """Stops once `patience` evaluations in a row were not better than the best before them by more than `min_delta`.

    Rounds without the metric are not counted; an undefined value counts as not better. Raises JobError.

    >>> plateau("loss", patience=2).done([{"round": i, "loss": x} for i, x in enumerate([0.9, 0.5, 0.5, 0.6])])
    'loss: 2 evaluations in a row were not better than 0.5 of round 1'
    """
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise JobError(f"plateau(patience={patience!r}): it must be a whole number of at least 1")
    if not 0 <= min_delta < math.inf:
        raise JobError(f"plateau(min_delta={min_delta!r}): it must be 0 or a positive number")
    watched = _watched(metric, "plateau")
    return Stop(f"plateau({watched.name})", partial(_plateau, watched, patience, float(min_delta)), (watched.name,))


def target(metric: str | Metric, value: float) -> Stop:
    """Stops once the metric has reached `value`: at least it, or at most it where less is better. Raises JobError.

    >>> target("accuracy", 0.9).done([{"round": 0, "accuracy": 0.8}, {"round": 1, "accuracy": 0.9}])
    'accuracy reached 0.9 in round 1 (target 0.9)'
    """
    if not math.isfinite(value):
        raise JobError(f"target(value={value!r}): it must be a finite number")
    watched = _watched(metric, "target")
    return Stop(f"target({watched.name})", partial(_target, watched, float(value)), (watched.name,))


def wall_time(seconds: float) -> Stop:
    """Stops after the round in which the journaled `seconds` of all rounds add up to `seconds` or more."""
    if not 0 < seconds < math.inf:
        raise JobError(f"wall_time({seconds!r}): it must be a positive number of seconds")
    return Stop("wall_time", partial(_wall_time, float(seconds)))


def any_of(*rules: Stop) -> Stop:
    """Stops as soon as one of the rules does, with its reason; of several, the first named."""
    if not rules or not all(isinstance(rule, Stop) for rule in rules):
        raise JobError("any_of needs stop rules, for example any_of(fd.plateau('loss', 3), fd.wall_time(3600))")
    reads = tuple(dict.fromkeys(name for rule in rules for name in rule.reads))
    return Stop(f"any_of({', '.join(rule.name for rule in rules)})", partial(_any_of, rules), reads)


def _watched(metric: str | Metric, rule: str) -> Watched:
    name = metric.name if isinstance(metric, Metric) else str(metric)
    own = metrics.plain(name)
    if name not in (own, f"personal_{own}"):
        raise JobError(f"{rule}({name!r}): stop rules look only at valid, never at train or test: use {own!r}")
    found = metric if isinstance(metric, Metric) else metrics.metric(own)
    return Watched(name, 1 if found.better == "max" else -1)


def _measured(watched: Watched, history: History) -> list[tuple[int, float]]:
    """(round, value) of each round that measured it; NaN where it was undefined."""
    found = [(line.get("round", i), line[watched.name]) for i, line in enumerate(history) if watched.name in line]
    return [(round, math.nan if value is None else float(value)) for round, value in found]


def _plateau(watched: Watched, patience: int, min_delta: float, history: History) -> str | None:
    best, since, waited = math.nan, -1, 0
    for round, value in _measured(watched, history):
        if not math.isnan(value) and (math.isnan(best) or watched.sign * (value - best) > min_delta):
            best, since, waited = value, round, 0
        else:
            waited += 1
        if waited == patience:
            more = f" by more than {min_delta:g}" if min_delta else ""
            known = f"better than {best:g} of round {since}{more}" if since >= 0 else "defined"
            return f"{watched.name}: {patience} evaluations in a row were not {known}"
    return None


def _target(watched: Watched, value: float, history: History) -> str | None:
    for round, x in _measured(watched, history):
        if watched.sign * (x - value) >= 0:
            return f"{watched.name} reached {x:g} in round {round} (target {value:g})"
    return None


def _wall_time(seconds: float, history: History) -> str | None:
    spent = math.fsum(float(line.get("seconds") or 0) for line in history)
    return f"the rounds took {spent:.1f} s of {seconds:g} s" if spent >= seconds else None


def _any_of(rules: Sequence[Stop], history: History) -> str | None:
    return next((reason for rule in rules if (reason := rule.done(history)) is not None), None)
