"""The folders of runs on this machine: who owns one, what its journal says, what it ended with.
Stores and the journal come in; nothing here starts a run."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from foedus import absent, frames, home
from foedus.errors import FoedusError, JournalError
from foedus.files import write_atomic
from foedus.journal import Journal
from foedus.params import digest
from foedus.result import Result
from foedus.run import Ended
from foedus.store import verify_chain
from foedus.store.lease import this_process
from foedus.store.log import Patient, StoreLog
from foedus.store.sqlite import SqliteStore

LEASE = 3600.0
SOURCE = "source.json"
PATIENT = ("roster", "round", "close")  # a simulation draws and decides these anew, and the same


class Opened(NamedTuple):
    """A run's folder under this process's lease."""

    folder: Path
    journal: Journal


@contextmanager
def opened(folder: Path) -> Iterator[Opened]:
    """The run's journal, owned by this process; Held if another living one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(folder / "run.db", durable=False)
    try:
        epoch = store.acquire(folder.name, this_process(), LEASE)
        try:
            verify_chain(store.rows(folder.name))
            yield Opened(folder, Journal(Patient(StoreLog(store, folder.name, epoch), PATIENT)))
        finally:
            store.release(folder.name, epoch)
    finally:
        store.close()


def new_folder(name: str | None = None, given: Any = None) -> Path:
    """A folder for a new run; its name is the run's id."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return home.folder(given) / "runs" / f"{stamp}-{name or 'run'}-{secrets.token_hex(4)}"


def finish(journal: Journal, folder: Path, ended: Ended, seconds: float) -> None:
    """Saves the models, then writes the row that makes the run a finished one."""
    write_atomic(folder / "final.safetensors", frames.model(ended.params, {"run": folder.name}))
    if ended.best is not None:
        write_atomic(
            folder / "best.safetensors", frames.model(ended.best, {"run": folder.name, "round": ended.best_round})
        )
    journal.add(
        "end",
        reason=ended.reason,
        rounds=len(ended.history),
        digest=digest(ended.params),
        seconds=seconds,
        best_round=ended.best_round,
        history=[dict(line) for line in ended.history],
    )


def rows(folder: Path) -> list[Any]:
    """All rows of a run's journal, their chain verified."""
    store = SqliteStore(folder / "run.db", durable=False)
    try:
        known = store.runs()
        found = store.rows(folder.name if folder.name in known or not known else known[0])
    finally:
        store.close()
    verify_chain(found)
    return found


class Kept:
    """A Log of rows that are only read."""

    def __init__(self, found: list[Any]) -> None:
        self.found = found

    def rows(self) -> list[tuple[str, Mapping[str, Any]]]:
        return [(row.kind, row.body) for row in self.found]

    def append(self, rows: Any) -> None:
        raise JournalError("this journal is only read")


def journal(folder: Path) -> Journal:
    """A run's journal, to be read only."""
    return Journal(Kept(rows(folder)))


def result(run: str | Path, given: Any = None) -> Result:
    """The Result of a finished RUN (an id, a unique prefix or a path)."""
    folder = home.find_run(run, given)
    kept = journal(folder)
    end, about = kept.find("end"), kept.find("open")
    if end is None or about is None:
        raise FoedusError(f"run {folder.name} is not finished: `foedus resume {folder.name}` goes on with it")
    per_site: dict[str, dict[str, Any]] = {}
    for row in kept.all("step"):
        for site, values in row["per_site"].items():
            per_site.setdefault(site, {}).update(values)
    best = folder / "best.safetensors"
    return Result(
        frames.read_model(folder / "final.safetensors"),
        end["history"],
        per_site,
        folder.name,
        folder,
        about["backend"],
        about["exact"],
        end["reason"],
        end["seconds"],
        frames.read_model(best) if best.exists() else None,
        end["best_round"],
        about["build"],
        declined=absent.declined(kept),
    )


def script_of(replay: Any) -> Journal | None:
    """The journal of the run that is to be replayed: a Result, or a RUN."""
    if replay is None:
        return None
    return journal(replay.folder if isinstance(replay, Result) else home.find_run(replay))


def about(folder: Path) -> Mapping[str, Any]:
    """The first row of a run: Job, seed, backend, build, where its Job came from."""
    found = journal(folder).find("open")
    if found is None:
        raise FoedusError(f"run {folder.name} was killed before its first row: run the job again")
    source = folder / SOURCE  # of a run at a server, which never heard where the job file is on this machine
    return {**found, "source": json.loads(source.read_bytes())} if source.exists() else found


def sources(
    folder: Path, file: Path | str, options: Any, rounds: int | None, sites: Any = None, privacy: str | None = None
) -> None:
    """Notes of which job file a run at a server is, relative to `folder` where it was fetched with it."""
    facts = {"file": str(file), "options": options, "rounds": rounds, "privacy": privacy, "sites": sites}
    write_atomic(folder / SOURCE, json.dumps(facts | {"workers": None}, default=str).encode())


def listed(given: Any = None) -> list[dict[str, Any]]:
    """The runs kept on this machine, oldest first."""
    found = []
    for path in sorted((home.folder(given) / "runs").glob("*/run.db")):
        found.append({"run": path.parent.name, **_state(path.parent)})
    return found


def _state(folder: Path) -> dict[str, Any]:
    try:
        found = rows(folder)
    except FoedusError as error:  # a damaged run does not hide the others
        return {"state": "damaged", "rounds": 0, "digest": None, "why": str(error)}
    kept = Journal(Kept(found))
    end = kept.find("end") or {}
    done = sum(row["digest"] != "" for row in kept.all("step"))  # the last evaluation is no round
    state, why = ("finished", end["reason"]) if end else _unfinished(found)
    return {"state": state, "rounds": done, "digest": end.get("digest"), "why": why}


def _unfinished(found: list[Any]) -> tuple[str, str]:
    """`paused` and why, where that is the newest thing that happened; else `open`."""
    if found and found[-1].kind == "event" and found[-1].body["what"] == "paused":
        return "paused", found[-1].body["why"]
    return "open", ""


def state_digest(journal: Journal, round: int) -> str:
    """The digest of the state after a round; "" if the round was never finished."""
    row = journal.find("step", round)
    return row["digest"] if row else ""


def not_from_a_file(folder: Path) -> FoedusError:
    return FoedusError(f"run {folder.name} was started from Python, not from a job file: use job.run(replay=…) there")


def import_rows(path: Path, run: str, found: list[list[Any]]) -> None:
    """Writes rows of a journal kept elsewhere into a new file, times and chain unchanged."""
    now = time.time()
    store = SqliteStore(path, durable=False, clock=lambda: now)
    try:
        epoch = store.acquire(run, this_process(), LEASE)
        for seq, at, kind, body, chain in found:
            now = at  # what the store's clock reads
            if store.append(run, [(kind, body)], epoch)[0].chain != chain:
                raise JournalError(f"journal row {seq} of run {run} was changed on its way: fetch it again")
        store.release(run, epoch)
    finally:
        store.close()


@contextmanager
def arriving(folder: Path) -> Iterator[Path]:
    """A place for a run that is fetched; what is in it moves into `folder` when all is there, the journal last.

    After an error nothing is left of it: a folder without a journal is no run.
    """
    place = folder / f".arriving-{secrets.token_hex(4)}"
    place.mkdir(parents=True)
    try:
        yield place
        for path in sorted(place.iterdir(), key=lambda path: path.name == "run.db"):
            if path.is_dir():
                shutil.rmtree(folder / path.name, ignore_errors=True)
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # it is not empty: the run arrived, or was there before
            folder.rmdir()
