"""Noise of a real server: nobody can draw it from what sites and submitters know, and a crash draws the same again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from federations import finished, foedus, joined, kinds, until
from foedus import jobfile, launch
from toys import make_sites

pytestmark = [pytest.mark.processes, pytest.mark.kills, pytest.mark.long]
JOB = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    table = np.loadtxt(site.data / "rows.csv", delimiter=",")
    return fd.Split(train=(table[:, :4], table[:, 4]))


def gradient(p, x, y):
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}


def job(where="central", noise=1.0):
    learner = NumpyLearner({"w": np.zeros(4)}, gradient, lambda p, x: x @ p["w"], lr=0.05, batch_size=10)
    how = {"central": fd.central_dp, "local": fd.local_dp}[where](1.0, float(noise))
    return fd.Job(fd.fedavg(), learner, load, rounds=4, evaluate=0, privacy=how)
"""


@pytest.mark.parametrize("where", ["central", "local"])
@pytest.mark.parametrize("point", ["run.after-step:2", "server.after-total:2"])
def test_a_run_that_is_killed_draws_the_same_noise_and_nobody_else_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, point: str
) -> None:
    """Rows of the journal that a restart writes again have to be the same, or the run fails."""
    sites, once = make_sites(tmp_path / "data", ["north", "south", "west"]), tmp_path / "once"
    for folder in (once, tmp_path / "job"):
        folder.mkdir()
    (tmp_path / "job" / "job.py").write_text(JOB)
    monkeypatch.setenv("FOEDUS_KILL", point)
    monkeypatch.setenv("FOEDUS_KILL_ONCE", str(once))
    file, options = tmp_path / "job" / "job.py", {"where": where}
    with joined(tmp_path / "home", sites) as made:
        first = made.remote().submit(file, options)
        if point.startswith("server"):
            until(lambda: made.processes["server"].poll() is not None)
            made.start_server()
        result = finished(first)
        assert os.listdir(once) and result.rounds == 4
        assert kinds(first, "submitted")[0]["privacy"] == f"{where}_dp"
        again = finished(made.remote().submit(file, options))
        bare = finished(made.remote().submit(file, options | {"noise": "0"}, privacy=None))
        trained = foedus(made.site_home("north"), "site", "privacy")[1]["datasets"]["data"]
    monkeypatch.delenv("FOEDUS_KILL")
    simulated = launch.run(jobfile.load(file, options).job, dict(sites), folder=tmp_path / "simulated")
    assert len({result.digest, again.digest, simulated.digest}) == 3  # the same sites and seed, and other noise
    plain = launch.run(jobfile.load(file, options | {"noise": "0"}).job, dict(sites), folder=tmp_path / "plain")
    assert bare.digest == plain.digest
    assert (trained["trainings"], trained["unbounded"]) == ((8, 4) if where == "local" else (0, 12))
