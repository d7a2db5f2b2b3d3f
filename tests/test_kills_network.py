"""Law 2 over real processes: kill -9 of server, run worker, agent and worker, at each named point of the write-ahead
order and at random moments, and the digest of a calm run; an update that is kept is never computed again."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import foedus
from federations import kinds, simulated, until
from foedus.errors import FoedusError
from foedus.loopback import Federation
from foedus.server import place as server_place
from foedus.server.sealing import STAGES
from foedus.site.shelf import PENDING
from foedus.store.sql import SqlStore
from foedus.store.sqlite import SqliteStore
from toys import JOB, calls, make_sites, trained, training

pytestmark = pytest.mark.kills

POINTS = {
    "server": [
        "server.before-accept",
        "server.after-accept",
        "server.before-close",
        "server.after-close",
        "server.before-total",
        "server.after-total",
        "store.before-commit:9",
        "store.after-commit:9",
        "blob.before-fsync:2",
        "blob.after-fsync:3",
        "blob.after-rename:4",
    ],
    "run worker": [
        "run.after-round",
        "runworker.before-fold",
        "runworker.after-fold",
        "run.before-state",
        "run.after-state",
        "run.after-step",
    ],
    "agent": [
        "agent.after-ledger",
        "agent.before-work",
        "agent.after-work",
        "agent.before-pending",
        "agent.after-pending",
        "agent.mid-upload",
        "agent.after-upload",
        "agent.after-receipt",
        "agent.before-base",
        "agent.after-base",
    ],
    "worker": ["worker.after-load", "worker.before-train", "worker.before-reply:2"],
}
SEALED = {  # that a sealed Task passes beside: see test_secagg_network.py
    "server": [f"server.{when}-seal-{stage}" for stage in STAGES for when in ("before", "after")],
    "agent": ["agent.after-shared", "agent.after-masked", "agent.after-agreed", "agent.after-revealed"],
}
LOSES_WORK = ("agent.after-work", "agent.before-pending", "worker.before-reply")  # trained, and nothing is kept yet
SITES = ["north", "south"]  # agents and workers are killed at north
STATE = {"stateful": "1"}
Armed = Callable[[str], None]


def test_the_points_tested_here_are_all_that_a_federation_passes() -> None:
    source = Path(foedus.__file__).parent
    files = [*source.glob("server/*.py"), *source.glob("site/*.py"), source / "run.py", source / "store" / "blobs.py",
             source / "store" / "sql.py"]  # fmt: skip
    found = {point for file in files for point in re.findall(r'point\("([\w.-]+)"\)', file.read_text())}
    assert found == {named(point) for points in (*POINTS.values(), SEALED["agent"]) for point in points}


def test_kills_at_every_point_of_every_role_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point once in one run whose work keeps state at the sites; all roles die while the others do."""
    everywhere = [point for points in POINTS.values() for point in points]
    run = Survived(tmp_path, monkeypatch, everywhere, 3, STATE)
    assert run.killed == {named(point) for point in everywhere}
    assert run.refused == []
    assert run.begun("south") == [1, 1, 1], "an accepted or pending update was trained again"
    assert 3 <= sum(run.begun("north")) <= 3 + len(LOSES_WORK) and 0 not in run.begun("north")
    assert run.digest == simulated(run.sites, tmp_path / "sim", rounds=3, **STATE)


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, STATE], ids=["stateless", "stateful"])
@pytest.mark.parametrize("point", [point for points in POINTS.values() for point in points])
def test_a_kill_at_a_named_point_changes_no_bit(
    point: str, options: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Survived(tmp_path, monkeypatch, [point], 2, options)
    assert run.killed == {named(point)} and run.refused == []
    assert run.begun("south") == [1, 1]
    assert sum(run.begun("north")) <= 2 + (named(point) in LOSES_WORK) and 0 not in run.begun("north")
    assert run.digest == simulated(run.sites, tmp_path / "sim", rounds=2, **options)


class Survived:
    """A run in which somebody was killed once at each of these points, started again as a service manager would."""

    names: Sequence[str] = SITES
    table: Mapping[str, Sequence[str]] = POINTS

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, points: list[str], rounds: int, options: Mapping[str, str]
    ) -> None:
        self.sites, self.rounds = make_sites(folder / "data", [*self.names], slow=0.05), rounds
        self.patch, self.points, self.once = patch, points, folder / "killed"
        self.once.mkdir()
        made = Federation(folder / "home")
        try:
            revive(made, self.armed, start=["server"])
            for name, path in self.sites.items():
                self.armed(name)
                made.join(name, {"data": path})
            until(lambda: revive(made, self.armed) or made.await_sites(self.sites) or True)
            chosen = {"rounds": str(rounds), **options}
            run = until(lambda: revive(made, self.armed) or made.remote().submit(JOB, chosen))
            until(lambda: revive(made, self.armed) or run.status()["state"] == "finished", 120)
            self.digest = run.wait().digest
            self.refused = kinds(run, "refused")
        finally:
            made.stop()
        self.killed = set(os.listdir(self.once))

    def armed(self, process: str) -> None:
        """Gives the next process that is started the points of its role, and of those that it starts."""
        roles = {"server": ("server", "run worker"), "north": ("agent", "worker")}.get(process, ())
        mine = [point for role in roles for point in self.table.get(role, ()) if point in self.points]
        self.patch.setenv("FOEDUS_KILL", ",".join(mine))
        self.patch.setenv("FOEDUS_KILL_ONCE", str(self.once))

    def begun(self, site: str) -> list[int]:
        """How often the training of each round began."""
        found = trained(self.sites)
        return [found[site, round] for round in range(self.rounds)]


