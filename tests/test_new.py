"""`foedus new`: what it writes runs at once, by the commands that it names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foedus import jobfile
from foedus.cli.project import METHODS, TORCH, write
from foedus.errors import FoedusError, JobError
from foedus.loopback import environment


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )


TRIED = [("scaffold", "numpy"), *((name, "torch") for name in METHODS.split())]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("algorithm", "learner"),
    [pytest.param(*tried, marks=pytest.mark.long if tried[1] == "torch" else ()) for tried in TRIED],
)
def test_a_newcomer_runs_and_tests_a_project_at_once(algorithm: str, learner: str, tmp_path: Path) -> None:
    made = command(tmp_path, "foedus", "new", "my-study", "--algorithm", algorithm, "--learner", learner, "--json")
    assert json.loads(made.stdout)["files"] == ["job.py", "test_job.py", "README.md", "pyproject.toml"], made.stderr
    project = tmp_path / "my-study"
    ran = command(project, "foedus", "run", "job.py", "--home", str(tmp_path / "home"), "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["rounds"] == 20 and found["absences"] == []
    tested = command(project, "pytest", "-q", "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout


@pytest.mark.parametrize("learner", ["numpy", "torch"])
@pytest.mark.parametrize("algorithm", METHODS.split())
def test_every_project_has_a_job_that_can_be_built(algorithm: str, learner: str, tmp_path: Path) -> None:
    if learner == "numpy" and algorithm in TORCH:
        with pytest.raises(JobError, match="--learner torch"):
            write(tmp_path / "it", algorithm, learner)
        return
    write(tmp_path / "it", algorithm, learner)
    loaded = jobfile.load(tmp_path / "it" / "job.py")
    module = jobfile.imported(tmp_path / "it" / "job.py")
    assert len(loaded.sites()) == 8 and list(module.methods)[-1] == algorithm
    assert [made() for made in module.methods.values()]
    assert jobfile.load(tmp_path / "it" / "job.py", {"lr": "0.5"}).job.digest != loaded.job.digest
    assert (
        "$" not in (tmp_path / "it" / "README.md").read_text() and algorithm in (tmp_path / "it" / "job.py").read_text()
    )


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    for there in (tmp_path, tmp_path / "kept.txt"):
        with pytest.raises(FoedusError, match="is there already"):
            write(there, "fedavg")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(("algorithm", "learner"), [("fedavgg", None), ("fedavg", "jaxx")])
def test_unknown_names_are_refused_with_the_known_ones(algorithm: str, learner: str | None, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="choose from"):
        write(tmp_path / "it", algorithm, learner)
    assert not (tmp_path / "it").exists()
