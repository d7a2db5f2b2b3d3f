"""Job: what a user writes. It checks itself when it is built and says how it resolves.
Algorithms, learners and rules come in as values; `launch` is imported only when a Job is run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foedus import frames, home
from foedus import schema as schemas
from foedus.algorithms.rounds import needed, tells
from foedus.core import Algorithm, Deadline, Late, Learner, Transform, Work
from foedus.errors import Incompatible, JobError
from foedus.incompatible import check_parts
from foedus.keys import key
from foedus.metrics import Metric, metric
from foedus.params import Params, digest
from foedus.participation import Cohort, Participation, by_loss
from foedus.privacy import distributed, dp_metrics, ftrl, presets, site_level
from foedus.privacy.distributed import DistributedDp
from foedus.privacy.dp_metrics import DpMetrics, counted
from foedus.privacy.dp_sgd import DpSgd, private
from foedus.privacy.ftrl import DpFtrl
from foedus.privacy.he import He, encrypted
from foedus.privacy.secagg import LEAST, Secagg, measuring, sealed
from foedus.privacy.site_level import CentralDp, LocalDp
from foedus.privacy.wide import spread
from foedus.run import Plan
from foedus.stop import Stop
from foedus.transforms import chain, transformed
from foedus.transforms.chain import at_home
from foedus.work import Bench, Contract

if TYPE_CHECKING:
    from foedus.clock import Clock
    from foedus.result import Result

MOST_DEPTH = 8
SITE_LEVEL = (CentralDp, LocalDp, DistributedDp, DpFtrl)  # noise on whole updates
NOT_BUILT = ("track",)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The named arguments of a Job; see docs/job.md for what each means."""

    name: str | None = None
    datasets: Sequence[str] = ()
    schema: Any = None
    columns: Sequence[str] = ()
    requires: Sequence[str] = ()
    files: Sequence[str] = ()
    options: Mapping[str, Any] | None = None
    rounds: int | None = None
    cohort: Cohort = None
    min_sites: int = 1
    quorum: int | None = None
    over_select: float = 1.0
    late: Late = "drop"
    deadline: Deadline | None = None
    metrics: Sequence[str | Metric] = ()
    evaluate: int = 1
    panel: float | int | None = None
    best: str | None = None
    stop: Stop | None = None
    start: Any = None
    privacy: Any = None
    purpose: str = ""
    compress: Any = None
    track: Any = None


