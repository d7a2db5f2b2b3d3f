"""Starts runs on this machine: resolves the backend's name, binds sites to data, replays.
Everything below may come in, each backend only when it is named."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foedus import build, midway, pool, runs
from foedus.absent import Teller, log
from foedus.clock import Clock, Watch
from foedus.core import Runner
from foedus.data import Sites
from foedus.errors import JobError, Missing, Paused
from foedus.job import Job, described
from foedus.journal import Journal
from foedus.params import Params
from foedus.pool import Pool
from foedus.privacy import presets
from foedus.result import Result
from foedus.retrain import Before
from foedus.run import MOST_MEASURED, PANEL, Checkpoints, Ended, Plan, execute
from foedus.work import Bench

BACKENDS = ("auto", "local", "vectorized", "processes", "ray", "network")
GAIN = 1.5  # by which training together must beat one site after another, where both use all cores
CLOSE = ("vectorized",)  # whose bits another run only comes near
TRIM, WHOLE = (-1, 1 << 28), (-3, 1 << 25)  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes
Told = Callable[[Mapping[str, Any]], None]


def run(
    job: Job,
    sites: Any,
    *,
    backend: str = "auto",
    seed: int = 0,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    address: str | None = None,
    exact: bool = False,
    replay: Any = None,
    folder: Path | None = None,
    source: Mapping[str, Any] | None = None,
    told: Told = lambda row: None,
    say: Callable[[str], object] | None = None,
    clock: Clock | None = None,
    after: Before | None = None,
    show: bool | None = False,
) -> Result:
    """Runs `job` over `sites` and keeps the run in `folder` (a new one in FOEDUS_HOME/runs by default).

    A folder that holds an unfinished run of the same Job is resumed. `source` says how the Job was made, for `resume`.
    `resources` of a site's work and `address` of the cluster are of the backend `ray`.
    `told` hears of each round, `say` of what was chosen and of mishaps; without it, Python's log hears of sites that do
    not count. By `clock` sites take simulated time. `after`
    says what of another run counts already. `show` is Job.run's `progress`.
    """
    from foedus.report import live

    heard, say = say or log.warning, say or (lambda text: None)
    backend = resolve(backend, exact)
    if backend != "ray" and (resources or address):
        raise JobError("resources=… and address=… are of the backend 'ray': name it, or leave them out")
    if workers is not None:
        from foedus.backends.processes import check

        check(workers)
    if clock is not None and not isinstance(clock, Clock):
        raise JobError(f"clock={clock!r}: give fd.clock(…)")
    if backend not in ("ray", "network"):  # whose workers are elsewhere
        getattr(job.learner, "ready", lambda: None)()
    data = bind(sites)
    backend, why = chosen(backend, exact or replay is not None, job, data, seed)
    place = folder or runs.new_folder(job.name)
    if backend == "network":
        if clock is not None:
            raise JobError("clock=… is of simulations: on backend 'network' time is real; leave one of them out")
        return _on_loopback(job, data, seed, place, source, told, say, heard, show)
    script = runs.script_of(replay)
    _keep_memory()
    with runs.opened(place) as (place, journal), build.exactly(), _passed_over():
        began = time.monotonic()
        timed = described(clock) if clock else (script and (script.find("open") or {}).get("clock"))
        _open(journal, _about(job, data, seed, backend, source) | ({"clock": timed} if timed else {}))
        if after is not None:
            after.into(journal, place)
        note, watch = partial(_note, journal, say), Watch(clock, seed, bool(timed))
        if why:
            note(why, what="backend")
        if job.learner and job.evaluate and job.panel is None and len(data) > MOST_MEASURED:
            note(f"on {PANEL:,} of {len(data):,} sites, the same each time; panel=… says on how many", "evaluation")
        for line in presets.said(job.privacy, job.method.traits):
            note(line, "privacy") if job.protections else say(f"privacy: {line}")
        with live.followed(journal, show, Teller(heard).hear), midway.at(place / midway.FOLDER):
            with crew(backend, job, data, seed, workers, note, resources, address) as hands, ExitStack() as ending:
                ending.callback(getattr(job.learner, "close", lambda: None))
                runner = simulate(hands, data, journal, seed, job.least, script, watch, place)
                ended = _executed(job.plan(seed), runner, journal, place, script, told, watch)
                if job.method.personal:
                    runner.saved()  # which writes what the sites keep
            runs.finish(journal, place, ended, time.monotonic() - began)
    return with_own(runs.result(place), job)


@contextmanager
def _passed_over() -> Iterator[None]:
    """Inside the block Python's collector passes over what is there already: beside torch each look takes 0.1 s."""
    ours = not gc.get_freeze_count()
    if ours:
        gc.collect(1)
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def _keep_memory() -> None:
    """Has glibc keep what one round frees for the next: asking the system again takes a tenth of a short round."""
    with suppress(OSError, AttributeError):  # another C library
        for setting, size in (TRIM, WHOLE):
            ctypes.CDLL(None).mallopt(setting, size)


