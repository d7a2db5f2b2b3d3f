"""Law 2 over real processes: kill -9 at each named point of the write-ahead order, and the digest of a calm run."""

import os

import pytest
from federations import simulated, until
from toys import JOB, calls, make_sites

from foedus.loopback import Federation

pytestmark = pytest.mark.kills

SERVER = ["server.before-accept", "server.after-accept", "server.before-close", "server.after-close", "server.before-total",
          "server.after-total", "store.before-commit", "store.after-commit", "blob.before-fsync", "blob.after-fsync",
          "blob.after-rename"]  # fmt: skip
RUN_WORKER = ["run.after-round", "runworker.before-fold", "runworker.after-fold", "run.before-state", "run.after-state",
              "run.after-step"]  # fmt: skip
AGENT = ["agent.before-work", "agent.after-work", "agent.before-pending", "agent.after-pending", "agent.mid-upload",
         "agent.after-upload", "agent.after-receipt"]  # fmt: skip
WORKER = ["worker.after-load", "worker.before-train", "worker.before-reply"]


def calm(tmp_path):
    sites = make_sites(tmp_path / "calm", ["north", "south"])
    return simulated(sites, tmp_path / "sim", rounds=2)


@pytest.mark.parametrize("point", [*SERVER, *RUN_WORKER, *AGENT, *WORKER])
def test_a_kill_at_a_named_point_changes_no_bit(point, tmp_path, monkeypatch):
    expected = calm(tmp_path)
    sites = make_sites(tmp_path / "data", ["north", "south"], slow=0.05)
    made = Federation(tmp_path / "home")
    once = tmp_path / "killed"
    try:
        arm = {"FOEDUS_KILL": f"{point}:{2 if point.startswith(('store', 'blob')) else 1}", "FOEDUS_KILL_ONCE": str(once)}
        with monkeypatch.context() as patch:
            for name, value in arm.items():
                if point in SERVER + RUN_WORKER:
                    patch.setenv(name, value)
            start_quietly(made)
        for name, path in sites.items():
            with monkeypatch.context() as patch:
                for variable, value in arm.items():
                    if point in AGENT + WORKER and name == "north":
                        patch.setenv(variable, value)
                made.join(name, {"data": path})
        until(lambda: gathered(made, sites))
        run = until(lambda: attempt(made))
        result = None

        def tended():
            revive(made)
            return run.status()["state"] == "finished"

        until(tended, 60)
        result = run.wait()
    finally:
        made.stop()
    assert once.exists(), "the process was never killed"
    assert result.digest == expected
    if point not in ("worker.before-train", "worker.before-reply", "agent.before-work", "agent.after-work", "agent.before-pending"):
        assert calls(sites) == {"north": 2, "south": 2}


def start_quietly(made):
    try:
        made.start_server()
    except Exception:
        made.start_server()


def gathered(made, sites):
    revive(made)
    return made.await_sites(sites) or True


def attempt(made):
    revive(made)
    return made.remote().submit(JOB, {"rounds": "2"})


def revive(made):
    """Starts again whatever was killed, as a service manager would."""
    for name, process in list(made.processes.items()):
        if process.poll() is not None:
            made.start_server() if name == "server" else made.start_site(name)


assert os.name == "posix"