@dataclass(frozen=True)
class Job(Options):
    """An algorithm, a learner and a way to load a site's data, with the rules of the run.

    `Job(algorithm, learner=None, data=None, *, rounds=…, stop=…, …)`: docs/job.md has every argument; all are checked.
    Raises JobError or Incompatible with the remedy.
    """

    algorithm: Algorithm = field(kw_only=False)
    learner: Learner | None = field(default=None, kw_only=False)
    data: Callable[..., Any] | None = field(default=None, kw_only=False)

    def __post_init__(self) -> None:
        _check(self)
        check_parts(self)

    def replace(self, **changes: Any) -> Job:
        """The same Job with these arguments changed."""
        return dataclasses.replace(self, **changes)

    def given(self, **changes: Any) -> Job:
        """The same Job with those of these arguments that are not None: what a command line says in their place."""
        return self.replace(**{name: value for name, value in changes.items() if value is not None})

    def run(
        self,
        sites: Any = None,
        backend: str = "auto",
        seed: int = 0,
        rounds: int | None = None,
        workers: int | None = None,
        exact: bool = False,
        replay: Any = None,
        clock: Clock | None = None,
        resources: Mapping[str, float] | None = None,
        address: str | None = None,
        progress: bool | None = None,
    ) -> Result:
        """Runs the Job on this machine and returns its Result.

        `sites`: a count, a mapping name -> folder, frame or Split, or `fd.Sites`; its values are taken when needed.
        `replay`: a Result or RUN whose rosters and counted sets are followed. `clock`: `fd.clock(…)`, by which sites
        take simulated time. On backend `ray`, `resources` are what a site's work takes, as {"cpu": 1, "gpu": 0.25}, and
        `address` is that of the cluster. `progress`: a live bar where True (lines where there is no terminal and no
        notebook), none where False; None has one on a terminal and in a notebook alone. The run is kept in
        FOEDUS_HOME/runs.
        """
        from foedus import launch  # the one arrow that points up: see docs/design.md

        job = self if rounds is None else self.replace(rounds=rounds)
        how = {"backend": backend, "seed": seed, "workers": workers, "exact": exact, "replay": replay, "clock": clock}
        return launch.run(job, sites, resources=resources, address=address, show=progress, **how)

    @property
    def method(self) -> Algorithm:
        """The algorithm with what the Job adds to it: its compression, a seal, a choice of sites by their losses."""
        found = private(self.algorithm, self.dp_sgd, self.learner, self.rounds) if self.dp_sgd else self.algorithm
        found = self._noised(found)
        found = (
            dp_metrics.analysed(found, self.dp_metrics) if self.dp_metrics and dp_metrics.blocks_of(found) else found
        )
        found = spread(found) if self.seal and self.exact_sums else found
        links = chain(*self.links)
        found = transformed(found, at_home(links) if self.seal or self.he else links) if self.links else found
        found = sealed(found, self.seal, self.least, self.quorum) if self.seal else found
        found = encrypted(found, self.he) if self.he else found
        chosen = self.cohort.trains if isinstance(self.cohort, Participation) and self.cohort.by_loss else None
        return by_loss(found, chosen) if chosen else found

    @property
    def links(self) -> Sequence[Transform]:
        """The Transforms of updates, in their order."""
        return [self.compress] if isinstance(self.compress, Transform) else self.compress or ()

    @property
    def least(self) -> int:
        """How many updates a Task needs: `min_sites`, or what the algorithm's aggregator needs."""
        summed = self.seal.needed(0) if self.seal else LEAST if self.he else 1
        return max(self.min_sites, needed(self.algorithm.traits), summed)

    @property
    def seal(self) -> Secagg | None:
        """How updates are sealed, if they are."""
        found = next((x for x in self.protections if isinstance(x, Secagg)), None)
        alike = self.site_level or self.exact_sums  # all sites weigh 1 there
        return found._replace(wmax=found.wmax or 1.0) if found and alike else found

    @property
    def exact_sums(self) -> bool:
        """Whether the algorithm asks for nothing but sums of all sites, which limbs can hold."""
        return "exact" in self.algorithm.traits

    @property
    def he(self) -> He | None:
        """How updates are encrypted, if they are."""
        found = next((x for x in self.protections if isinstance(x, He)), None)
        return found._replace(wmax=found.wmax or 1.0) if found and self.site_level else found  # all weigh 1 there

    @property
    def dp_sgd(self) -> DpSgd | None:
        """How sites train by DP-SGD, if they do."""
        return next((x for x in self.protections if isinstance(x, DpSgd)), None)

    @property
    def site_level(self) -> CentralDp | LocalDp | DistributedDp | DpFtrl | None:
        """How updates are noised as a whole, if they are."""
        return next((x for x in self.protections if isinstance(x, SITE_LEVEL)), None)

    def _noised(self, algorithm: Algorithm) -> Algorithm:
        """The algorithm with its updates noised as a whole, if they are."""
        how = self.site_level
        if isinstance(how, DistributedDp):
            return distributed.noised(algorithm, how, self.seal, self.rounds) if self.seal else algorithm
        if isinstance(how, DpFtrl):
            return ftrl.noised(algorithm, how, self.rounds)
        return site_level.noised(algorithm, how, self.rounds) if how else algorithm

    @property
    def protections(self) -> Sequence[Any]:
        """What `privacy=…` names, one or several; a word as what it stands for."""
        return presets.parts(self.privacy)

    @property
    def dp_metrics(self) -> DpMetrics | None:
        """How metrics are noised, if they are."""
        return next((x for x in self.protections if isinstance(x, DpMetrics)), None)

    @property
    def releases(self) -> tuple[int, int]:
        """(metrics of a part in one evaluation that may have noise, evaluations of a run at most)."""
        if blocks := dp_metrics.blocks_of(self.algorithm):
            return len(blocks), 1
        models, sent = 1 if self.method.personal is None else 2, counted(list(self.table().values()))
        return models * max(1, len(sent)), (self.rounds or 1) // max(1, self.evaluate) + 1

    def _measuring(self, work: Work) -> Work:
        how = self.dp_metrics
        return dp_metrics.noised(work, how, list(self.table().values()), *self.releases) if how else work

    def table(self) -> dict[str, Metric]:
        """name -> Metric: the loss, and the metrics of the Job or, where it names none, of its learner."""
        named = self.metrics or (self.learner.metrics if self.learner else ())
        found = [metric("loss"), *map(metric, named)]
        if self.dp_metrics:
            found = [m._replace(interval=None) for m in found]  # they would know nothing of the noise
        return {m.name: m for m in found}

    def declared(self) -> list[str]:
        """The names under which sums may leave a site: of its metrics, and what its algorithm tells beside them."""
        return sorted({*self.table(), *tells(self.algorithm.traits)})

    def bench(self, seed: int, learner: Learner | None = None) -> Bench:
        """What performs this Job's works at one place; `learner`: in the place of the Job's own."""
        contract = Contract(self.datasets, schemas.read(self.schema))
        method, metrics = self.method, list(self.table().values())
        here = learner or self.learner
        return Bench(
            works=method.works,
            learner=here,
            load=self.data,
            metrics=metrics,
            seed=seed,
            contract=contract,
            personal=method.personal,
            tells=tells(method.traits),
            measuring=self._measuring,
            columns=list(self.columns),
        )

    def plan(self, seed: int) -> Plan:
        """What the round loop needs."""
        return Plan(
            algorithm=self.method,
            start=partial(self.first, seed),
            metrics=self.table(),
            seed=seed,
            rounds=self.rounds,
            cohort=self.cohort,
            over_select=self.over_select,
            min_sites=self.least,
            quorum=self.quorum,
            late=self.late,
            deadline=self.deadline or Deadline(),
            evaluate=self.evaluate if self.learner or self.algorithm.measure else 0,
            panel=self.panel,
            best=self.best,
            stop=self.stop,
            measuring=measuring(self.seal, self.least) if self.seal else None,
        )

    def first(self, seed: int) -> Params:
        """The first global model: from `start` (a file, a Result, a mapping of arrays), else from the learner."""
        if self.start is not None:
            return _started(self.start)
        return self.learner.init(key(seed, 0, 0, "server", "init")) if self.learner else Params({})

    def describe(self) -> dict[str, Any]:
        """The resolved Job as plain data: what is printed, journaled and compared on resume."""
        shown = {"privacy": presets.plain(self.privacy)}
        found = [(field, shown.get(field.name, getattr(self, field.name))) for field in dataclasses.fields(self)]
        return {f.name: described(x) for f, x in found if not (type(x) is type(f.default) and x == f.default)}

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of the description."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()