def with_own(result: Result, job: Job) -> Result:
    """The Result of a simulation, which then gives the sites' own models, if the Job's algorithm makes any."""
    if job.method.personal is None:
        return result
    return dataclasses.replace(result, own=partial(_own, job.bench(0), result))


def _own(bench: Bench, result: Result, site: str) -> Params | None:
    from foedus.backends.locals import Locals

    assert bench.personal is not None
    kept, work = Locals(result.folder), bench.personal.work
    kept.read()
    return bench.own_model(result.params, {work: kept.get(work, site)})


def _about(job: Job, data: Pool, seed: int, backend: str, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """A run's first row."""
    return {
        "job": job.digest,
        "seed": seed,
        "description": job.describe(),
        "backend": "local" if backend == "auto" else backend,  # it begins there, and has its bits
        "exact": backend not in CLOSE,
        "build": build.describe(),
        "source": dict(source or {}),
        "sites": pool.told(data.names),
    }


def _on_loopback(
    job: Job,
    data: Pool,
    seed: int,
    place: Path,
    source: Mapping[str, Any] | None,
    told: Told,
    say: Callable[[str], object],
    heard: Callable[[str], object],
    show: bool | None,
) -> Result:
    """The Result of a federation of its own, whose server keeps the journal; until it is here, its first row is."""
    from foedus import jobfile, loopback

    known = source or {"file": str(jobfile.found(job).path), "options": {}, "rounds": job.rounds}
    with runs.opened(place) as (_, journal):
        _open(journal, _about(job, data, seed, "network", known))
    return loopback.run(job, data, seed=seed, folder=place, source=known, told=told, say=say, heard=heard, show=show)


def resolve(backend: str, exact: bool = False) -> str:
    """The backend of that name; `auto` is decided when the Job and its sites are there. Raises JobError, Missing."""
    if backend not in BACKENDS:
        raise JobError(f"there is no backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    for library in ("ray", "cloudpickle") if backend == "ray" else ():
        if find_spec(library) is None:
            raise Missing(library, "ray")
    if exact and backend in CLOSE:
        raise JobError(f"backend {backend!r} only comes close, and --exact forbids that: use local or processes")
    return backend


def chosen(backend: str, exact: bool, job: Job, data: Mapping[str, Any], seed: int) -> tuple[str, str]:
    """The backend, and if `auto` chose it, why: `vectorized` where training together gains enough.

    Where a learner that trains sites together cannot do so here, that is told, too.
    """
    if backend != "auto" or exact:
        return backend, ""
    from foedus.backends import auto

    with build.exactly():
        found = auto.gain(job, data, seed)
    if found.times <= GAIN or found.seconds * (1 - 1 / found.times) < auto.WORTH:
        could = found.why and hasattr(job.learner, "together")
        return "auto", f"sites train one after another: {found.why}" if could else ""
    return (
        "vectorized",
        f"vectorized, {found.times:.0f} times as fast as one site after another; close, not the same bits",
    )


def bind(sites: Any) -> Pool:
    """name -> data, from a count, a mapping or `fd.Sites`, or from a function that gives one of these.

    What a mapping makes on access is made when a site needs it, and copied nowhere. Raises JobError.
    """
    sites = sites() if callable(sites) else sites
    if isinstance(sites, int) and not isinstance(sites, bool) and sites > 0:
        return pool.counted(sites, int)
    if isinstance(sites, (Sites, Pool)):
        return Pool(sites.names, sites.__getitem__)
    if isinstance(sites, Mapping) and sites:
        keys = {} if all(isinstance(name, str) for name in sites) else {str(name): name for name in sites}
        return Pool(sorted(keys or sites), partial(_held, sites, keys))
    if sites is None:
        raise JobError("no sites are named: give --site NAME=PATH for each, or define `sites` in the job file")
    raise JobError(f"sites={sites!r}: give a count, a mapping name -> folder, frame or Split, or fd.Sites")


def apart_from(without: Collection[str], sites: Any) -> Pool:
    """The sites but those. Raises JobError where none are left."""
    data = bind(sites)
    names = [name for name in data.names if name not in without]
    if not names:
        raise JobError(f"without {', '.join(sorted(without))} no site is left")
    return Pool(names, data.get)


def _held(sites: Mapping[Any, Any], keys: Mapping[str, Any], name: str) -> Any:
    return sites[keys.get(name, name)]


def crew(
    backend: str,
    job: Job,
    data: Mapping[str, Any],
    seed: int,
    workers: int | None,
    note: Callable[..., object] = lambda why, what="": None,
    resources: Mapping[str, float] | None = None,
    address: str | None = None,
) -> AbstractContextManager[Any]:
    """Who does the sites' work; `note` hears of mishaps that the run survives."""
    if backend == "processes":
        from foedus.backends import processes

        return processes.crew(job, data, seed, workers, note)
    if backend == "ray":
        from foedus.backends import ray

        return ray.crew(job, data, seed, workers, note, address, resources)
    if backend == "auto":
        from foedus.backends import auto

        start = partial(crew, "processes", job, data, seed, workers, note)
        return auto.crew(job, data, seed, start, partial(note, what="backend"))
    if backend == "vectorized":
        from foedus.backends import together

        return together.crew(job, data, seed, workers, note)
    from foedus.backends.local import Here

    return nullcontext(Here(job.bench(seed), data))


def simulate(
    hands: Any,
    data: Pool,
    journal: Journal,
    seed: int,
    least: int,
    script: Journal | None,
    watch: Watch,
    place: Path,
) -> Runner:
    from foedus.backends.locals import Locals
    from foedus.backends.simulation import Simulation

    return Simulation(hands, data.names, journal, seed, least, script, watch, Locals(place))


def _quiet(text: str) -> None:
    """Says nothing: what is replayed was told before."""


def _note(journal: Journal, say: Callable[[str], object], why: str, what: str = "worker died") -> None:
    journal.add("event", what=what, why=why, at=time.time())
    say(f"{what}: {why}")


def _executed(
    plan: Plan, runner: Runner, journal: Journal, place: Path, script: Journal | None, told: Told, watch: Watch
) -> Ended:
    try:
        return execute(plan, runner, journal, Checkpoints(place), script, told, watch)
    except Paused as error:
        journal.add("event", what="paused", why=str(error), at=time.time())
        raise Paused(f"{error}: `foedus resume {place.name}`", error.absent) from error


def _open(journal: Journal, about: Mapping[str, Any]) -> None:
    """The run's first row; a run that goes on under another build says that its bits cannot be compared."""
    journal.add("open", **about)
    odd = build.differences((journal.find("open") or about)["build"], about["build"])
    if odd:
        journal.add("event", what="build", why=f"bits not comparable: {'; '.join(odd)}", at=time.time())


def verify(folder: Path, job: Job, sites: Any) -> dict[str, Any]:
    """Replays a finished run in `local`, and compares rounds and digest: `same`, and if not, `why`.

    Without the data of every site that was counted nothing is replayed: `same` is None, and `needs` names the sites.
    JournalError if the journal's chain is broken.
    """
    kept, old = runs.result(folder), runs.journal(folder)
    found: dict[str, Any] = {
        "run": folder.name,
        "same": None,
        "digest": kept.digest,
        "replayed": None,
        "needs": [],
        "why": "",
    }
    if kept.digest != (old.find("end") or {})["digest"]:
        return found | {"same": False, "why": "final.safetensors is not the model that the journal names"}
    data = Pool((), str) if sites is None else bind(sites)
    if needs := sorted(site for site in _counted(old) if site not in data):
        return found | {"needs": needs, "why": f"to replay it, the data of {', '.join(needs)} is needed here"}
    others = _others(old, data)
    return found | _replayed(kept, job, Pool(sorted([*others, *data]), data.get) if others else data)


def _counted(journal: Journal) -> set[str]:
    """The sites of which an update was ever counted."""
    return {site for row in journal.all("close") for site, _, _ in row["counted"]}


def _others(journal: Journal, data: Pool) -> set[str]:
    """The sites of the rosters whose data is not here."""
    rosters = [journal.roster(row["round"]) for row in journal.all("roster")]
    return {site for roster in rosters if roster != data.names for site in roster if site not in data}


def _replayed(kept: Result, job: Job, sites: Any) -> dict[str, Any]:
    about, old = runs.about(kept.folder), runs.journal(kept.folder)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "replay"
        new = run(job, sites, backend="local", seed=int(about["seed"]), replay=kept, folder=place, say=_quiet)
        again = runs.journal(place)
    if new.digest == kept.digest:
        return {"same": True, "replayed": new.digest}
    steps = again.all("step")
    why = next((f"round {row['round']}" for row in steps if row["digest"] != runs.state_digest(old, row["round"])), "")
    if odd := build.differences(dict(kept.build), dict(new.build)):
        why += f" (bits not comparable: {'; '.join(odd)})"
    if job.digest != about["job"]:
        why += " (the Job is not the one that was run)"
    return {"same": False, "replayed": new.digest, "why": why + _uncounted(old, again)}


def _uncounted(old: Journal, again: Journal) -> str:
    """Which sites did not give in the replay what was counted then, and why."""
    found = []
    for row in again.all("close"):
        then = {site for site, _, _ in (old.find("close", row["round"], row["task"]) or row)["counted"]}
        found += [f"{site}: {why}" for site, status, why, _ in row["outcomes"] if status != "counted" and site in then]
    return f" ({'; '.join(dict.fromkeys(found))})" if found else ""
