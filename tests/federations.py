"""Real federations for tests: a server and agents as processes, the toy job, and waiting for what the journal says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foedus import jobfile, launch
from foedus.errors import FoedusError
from foedus.loopback import Federation, environment
from foedus.remote import Run
from foedus.result import Result
from foedus.server import owner
from toys import JOB, calls, make_sites, training


@contextmanager
def started(folder: Path, names: list[str], slow: float = 0.0) -> Iterator[tuple[Federation, dict[str, Path]]]:
    """A federation whose sites hold toy data; everything ends with the block."""
    sites = make_sites(folder / "data", names, slow)
    with joined(folder / "home", sites) as made:
        yield made, sites


@contextmanager
def joined(home: Path, sites: Mapping[str, Path]) -> Iterator[Federation]:
    """A federation of these sites, each with its dataset `data`."""
    made = Federation(home)
    try:
        made.start_server()
        for name, token in owner.invitations(home, list(sites)).items():  # as `foedus federation invite` does, at once
            made.start_site(name, "join", token, "--data", f"data={sites[name]}", "--trust", "owner")
        made.await_sites(sites)
        yield made
    finally:
        made.stop()


def foedus(home: Path, *words: object) -> tuple[int, Any]:
    """The exit code of a verb and what it printed with --json; where it failed, its last line."""
    command = [sys.executable, "-m", "foedus", *map(str, words), "--home", str(home), "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.splitlines()[-1] if done.returncode else json.loads(done.stdout)


def submit(made: Federation, **options: Any) -> Run:
    return made.remote().submit(JOB, {k: str(v) for k, v in options.items()})


def simulated(sites: Mapping[str, Path], folder: Path, **options: Any) -> str:
    """The digest of the same job in `local`."""
    loaded = jobfile.load(JOB, {k: str(v) for k, v in options.items()})
    return launch.run(loaded.job, dict(sites), folder=folder).digest


def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `what` returns, as soon as it is true; a server that is down just now is asked again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except FoedusError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"it did not happen within {seconds} s")


def kinds(run: Run, kind: str) -> list[Mapping[str, Any]]:
    """The bodies of the journal's rows of one kind."""
    return [row[3] for row in run.rows()[0] if row[2] == kind]


def finished(run: Run, seconds: float = 240.0) -> Result:
    """The Result of a run that has to end by itself."""
    until(lambda: run.status()["state"] == "finished", seconds)
    return run.wait()


def accepted(run: Run, site: str, round: int) -> bool:
    """Whether the server has what this site trained in this round."""
    return any((row["site"], row["round"], row["task"]) == (site, round, 0) for row in kinds(run, "accepted"))


def counted(run: Run) -> list[list[str]]:
    """The sites that each round's training counted."""
    return [sorted(site for site, _, _ in row["counted"]) for row in kinds(run, "close") if row["task"] == 0]


def in_training(site: Path, call: int) -> None:
    """Returns when the site's call of that number (from 1) has begun, and not ended."""
    until(lambda: calls({"": site}, "begin")[""] == call and training(site))