def _check(job: Job) -> None:
    for name in NOT_BUILT:
        if getattr(job, name) not in (None, "none"):
            raise NotImplementedError(f"Job({name}=...) is not built yet")
    if not isinstance(job.algorithm, Algorithm):
        name = getattr(job.algorithm, "__name__", "")
        meant = f"write {name}()" if callable(job.algorithm) and name else f"this is {job.algorithm!r}"
        raise JobError(f"a Job's first argument is an algorithm, for example fd.fedavg(); {meant}")
    if job.rounds is None and job.stop is None:
        raise JobError("a Job needs rounds=… or stop=…, or it would never end")
    for name, least in (("rounds", 1), ("min_sites", 1), ("quorum", 1), ("evaluate", 0)):
        value = getattr(job, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise JobError(f"Job({name}={value!r}): it must be a whole number of at least {least}")
    if job.name is not None and not re.fullmatch(r"[\w.-]+", job.name):
        raise JobError(f"Job(name={job.name!r}): it names a folder, so write letters, digits, '_', '.' and '-'")
    if job.late not in ("drop", "keep"):
        raise JobError(f"Job(late={job.late!r}): it is 'drop' or 'keep'")
    if not 1 <= job.over_select < math.inf:
        raise JobError(f"Job(over_select={job.over_select}): it must be at least 1 (1.3 asks 30 % more)")
    _check_columns(job)
    _check_cohort("cohort", job.cohort)
    _check_cohort("panel", job.panel)
    _check_compress(job.compress)
    _check_privacy(job)
    known = job.table()
    if job.best is not None and job.best.removeprefix("personal_") not in known:
        raise JobError(f"Job(best={job.best!r}): it is none of the metrics {sorted(known)}")


def _check_privacy(job: Job) -> None:
    strange = [x for x in job.protections if not isinstance(x, (Secagg, He, DpSgd, DpMetrics, *SITE_LEVEL))]
    kinds = [type(x) for x in (job.seal, job.he, job.dp_sgd, job.site_level, job.dp_metrics) if x is not None]
    if strange or len(kinds) < len(job.protections):
        raise JobError(
            f"Job(privacy={job.privacy!r}): it is 'none', 'secagg', 'hospital', fd.secagg(…), fd.dp_sgd(…), "
            "fd.central_dp(…), fd.dp_ftrl(…), fd.distributed_dp(…), fd.local_dp(…), fd.dp_metrics(…), fd.he(…), or a "
            "list of one of each kind"
        )
    if job.dp_sgd is not None:
        whose = getattr(
            job.learner, "unfit", lambda: f"{type(job.learner).__name__}: take a TorchLearner or NumpyLearner"
        )
        if why := whose():
            raise Incompatible(f"dp_sgd and this learner do not go together, for the gradients of {why}")


def _check_columns(job: Job) -> None:
    names = job.columns
    texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) and name for name in names)
    if not texts or len({*names}) < len(names):
        raise JobError(
            f"Job(columns={names!r}): give the features' names in their order, as ['age', 'dose'], each once"
        )
    if names and hasattr(job.learner, "hold"):
        raise JobError("Job(columns=…): a script reads its data itself; leave columns out, and put them in order there")