def named(point: str) -> str:
    return point.partition(":")[0]


def revive(made: Federation, armed: Armed = lambda name: None, start: list[str] | None = None) -> None:
    """Starts what was killed again; says nothing."""
    for name in [*(start or ()), *(name for name, process in made.processes.items() if process.poll() is not None)]:
        armed(name)
        try:
            made.start_server() if name == "server" else made.start_site(name)
        except FoedusError:
            continue


# ---- random moments --------------------------------------------------------------------------------------------------
ROLES = tuple(POINTS)
BALLAST = 2 << 20  # numbers of four bytes: an upload takes long enough to be hit


def test_random_kills_change_no_bit(tmp_path: Path) -> None:
    random_kills(tmp_path, 6)


@pytest.mark.long
def test_twenty_random_kills_change_no_bit(tmp_path: Path) -> None:
    random_kills(tmp_path, 20)


def random_kills(folder: Path, number: int) -> None:
    """Every role dies, at least once in the middle of training and once in the middle of an upload."""
    rng, rounds = random.Random(7), 2 * number
    sites = make_sites(folder / "data", SITES, slow=0.3)
    made = Federation(folder / "home")
    options = {"rounds": str(rounds), "ballast": str(BALLAST)}
    try:
        made.start_server()
        for name, path in sites.items():
            made.join(name, {"data": path})
        made.await_sites(sites)
        run = made.remote().submit(JOB, options)
        killer = Killer(made, sites, run.id, rng)
        plan = [(rng.choice(ROLES), "any moment") for _ in range(number - 6)] + [(r, "any moment") for r in ROLES]
        plan += [(rng.choice(("agent", "worker")), "training"), (rng.choice(("agent", "server")), "upload")]
        rng.shuffle(plan)
        for role, moment in plan:
            killer.kill(role, moment)
        until(lambda: revive(made) or run.status()["state"] == "finished", 240)
        digest = run.wait().digest
    finally:
        made.stop()
    assert len(killer.deaths) >= number and {role for role, _ in killer.deaths} == set(ROLES)
    assert {"training", "upload"} <= {inside for _, inside in killer.deaths}
    killer.check(rounds)
    assert digest == simulated(sites, folder / "sim", **options)


