"""`foedus run --backend network` is ended or killed: its server and agents end with it, and the run goes on later."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from federations import simulated, until
from test_cli_run import bound, environment, foedus
from toys import JOB, calls, make_sites

pytestmark = pytest.mark.kills
ROUNDS = 8


def processes(folder: Path) -> dict[int, str]:
    """The living processes of which the command line or the working folder names `folder`: pid -> command."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in words or os.readlink(entry / "cwd").startswith(str(folder)):
                found[int(entry.name)] = words
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_server_and_agents_end_with_their_command_and_resume_goes_on(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    sites, home = make_sites(tmp_path / "data", ["north", "south"], slow=0.3), tmp_path / "home"
    words = ["run", str(JOB), f"rounds={ROUNDS}", *bound(sites), "--backend", "network", "--home", "home"]
    process = subprocess.Popen(
        [sys.executable, "-m", "foedus", *words], cwd=tmp_path, env=environment(home), stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: min(calls(sites).values()))
        names = " ".join(processes(home / "runs").values())
        assert all(
            part in names for part in ("foedus.server --home", "site join", "foedus.server.worker", "site.worker")
        )
        process.send_signal(number)
        err = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == code and "Traceback" not in err
    until(lambda: not processes(home / "runs"))
    if number == signal.SIGTERM:
        last = err.strip().splitlines()[-1]
        assert re.fullmatch("foedus: ended by SIGTERM; `foedus resume \\d{8}-.*` goes on where it stands", last)
    for place in sites.values():
        (place / "slow").write_text("0")
    (run,) = json.loads(foedus(home, "runs", "--json").out)["runs"]
    before = calls(sites)["north"]
    found = json.loads(foedus(home, "resume", run["run"], "--json").out)
    assert found["rounds"] == ROUNDS and found["backend"] == "network"
    assert found["digest"] == simulated(sites, tmp_path / "sim", rounds=ROUNDS)
    assert before > 0 and calls(sites)["north"] <= 2 * ROUNDS + 1  # the simulation's too; one was under way at most
    assert not processes(home / "runs")
