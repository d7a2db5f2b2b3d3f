"""Law 2 over real processes: kill -9 at each named point of the write-ahead order, and the digest of a calm run."""

import os
import random
import signal
import time

import pytest

from federations import simulated, until
from foedus.errors import FoedusError
from foedus.loopback import Federation
from toys import JOB, calls, make_sites

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
        "agent.before-work",
        "agent.after-work",
        "agent.before-pending",
        "agent.after-pending",
        "agent.mid-upload",
        "agent.after-upload",
        "agent.after-receipt",
    ],
    "worker": ["worker.after-load", "worker.before-train", "worker.before-reply:2"],
}
LOSES_WORK = (
    "agent.before-work",
    "agent.after-work",
    "agent.before-pending",
    "worker.before-train",
    "worker.before-reply",
)


@pytest.mark.parametrize("role", POINTS)
def test_kills_at_all_points_of_a_role_change_no_bit(role, tmp_path, monkeypatch):
    """Every point once, one after another, in one run; what dies is started again as a service manager would."""
    rounds = 3
    sites, digest, killed = survived(role, POINTS[role], rounds, tmp_path, monkeypatch)
    assert killed == {point.partition(":")[0] for point in POINTS[role]}
    if role in ("server", "run worker"):
        assert calls(sites) == {"north": rounds, "south": rounds}, "an accepted or pending update was trained again"
    assert digest == simulated(sites, tmp_path / "sim", rounds=rounds)


@pytest.mark.long
@pytest.mark.parametrize("role, point", [(role, point) for role, points in POINTS.items() for point in points])
def test_a_kill_at_a_named_point_changes_no_bit(role, point, tmp_path, monkeypatch):
    sites, digest, killed = survived(role, [point], 2, tmp_path, monkeypatch)
    assert killed == {point.partition(":")[0]}
    if point not in LOSES_WORK:
        assert calls(sites) == {"north": 2, "south": 2}
    assert digest == simulated(sites, tmp_path / "sim", rounds=2)


def test_random_kills_change_no_bit(tmp_path):
    """Any process at any moment, some of them inside training; the long form kills more often."""
    random_kills(tmp_path, 4)


@pytest.mark.long
def test_twenty_random_kills_change_no_bit(tmp_path):
    random_kills(tmp_path, 20)


def random_kills(tmp_path, number):
    rounds, moments = max(3, number // 2), random.Random(7)
    sites = make_sites(tmp_path / "data", ["north", "south"], slow=0.3)
    made = Federation(tmp_path / "home")
    try:
        made.start_server()
        for name, path in sites.items():
            made.join(name, {"data": path})
        made.await_sites(sites)
        run = made.remote().submit(JOB, {"rounds": str(rounds)})
        for _ in range(number):
            time.sleep(moments.uniform(0.2, 1.0))
            made.kill(moments.choice(sorted(made.processes)), signal.SIGKILL)
            revive(made)
        until(lambda: revive(made) or run.status()["state"] == "finished", 240)
        result = run.wait()
    finally:
        made.stop()
    assert result.digest == simulated(sites, tmp_path / "sim", rounds=rounds)


def survived(role, points, rounds, tmp_path, monkeypatch):
    """(sites, digest of the run, the points at which somebody was killed)."""
    sites = make_sites(tmp_path / "data", ["north", "south"], slow=0.05)
    once = tmp_path / "killed"
    once.mkdir()
    made = Federation(tmp_path / "home")

    def armed(process):
        target = {"server": "server", "run worker": "server", "agent": "north", "worker": "north"}[role]
        patch = monkeypatch.setenv if process == target else lambda name, value: monkeypatch.delenv(name, False)
        patch("FOEDUS_KILL", ",".join(points))
        patch("FOEDUS_KILL_ONCE", str(once))

    try:
        revive(made, armed, start=["server"])
        for name, path in sites.items():
            armed(name)
            made.join(name, {"data": path})
        until(lambda: revive(made, armed) or made.await_sites(sites) or True)
        run = until(lambda: revive(made, armed) or made.remote().submit(JOB, {"rounds": str(rounds)}))
        until(lambda: revive(made, armed) or run.status()["state"] == "finished", 240)
        result = run.wait()
    finally:
        made.stop()
    return sites, result.digest, set(os.listdir(once))


def revive(made, armed=lambda name: None, start=()):
    """Starts what was killed again, as a service manager would; says nothing."""
    for name in [*start, *(name for name, process in made.processes.items() if process.poll() is not None)]:
        armed(name)
        try:
            made.start_server() if name == "server" else made.start_site(name)
        except FoedusError:
            continue