class Killer:
    """Kills processes of a running federation, and notes after each death what must never be computed again."""

    def __init__(self, made: Federation, sites: Mapping[str, Path], run: str, rng: random.Random) -> None:
        self.made, self.sites, self.run, self.rng = made, sites, run, rng
        self.deaths: list[tuple[str, str]] = []  # the role, and what it was in the middle of
        self.hit: Counter[str] = Counter()  # site -> deaths of its agent or worker
        self.kept: dict[tuple[str, int], int] = {}  # (site, round) -> calls of its training when it was first kept

    def kill(self, role: str, moment: str) -> None:
        """A death of this role at that moment; one that came too late for it counts, and there is another."""
        for _ in range(10):
            known = {site: self._victims(role, site) for site in SITES}  # looked up before, for an upload is short
            site, found = self._awaited(moment)
            inside = self._killed(role, site, moment, found, known[site])
            self.deaths.append((role, inside))
            self.hit[site] += role in ("agent", "worker")
            self._note()
            revive(self.made)
            if moment in ("any moment", inside):
                return
        raise AssertionError(f"ten kills missed the moment: {moment}")

    def _awaited(self, moment: str) -> tuple[str, Any]:
        """The site where the moment has come, and what shows it."""
        if moment == "training":
            before = calls(self.sites, "begin")
            return self._watch(
                lambda site: calls(self.sites, "begin")[site] > before[site] and training(self.sites[site])
            )
        if moment == "upload":
            return self._watch(lambda site: next(self._parts(site), None))
        time.sleep(self.rng.uniform(0, 0.6))
        return self.rng.choice(SITES), None

    def _watch(self, found: Callable[[str], Any]) -> tuple[str, Any]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for site in SITES:
                if what := found(site):
                    return site, what
        raise AssertionError("the moment never came")

    def _killed(self, role: str, site: str, moment: str, found: Any, known: list[int]) -> str:
        """What the process was in the middle of when it died; a worker that ended meanwhile has a successor."""
        victims = known if known and alive(known[0]) else until(lambda: self._victims(role, site))
        os.kill(victims[0], signal.SIGKILL)
        until(lambda: not any(map(alive, victims)))
        if moment == "training" and training(self.sites[site]):
            return "training"
        if moment == "upload" and 0 < settled_size(found) < 4 * BALLAST:
            return "upload"
        return ""

    def _victims(self, role: str, site: str) -> list[int]:
        """The process, and those that end with it."""
        server, agent = (self.made.processes[name].pid for name in ("server", site))
        if role == "server":
            return [server, *children(server)]
        if role == "agent":
            return [agent, *children(agent)]
        return children(server if role == "run worker" else agent)

    def _parts(self, site: str) -> Any:
        """The files of this site's uploads that have begun and are not all there."""
        folder = self.made.home / "server" / "updates" / site / "parts"
        files = folder.iterdir() if folder.exists() else ()
        return (file for file in files if 0 < size_of(file) < 4 * BALLAST)

    def _note(self) -> None:
        """Notes which updates the journal or their site has, and how often they had been computed by then."""
        with closing(SqlStore(server_place.find(self.made.home).url)) as store:
            kept = {
                (r.body["site"], r.body["round"])
                for r in store.rows(self.run, kinds=["accepted"])
                if not r.body["task"]
            }
        for site in SITES:
            with closing(SqliteStore(self.made.site_home(site) / "sites" / site / "site.db")) as store:
                pending = [body["at"] for _, body in store.items(PENDING, f"{self.run}/")]
            kept |= {(site, round) for _, round, task, _ in pending if not task}
        begun = trained(self.sites)
        for at in kept:
            self.kept.setdefault(at, begun[at])

    def check(self, rounds: int) -> None:
        """Never fewer calls than needed, and none of an update that was kept."""
        begun = trained(self.sites)
        assert all(ended >= rounds for ended in calls(self.sites).values())
        assert all(begun[site, round] for site in SITES for round in range(rounds))
        assert self.kept and {at: begun[at] for at in self.kept} == self.kept, "a pending or accepted update, again"
        for site in SITES:
            assert sum(begun[site, round] for round in range(rounds)) <= rounds + self.hit[site]


def children(pid: int) -> list[int]:
    """The worker that this process has."""
    stats = [stat_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")]
    return [int(own) for own, state, parent in filter(None, stats) if int(parent) == pid and state != "Z"]


def stat_of(pid: int) -> tuple[str, str, str] | None:
    """(pid, state, parent), or None where there is no such process any more (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return str(pid), fields[0], fields[1]


def alive(pid: int) -> bool:
    found = stat_of(pid)
    return found is not None and found[1] != "Z"


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def settled_size(file: Path) -> int:
    """The size of a file that nobody writes any more."""
    sizes = [-1, size_of(file)]
    while sizes[-1] != sizes[-2]:
        time.sleep(0.05)
        sizes.append(size_of(file))
    return sizes[-1]
