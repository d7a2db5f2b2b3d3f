"""Trial: one run of a study, found finished, resumed or begun; and the method and options that it tries.
The launcher comes in; a trial's folder is named by all that its bits depend on."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foedus import jobfile, launch, runs
from foedus.data import Sites
from foedus.errors import FoedusError, JobError
from foedus.job import Job

MOST_DIGESTED = 1000  # sites whose arrays name a trial, too
Grid = Mapping[str, Sequence[Any]]


class Place(NamedTuple):
    """Where a study's runs are, on which backend they run, and who hears of it."""

    folder: Path
    backend: str
    workers: int | None
    say: Callable[[str], object]


class Trial(NamedTuple):
    """One run: of what, under which options and seed, over which sites."""

    name: str
    options: Mapping[str, Any]
    seed: int
    job: Job
    sites: Any


def done(trial: Trial, place: Place, backend: str | None = None) -> Path:
    """The folder of the trial's finished run; one that is not there is begun, one that was cut off goes on."""
    folder = place.folder / "runs" / named(trial)
    if not (folder / "run.db").exists() or not runs.journal(folder).find("end"):
        chosen = backend or place.backend
        how = {"backend": chosen, "seed": trial.seed, "workers": place.workers, "exact": chosen == "auto"}
        launch.run(trial.job, trial.sites, folder=folder, **how)  # type: ignore[arg-type]
        place.say(said(trial))
    return folder


def said(trial: Trial) -> str:
    """`FedProx, lr=0.05, seed 3`."""
    return ", ".join([trial.name, *(f"{k}={v}" for k, v in trial.options.items()), f"seed {trial.seed}"])


def named(trial: Trial) -> str:
    """The folder's name: readable, and another one for another Job, seed or data."""
    names = [trial.job.digest, trial.seed, held(trial.sites)]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    words = re.sub(r"[^\w.=-]+", "-", said(trial)).strip("-")
    return f"{words[:80]}-{digest[:12]}"


def held(sites: Any) -> Any:
    """What names the sites' data: its digest, or where it is."""
    data = launch.bind(sites)
    if len(data) > MOST_DIGESTED:
        return [len(data), data.names[0], data.names[-1]]
    try:
        return Sites({name: data[name] for name in data.names}).digest
    except FoedusError:
        return [[name, str(data[name]) if isinstance(data[name], (str, Path)) else ""] for name in data.names]


def methods(job: Any) -> dict[str, Any]:
    """name -> Job, or a function of options that returns one; from one of them, a mapping, or a job file."""
    if isinstance(job, (str, Path)):
        module = jobfile.imported(job)
        job = getattr(module, "methods", None) or getattr(module, "job", None)
    found = dict(job) if isinstance(job, Mapping) else {"job": job}
    for name, made in found.items():
        if not isinstance(name, str) or not name or not (isinstance(made, Job) or callable(made)):
            raise JobError(f"method {name!r} is {type(made).__name__}: give a fd.Job, or a function that returns one")
    if not found:
        raise JobError("compare needs at least one method: {name: fd.Job, or a function that returns one}")
    return found


def grid(name: str, made: Any, tune: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options that a method is tried with: all combinations of `tune`, and of what it has for this method alone."""
    own = {key: value for key, value in tune.items() if not isinstance(value, Mapping)} | dict(tune.get(name, {}))
    if own and isinstance(made, Job):
        raise JobError(f"method {name!r} is a Job, which has no options to tune: give a function of {', '.join(own)}")
    for option, values in own.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise JobError(f"tune={{{option!r}: {values!r}}}: give a list of values")
    for values in itertools.product(*own.values()):
        chosen = dict(zip(own, values, strict=True))
        yield jobfile.typed(made, chosen) if chosen else {}


def built(name: str, made: Any, options: Mapping[str, Any]) -> Job:
    """The method's Job under these options. Raises JobError."""
    job = made if isinstance(made, Job) else made(**options)
    if not isinstance(job, Job):
        raise JobError(f"method {name!r} returned {type(job).__name__}: return a fd.Job")
    return job
