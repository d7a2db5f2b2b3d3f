"""Live progress where people see it: on a real terminal, in IPython as a notebook has it, and beside real workers."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from foedus import jobfile, launch
from foedus.report.live import Live
from foedus.report.standing import Standing
from test_live import screen, watched

pytestmark = pytest.mark.processes

JOB = """
import time
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner

def gradient(p, x, y):
    time.sleep(0.05)
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}

def load(site):
    print(f"loads {site.name}")
    return fd.Split(train=(np.ones((4, 2)), np.ones(4)))

learner = NumpyLearner({"w": np.zeros(2)}, gradient, lambda p, x: x @ p["w"], lr=0.1, metrics=["rmse"])
job = fd.Job(fd.fedavg(), learner, load, rounds=4)
sites = {"north": 0, "south": 0, "west": 0}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return path


def on_terminal(home: Path, *words: Any, columns: int = 150, **more: str) -> tuple[list[str], list[str]]:
    """What this command writes to a terminal as its standard error: each write of a bar, and the lines in the end."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "FOEDUS_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), **more}
    env.pop("COLUMNS", None)
    subprocess.run(["stty", "cols", str(columns)], stdin=theirs, check=True)
    process = subprocess.Popen([sys.executable, *map(str, words)], env=env, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 1 << 16):
            text += piece
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(ours)
    out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, text.decode()
    plain = text.decode().replace("\r\n", "\n")
    return re.findall(r"\r([^\r\n]+)\x1b\[K", plain), [*screen([plain]), out]


def test_a_terminal_has_a_bar_whose_last_state_stays_and_json_goes_its_own_way(job: Path, tmp_path: Path) -> None:
    drawn, (*lines, out) = on_terminal(tmp_path, "-m", "foedus", "run", job, "--backend", "local", "--json")
    assert json.loads(out)["rounds"] == 4
    bar = r"round [234] of 4  left \S+ s  (train|evaluate) [123]/3 sites  loss "
    assert any(re.search(bar, text) for text in drawn), drawn
    last = lines[-2]  # examples: 3 in training at each of three sites, for one of four is set aside
    assert re.fullmatch(r"━{18} round 4 of 4  loss \S+  rmse \S+  examples/s \d+  on local  train_loss \S+", last), last
    assert [text for text in lines if text.startswith("loads ")] == ["loads north", "loads south", "loads west"]
    assert sum("round" in text for text in lines) == 1 and "\x1b" not in "".join(lines)


def test_a_terminal_that_is_none_has_lines(job: Path, tmp_path: Path) -> None:
    drawn, (*lines, _) = on_terminal(tmp_path, "-m", "foedus", "run", job, "--backend", "local", TERM="dumb")
    assert drawn == [] and [text[:12] for text in lines if " of 4" in text] == [f"round {i} of 4" for i in (1, 2, 3, 4)]


NOTEBOOK = """
import json, runpy, sys
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

class Shell(InteractiveShell):
    kernel = sys.argv[2] == "kernel" or None

shell = Shell.instance(display_pub_class=CapturingDisplayPublisher)
shell.history_manager.enabled = False
shell.push(runpy.run_path(sys.argv[1]))
done = shell.run_cell("result = job.run(sites, backend='local')", silent=True)
done.raise_error()
print(json.dumps(shell.display_pub.outputs))
"""


def in_ipython(job: Path, home: Path, kind: str) -> tuple[list[dict[str, Any]], str]:
    env = {**os.environ, "FOEDUS_HOME": str(home), "IPYTHONDIR": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", NOTEBOOK, str(job), kind]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_notebook_has_one_element_that_is_updated_in_place(job: Path, tmp_path: Path) -> None:
    shown, err = in_ipython(job, tmp_path, "kernel")
    assert err == "" and len(shown) >= 3
    assert [each["update"] for each in shown] == [False] + [True] * (len(shown) - 1)
    assert len({each["transient"]["display_id"] for each in shown}) == 1
    last = shown[-1]["data"]
    assert '<progress value="1.0000" max="1"' in last["text/html"] and "<b>4 of 4</b>" in last["text/html"]
    assert last["text/plain"].startswith("round 4 of 4  loss ")
    assert any("/3 sites</b>" in each["data"]["text/html"] for each in shown)


def test_ipython_without_a_kernel_and_without_a_terminal_shows_nothing(job: Path, tmp_path: Path) -> None:
    assert in_ipython(job, tmp_path, "none") == ([], "")


def test_what_sites_do_in_processes_is_heard_of_here_and_nowhere_else(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    heard = watched(monkeypatch, "processes", workers=2)
    assert heard == {("train", 0): set("abc"), ("evaluate", 0): set("abc")}


@pytest.mark.long
def test_what_sites_do_on_a_ray_cluster_is_heard_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, "ray", workers=2) == {("train", 0): set("abc"), ("evaluate", 0): set("abc")}


def test_a_federation_s_run_says_who_has_settled(home: Path, job: Path, capfd: Any) -> None:
    """Each site's update is a row of the server's journal."""
    seen: list[tuple[str, int, int]] = []

    def hear(self: Live, kind: str, body: Any) -> None:
        Standing.hear(self.of, kind, body)
        if kind == "accepted":
            seen.append((self.of.work, len(self.of.done), self.of.asked))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Live, "hear", hear)
        made, source = jobfile.load(job, {}).job, {"file": str(job), "options": {}, "rounds": 1}
        launch.run(made, {"a": tiny.NORTH, "b": tiny.SOUTH}, backend="network", source=source, show=True)
    assert seen == [(work, i, 2) for work in ("train", "evaluate") for i in (1, 2)]
