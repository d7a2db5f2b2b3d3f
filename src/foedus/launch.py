"""Starts runs on this machine: resolves the backend's name, binds sites to data, replays.
Everything below may come in, each backend only when it is named."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from foedus import build, runs
from foedus.core import Runner
from foedus.errors import JobError, Paused
from foedus.job import Job
from foedus.journal import Journal
from foedus.result import Result
from foedus.run import Checkpoints, Ended, Plan, execute

BACKENDS = ("auto", "local", "processes", "network")
Told = Callable[[Mapping[str, Any]], None]


def run(
    job: Job,
    sites: Any,
    *,
    backend: str = "auto",
    seed: int = 0,
    workers: int | None = None,
    exact: bool = False,
    replay: Any = None,
    folder: Path | None = None,
    source: Mapping[str, Any] | None = None,
    told: Told = lambda row: None,
) -> Result:
    """Runs `job` over `sites` and keeps the run in `folder` (a new one in FOEDUS_HOME/runs by default).

    A folder that holds an unfinished run of the same Job is resumed. `source` says how the Job was made, for `resume`.
    """
    backend = resolve(backend, exact)
    data = bind(sites)
    if backend == "network":
        from foedus import jobfile, loopback

        known = source or {"file": jobfile.found(job).path, "rounds": job.rounds}
        return loopback.run(job, data, seed=seed, folder=folder or runs.new_folder(job.name), source=known, told=told)
    script = runs.script_of(replay)
    with runs.opened(folder or runs.new_folder(job.name)) as (place, journal), build.exactly():
        began = time.monotonic()
        about = {
            "job": job.digest,
            "seed": seed,
            "description": job.describe(),
            "backend": backend,
            "exact": True,
            "build": build.describe(),
            "source": dict(source or {}),
            "sites": sorted(data),
        }
        _open(journal, about)
        with crew(backend, job, data, seed, workers, partial(_survived, journal)) as hands:
            runner = simulate(hands, sorted(data), journal, seed, job.min_sites, script)
            plan = job.plan(seed)
            ended = _executed(plan, runner, journal, place, script, told)
        runs.finish(journal, place, ended, time.monotonic() - began)
    return runs.result(place)


def resolve(backend: str, exact: bool = False) -> str:
    """The backend of that name; `auto` is `local` for now."""
    if backend not in BACKENDS:
        raise JobError(f"there is no backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    return "local" if backend == "auto" else backend


def bind(sites: Any) -> dict[str, Any]:
    """name -> data, from a count, a mapping or `fd.Sites`, or from a function that gives one of these."""
    sites = sites() if callable(sites) else sites
    if isinstance(sites, int) and not isinstance(sites, bool) and sites > 0:
        width = len(str(sites - 1))
        return {f"site-{i:0{width}}": i for i in range(sites)}
    if isinstance(sites, Mapping) and sites:
        return {str(name): sites[name] for name in sites}
    raise JobError(f"sites={sites!r}: give a count, a mapping name -> folder, frame or Split, or fd.Sites")


@contextmanager
def crew(
    backend: str,
    job: Job,
    data: Mapping[str, Any],
    seed: int,
    workers: int | None,
    note: Callable[[str], object] = lambda why: None,
) -> Iterator[Any]:
    """Who does the sites' work; `note` hears of mishaps that the run survives."""
    if backend == "processes":
        from foedus.backends import processes

        with processes.crew(job, data, seed, workers, note) as hands:
            yield hands
        return
    from foedus.backends.local import Here

    yield Here(job.bench(seed), data)


def simulate(hands: Any, sites: list[str], journal: Journal, seed: int, least: int, script: Journal | None) -> Runner:
    from foedus.backends.simulation import Simulation

    return Simulation(hands, sites, journal, seed, least, script)


def _survived(journal: Journal, why: str) -> None:
    journal.add("event", what="worker died", why=why, at=time.time())


def _executed(plan: Plan, runner: Runner, journal: Journal, place: Path, script: Journal | None, told: Told) -> Ended:
    try:
        return execute(plan, runner, journal, Checkpoints(place), script, told)
    except Paused as error:
        journal.add("event", what="paused", why=str(error), at=time.time())
        raise


def _open(journal: Journal, about: Mapping[str, Any]) -> None:
    """The run's first row; a run that goes on under another build says that its bits cannot be compared."""
    journal.add("open", **about)
    odd = build.differences((journal.find("open") or about)["build"], about["build"])
    if odd:
        journal.add("event", what="build", why=f"bits not comparable: {'; '.join(odd)}", at=time.time())


def verify(folder: Path, job: Job, sites: Any) -> dict[str, Any]:
    """Replays a finished run in `local`, and compares rounds and digest: `same`, and if not, `why`."""
    kept, old = runs.result(folder), runs.journal(folder)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "replay"
        seed = int(runs.about(folder)["seed"])
        new = run(job, sites, backend="local", seed=seed, replay=kept, folder=place)
        steps = runs.journal(place).all("step")
    why = next((f"round {row['round']}" for row in steps if row["digest"] != runs.state_digest(old, row["round"])), "")
    odd = build.differences(dict(kept.build), dict(new.build))
    same = new.digest == kept.digest
    if not same and odd:
        why += f" (bits not comparable: {'; '.join(odd)})"
    if not same and job.digest != runs.about(folder)["job"]:
        why += " (the Job is not the one that was run)"
    return {"run": folder.name, "same": same, "digest": kept.digest, "replayed": new.digest, "why": "" if same else why}
