"""`fd.contribution`: what each site is worth to the others, by leaving it out or by Shapley values.
A Job comes in. Values of sets of sites are trained as runs that are kept; GTG-Shapley trains once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from foedus import launch
from foedus.algorithms import among
from foedus.build import exactly
from foedus.errors import JobError
from foedus.job import Job
from foedus.keys import key
from foedus.metrics import Metric
from foedus.study import references as refs
from foedus.study.comparing import default_folder
from foedus.study.rebuilt import Rebuilt, played
from foedus.study.score import read, sign
from foedus.study.study import Table
from foedus.study.trial import Place, Trial, done

METHODS = ("leave-one-out", "shapley", "gtg-shapley")
Value = Callable[[Sequence[str]], float]  # some of the sites -> what they reach together, larger is better


@dataclass(frozen=True)
class Contribution:
    """What each site adds to the metric, on the data of all; a metric that should be small counts the other way round.

    `errors` are standard errors over permutations (NaN where there is none). Shapley values add up to what all sites
    reach (`whole`) less what the first model does (`nothing`), but for what truncation leaves out. `trained` counts the
    sets of sites whose model was measured.
    """

    values: Mapping[str, float]
    errors: Mapping[str, float]
    whole: float
    nothing: float
    metric: str
    method: str
    trained: int

    def table(self) -> Table:
        """A row for each site, the most valuable first."""
        order = sorted(self.values, key=lambda site: -self.values[site])
        rows = [[s, f"{self.values[s]:+.4f}", _error(self.errors[s])] for s in order]
        note = f"{self.method}: {self.metric} {self.whole:.4f} with all sites, {self.nothing:.4f} before training"
        return Table(
            ["site", "contribution", "± standard error"], rows, [f"{note}; {self.trained} sets of sites tried"]
        )


def _error(error: float) -> str:
    return "-" if math.isnan(error) else f"{error:.4f}"


def contribution(
    job: Job,
    sites: Any,
    *,
    method: str = "leave-one-out",
    metric: str | None = None,
    part: str = "valid",
    permutations: int = 20,
    tolerance: float = 0.01,
    seed: int = 0,
    save: str | Path | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Contribution:
    """The Contribution of each site, in simulation, measured on `part` ("valid" or "test") of all sites' data.

    "leave-one-out": what is lost when the others train without a site; one training more than there are sites.
    "shapley": truncated Monte-Carlo Shapley (Ghorbani & Zou 2019, algorithm 1): every set of sites that begins one of
        so many random `permutations` is trained, until it is within `tolerance` of all sites. What is trained is kept
        in `save` (by default FOEDUS_HOME/studies) and goes on after a crash.
    "gtg-shapley": Liu et al. 2022, algorithm 1: trains once, and puts the updates of each round together for sets of
        sites; a round that moves the metric by less than `tolerance` counts for nobody. `permutations` a round, in each
        of which another site comes first.

    Values of one seed: they say nothing of how they would differ under others. Raises FoedusError.
    """
    if method not in METHODS or part not in ("valid", "test"):
        raise JobError(f"contribution(method={method!r}, part={part!r}): one of {', '.join(METHODS)}; valid or test")
    if permutations < 1 or tolerance < 0:
        raise JobError("contribution: permutations is at least 1, tolerance at least 0")
    by = metric or job.best or next((name for name in job.table() if name != "loss"), "loss")
    if by not in job.table():
        raise JobError(f"contribution(metric={by!r}): it is none of the metrics {sorted(job.table())}")
    names, parts = list(launch.bind(sites).names), refs.splits(job, sites, seed)
    measure = _measure(job, parts, part, by)
    if method == "gtg-shapley":
        return _gtg(job, parts, seed, measure, permutations, tolerance, by)
    place = Place(default_folder(job) if save is None else Path(save), "local", None, say)
    value = _remembered(_trained(job, sites, seed, place, part, by), measure(job.first(seed)))
    values, errors = (
        _left_out(names, value) if method == "leave-one-out" else _shapley(names, value, permutations, tolerance, seed)
    )
    whole, nothing = (sign(job.table()[by]) * value(some) for some in (names, []))
    return Contribution(values, errors, whole, nothing, by, method, len(value.known) - 1)


def _measure(job: Job, parts: Mapping[str, Any], part: str, metric: str) -> Callable[[Any], float]:
    known: Metric = job.table()[metric]

    def measure(params: Any) -> float:
        found, _ = refs.measured(job, params, parts, part)
        return sign(known) * _defined(found.get(metric), metric, part)

    return measure


def _defined(value: float | None, metric: str, part: str) -> float:
    if value is None:
        raise JobError(f"contribution: {metric!r} is not defined on {part}; give sites such a part, or another metric")
    return value


def _trained(job: Job, sites: Any, seed: int, place: Place, part: str, metric: str) -> Value:
    """What a federation of some of the sites reaches in the end, measured by all."""
    rounds, table = job.rounds, job.table()
    if rounds is None:
        raise JobError("contribution trains for the Job's rounds, and it has none: give rounds=… beside stop=…")

    def value(names: Sequence[str]) -> float:
        some = among(job.algorithm, names)
        trial = Trial(f"sites {' '.join(names)}", {}, seed, job.replace(algorithm=some, **_plain(rounds)), sites)
        found = read(done(trial, place), table, None, own=False)["valid" if part == "valid" else "test"]
        return sign(table[metric]) * _defined(found.get(metric), metric, part)

    return value


def _plain(rounds: int) -> dict[str, Any]:
    return {"best": None, "stop": None, "evaluate": rounds, "panel": None}


class _remembered:
    """A Value that asks for each set once; the empty set is the first model."""

    def __init__(self, value: Value, nothing: float) -> None:
        self.value, self.known = value, {frozenset[str](): nothing}

    def __call__(self, names: Sequence[str]) -> float:
        asked = frozenset(names)
        if asked not in self.known:
            self.known[asked] = self.value(sorted(asked))
        return self.known[asked]


def _left_out(names: Sequence[str], value: Value) -> tuple[dict[str, float], dict[str, float]]:
    whole = value(names)
    found = {site: whole - value([other for other in names if other != site]) for site in names}
    return found, dict.fromkeys(names, math.nan)


def _shapley(
    names: Sequence[str], value: Value, permutations: int, tolerance: float, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    gains: dict[str, list[float]] = {site: [] for site in names}
    for t in range(permutations):
        order = _shuffled(names, seed, f"permutation {t}")
        for site, gain in _marginals(order, value, value(names), tolerance):
            gains[site].append(gain)
    return {s: fmean(g) for s, g in gains.items()}, {s: _standard_error(g) for s, g in gains.items()}


def _shuffled(names: Sequence[str], seed: int, purpose: str) -> list[str]:
    return [names[i] for i in key(seed, "contribution", 0, "", purpose).numpy().permutation(len(names))]


def _marginals(order: Sequence[str], value: Value, whole: float, tolerance: float) -> Iterator[tuple[str, float]]:
    """What each site adds to those before it; once these are within `tolerance` of all, nothing."""
    before = value([])
    for i, site in enumerate(order):
        after = before if abs(whole - before) < tolerance else value(order[: i + 1])
        yield site, after - before
        before = after


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _gtg(
    job: Job,
    parts: Mapping[str, Any],
    seed: int,
    measure: Callable[[Any], float],
    permutations: int,
    tolerance: float,
    metric: str,
) -> Contribution:
    found, tried = dict.fromkeys(parts, 0.0), 0
    nothing = last = measure(job.first(seed))
    with exactly():
        for rebuilt in played(job, parts, seed):
            value, names = _remembered(lambda some, r=rebuilt: measure(r.model(some)), last), rebuilt.sites  # type: ignore[misc]
            whole = value(names)
            if abs(whole - last) > tolerance:
                for site, gain in _round(rebuilt, value, whole, permutations, tolerance, seed).items():
                    found[site] += gain
            last, tried = whole, tried + len(value.known) - 1
    last, nothing = (sign(job.table()[metric]) * value for value in (last, nothing))
    return Contribution(found, dict.fromkeys(found, math.nan), last, nothing, metric, "gtg-shapley", tried)


def _round(
    rebuilt: Rebuilt, value: Value, whole: float, permutations: int, tolerance: float, seed: int
) -> dict[str, float]:
    """The Shapley values of one round; each site comes first as often as any other (guided sampling)."""
    gains: dict[str, list[float]] = {site: [] for site in rebuilt.sites}
    passes = -(-permutations // len(rebuilt.sites))
    for t in range(passes):
        for first in rebuilt.sites:
            rest = [site for site in rebuilt.sites if site != first]
            order = [first, *_shuffled(rest, seed, f"round {rebuilt.round} {t} {first}")]
            for site, gain in _marginals(order, value, whole, tolerance):
                gains[site].append(gain)
    return {site: fmean(values) for site, values in gains.items()}
