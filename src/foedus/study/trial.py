"""Trial: one run of a study, found finished, resumed or begun; and the method and options that it tries.
The launcher comes in; a trial's folder is named by all that its bits depend on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foedus import launch, runs
from foedus.data import Sites
from foedus.errors import FoedusError
from foedus.job import Job
from foedus.privacy.secagg import visible
from foedus.remote import Remote
from foedus.study import variants

MOST_DIGESTED = 1000  # sites whose arrays name a trial, too


class Place(NamedTuple):
    """Where a study's runs are, on which backend they run, who hears of it; their job file, and what names its code."""

    folder: Path
    backend: str
    workers: int | None
    say: Callable[[str], object]
    file: Path | None = None
    code: str = ""


class Trial(NamedTuple):
    """One run: of what, under which options and seed, over which sites or which federation.

    `asked` are the words by which a federation's sites build the same Job.
    """

    name: str
    options: Mapping[str, Any]
    seed: int
    job: Job
    sites: Any
    asked: Mapping[str, Any] = {}


def done(trial: Trial, place: Place, backend: str | None = None) -> Path:
    """The folder of the trial's finished run; one that is not there is begun, one that was cut off goes on."""
    folder = place.folder / "runs" / named(trial, place.code)
    if not (folder / "run.db").exists() or not runs.journal(folder).find("end"):
        if isinstance(trial.sites, Remote):
            assert place.file is not None
            name = f"study-{folder.name[-12:]}"
            run = variants.submitted(trial.sites, place.file, trial.asked, trial.seed, name)
            run.wait(folder=folder, progress=False, say=lambda text: None)
        else:
            _simulated(trial, folder, backend or place.backend, place.workers)
        place.say(said(trial))
    return folder


def _simulated(trial: Trial, folder: Path, backend: str, workers: int | None) -> None:
    exact = backend == "auto"  # it was chosen before: now it may only grow into what has the same bits
    how: Any = {"backend": backend, "seed": trial.seed, "workers": workers, "exact": exact}
    how["say"] = lambda text: None  # the Study says which sites were left out
    job = trial.job.replace(privacy=visible(trial.job.protections)) if trial.job.seal else trial.job
    launch.run(job, trial.sites, folder=folder, **how)


def said(trial: Trial) -> str:
    """`FedProx, lr=0.05, seed 3`."""
    return ", ".join([trial.name, *(f"{k}={v}" for k, v in trial.options.items()), f"seed {trial.seed}"])


def named(trial: Trial, code: str = "") -> str:
    """The folder's name: readable, and another one for another Job, seed, data or job file."""
    names = [said(trial), trial.job.digest, held(trial.sites), code]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    words = re.sub(r"[^\w.=-]+", "-", said(trial)).strip("-")
    return f"{words[:80]}-{digest[:12]}"


def held(sites: Any) -> Any:
    """What names the sites' data: its digest, or where it is."""
    if isinstance(sites, Remote):
        return sites.member.federation.id
    data = launch.bind(sites)
    if len(data) > MOST_DIGESTED:
        return [len(data), data.names[0], data.names[-1]]
    try:
        return Sites({name: data[name] for name in data.names}).digest
    except FoedusError:
        return [[name, str(data[name]) if isinstance(data[name], (str, Path)) else ""] for name in data.names]
