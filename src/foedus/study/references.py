"""What a method is compared with: each site alone, all data in one place, a site that was never seen.
A method's Job comes in, and goes out as the Job that the reference is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foedus import launch, metrics, runs
from foedus.algorithms import alone, among, fedavg
from foedus.build import exactly
from foedus.columns import Alike, names_of
from foedus.core import Learner
from foedus.data import PARTS, Pairs, Split
from foedus.errors import JobError, Paused, SiteError
from foedus.job import Job
from foedus.params import Params

REFERENCES = ("alone", "pooled", "unseen-site")
POOLED = "pooled"


def by_itself(job: Job) -> Job:
    """Each site trains a model of its own, in every round, with the Job's learner."""
    return simple(job, alone(), best=None, stop=None)


def together(job: Job) -> Job:
    """One model for the data of all sites, which one place holds."""
    return simple(job, fedavg(), data=None, datasets=(), schema=None)


def without(job: Job, site: str) -> Job:
    """The method without a site, which is measured as the others are; nothing is chosen by what it says."""
    often = job.evaluate if job.best else _rounds(job)
    return job.replace(algorithm=among(job.algorithm, without=[site]), best=None, stop=None, evaluate=often)


def only(job: Job, site: str) -> Job:
    """The algorithm at this site alone, measured at all: for one that measures itself, and knows no learner."""
    return simple(job, among(job.algorithm, [site]), best=None, stop=None)


def simple(job: Job, algorithm: Any, **changes: Any) -> Job:
    """The Job with another algorithm, for which all sites are asked and waited for in each round, in the clear."""
    _rounds(job.replace(**({"rounds": changes["rounds"]} if "rounds" in changes else {})))
    free = {"cohort": None, "quorum": None, "over_select": 1.0, "late": "drop", "min_sites": 1, "compress": None}
    said = None if job.privacy is None else "none"
    return job.replace(algorithm=algorithm, privacy=said, **free, **changes)


def _rounds(job: Job) -> int:
    if job.rounds is None:
        raise JobError("references train for the Job's rounds, and it has none: give rounds=… beside stop=…")
    return job.rounds


def splits(job: Job, sites: Any, seed: int) -> dict[str, Split]:
    """site -> what the Job's `load` makes of its data. Raises JobError where their columns differ."""
    bench, data = job.bench(seed), launch.bind(sites)
    with exactly():
        found = {name: bench.split(name, data[name]) for name in data.names}
    _check_alike(found)
    return found


def _check_alike(parts: Mapping[str, Split]) -> None:
    alike = Alike()
    for name, split in parts.items():
        alike.add(name, names_of(split))


def readable(job: Job, sites: Any, seed: int, absent: Mapping[str, str]) -> tuple[dict[str, Split], dict[str, str]]:
    """`splits` of the sites whose data can be had, but for those `absent` (site -> why); and why others are left out.

    Raises the first site's error where none is left.
    """
    bench, data, failed = job.bench(seed), launch.bind(sites), dict[str, SiteError]()
    found = dict[str, Split]()
    for name in [name for name in data.names if name not in absent]:
        try:
            with exactly():
                found[name] = bench.split(name, data[name])
        except SiteError as error:
            failed[name] = error
    if not found and failed:
        raise next(iter(failed.values()))
    _check_alike(found)
    return found, {**absent, **{name: cause(error, name) for name, error in failed.items()}}


def cause(error: BaseException, site: str) -> str:
    """Why a site does not count, out of the error with which a run ended."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, Paused) and site in at.absent:
            return at.absent[site]
        if isinstance(at, SiteError) and at.site == site:
            return f"{at.stage}: {at.why}"
        at = at.__cause__
    return str(error)


def pool(parts: Mapping[str, Split]) -> dict[str, Split]:
    """One site that holds the examples of all, site after site."""
    held = {part: [x for split in parts.values() if (x := getattr(split, part)) is not None] for part in PARTS}
    return {POOLED: Split(**{part: _joined(data) if data else None for part, data in held.items()})}


class Chained:
    """Datasets one after another."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = datasets
        self.ends = np.cumsum([len(data) for data in datasets])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        which = int(np.searchsorted(self.ends, i, side="right"))
        return self.datasets[which][i - int(self.ends[which] - len(self.datasets[which]))]


def _joined(datasets: Sequence[Any]) -> Any:
    if not all(isinstance(data, Pairs) for data in datasets):
        return Chained(datasets)
    x, y = (np.concatenate([np.asarray(getattr(data, c)) for data in datasets]) for c in "xy")
    return Pairs(x, y, datasets[0].names)


def model(folder: Path) -> Params:
    """The model that a finished run would be used with: its best one, or the last."""
    result = runs.result(folder)
    return result.params if result.best is None else result.best


def measured(job: Job, params: Params, parts: Mapping[str, Split], part: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of a model on this part of all sites' data, and on that of each site which has one."""
    learner, table = job.learner, list(job.table().values())
    assert learner is not None
    with exactly():
        sums = {name: _sums(learner, params, getattr(split, part), table) for name, split in parts.items()}
    kept = {name: row for name, row in sums.items() if row}
    pooled = metrics.values(metrics.pooled(list(kept.values())), table)
    return _finite(pooled), {name: _finite(metrics.values(row, table)) for name, row in kept.items()}


def _sums(learner: Learner, params: Params, data: Any, table: Sequence[Any]) -> Mapping[str, Any]:
    return learner.evaluate(params, data, table) if data is not None and len(data) else {}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
