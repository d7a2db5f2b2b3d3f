"""A study on a real federation: the same numbers as in simulation, and a killed one finds its runs at the server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import foedus as fd
from federations import foedus, joined, until
from foedus import jobfile
from foedus.data import save_split
from foedus.errors import JobError
from foedus.loopback import Federation, environment
from foedus.study.study import Study

pytestmark = pytest.mark.processes
JOB = Path(__file__).parent / "jobs" / "study" / "job.py"
TUNE = ("--tune", "noise=0.1")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("study")
    sites = {}
    for name, held in jobfile.imported(JOB).sites().items():
        sites[name] = folder / f"{name}.split"
        save_split(sites[name], held)
    with joined(folder / "home", sites) as made:
        yield made


def numbers(study: Study) -> list[dict[str, Any]]:
    """All but what a real federation measures otherwise."""
    other = ("seconds", "bytes", "run")
    return [{k: v for k, v in score._asdict().items() if k not in other} for score in study.scores]


def simulated(folder: Path) -> Study:
    tune = {"noise": ["0.1"]}
    return fd.compare(JOB, seeds=[0], tune=tune, references=["alone", "unseen-site"], backend="local", save=folder)


def test_a_federation_gives_the_numbers_of_a_simulation(federation: Federation, tmp_path: Path) -> None:
    """Alone and without a site are runs whose Tasks the sites get."""
    code, told = foedus(
        federation.home, "compare", JOB, "--federation", "--seeds", 1, *TUNE, "--save", tmp_path / "real"
    )
    assert code == 0, told
    assert list(told["methods"]) == ["whole", "half", "alone", "unseen-site"]
    real = Study.load(tmp_path / "real")
    assert numbers(real) == numbers(simulated(tmp_path / "here"))
    assert real.values("whole", "bytes")[0] > 128  # files, not arrays alone
    with pytest.raises(JobError, match="leave 'pooled' out"):
        fd.compare(JOB, sites=federation.remote(), references=["pooled"])
    with pytest.raises(JobError, match="give compare the path of a job file"):
        fd.compare(jobfile.imported(JOB).job, sites=federation.remote(), save=tmp_path / "none")


@pytest.mark.long
def test_a_killed_study_finds_its_runs_at_the_server(federation: Federation, tmp_path: Path) -> None:
    words = ["compare", str(JOB), "--federation", "--seeds", "1", "--tune", "noise=0.3", "--references", "", "--json"]
    command = [sys.executable, "-m", "foedus", *words, "--save", str(tmp_path), "--home", str(federation.home)]
    known = len(federation.remote().runs())
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    until(lambda: len(federation.remote().runs()) > known)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert list(json.loads(done.stdout)["methods"]) == ["whole", "half"]
    assert len(federation.remote().runs()) == known + 2  # each run once