def _check_cohort(name: str, cohort: Cohort) -> None:
    if cohort is None or (callable(cohort) and name == "cohort"):
        return
    good = not callable(cohort) and (cohort >= 1 if isinstance(cohort, int) else 0 < cohort <= 1)
    if isinstance(cohort, bool) or not good:
        raise JobError(
            f"Job({name}={cohort!r}): a whole number counts sites, a float in (0, 1] is a share, None is all"
            + (", a rule of fd.participation or a function draws them" if name == "cohort" else "")
        )


def _check_compress(compress: Any) -> None:
    links = [compress] if isinstance(compress, Transform) else compress or ()
    if not isinstance(links, (list, tuple)) or not all(isinstance(link, Transform) for link in links):
        raise JobError(
            f"Job(compress={compress!r}): a Transform, or a list of them, for example [fd.top_k(0.01), fd.int8()]"
        )


def _started(start: Any) -> Params:
    if isinstance(start, (str, os.PathLike)):
        return frames.read_model(home.model_file(start))
    params = getattr(start, "params", start)
    return params if isinstance(params, Params) else Params(params)


def described(value: Any, depth: int = 0) -> Any:
    """`value` as plain data that two equal Jobs have in common: functions by name and settings, arrays by digest."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > MOST_DEPTH:
        return type(value).__qualname__
    deeper = partial(described, depth=depth + 1)
    if hasattr(value, "describe"):
        return value.describe()
    if isinstance(value, (np.generic, np.ndarray, Params)):
        return digest(value if isinstance(value, Params) else {"": value})
    if isinstance(value, partial):
        return [*map(deeper, (value.func, value.args, value.keywords))]
    if isinstance(value, Mapping):
        return {str(k): deeper(v) for k, v in value.items()}
    if hasattr(value, "_fields"):
        return {name: deeper(getattr(value, name)) for name in value._fields}
    if isinstance(value, (list, tuple)):
        return [deeper(v) for v in value]
    if callable(value) and hasattr(value, "__qualname__"):
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        return [value.__module__, value.__qualname__, *map(deeper, cells)]
    return [type(value).__module__, type(value).__qualname__]
