"""What people meet first: help, slips of the keyboard, a missing library, a full disk, damaged files."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foedus import runs
from foedus.build import installed
from test_cli_run import PLAIN, Said, bound, environment, foedus, plain
from toys import JOB, make_sites

pytestmark = pytest.mark.processes
MISTAKE, USAGE, JOB_ERROR, PAUSED, DIFFERS, MISSING = 1, 2, 3, 5, 6, 9

AUC = """
same = lambda params, x: np.full(len(x), 0.5)
learner = NumpyLearner({"w": np.zeros(2, np.float32)}, predict=same, train=fit, metrics=["auc"])
data = (np.ones((6, 2), np.float32), np.array([0, 0, 0, 1, 1, 1]))
job = fd.Job(fd.fedavg(), learner, lambda site: fd.Split(train=data, valid=data), rounds=1)
"""


# ---- help and slips ------------------------------------------------------------------------------------------------


def test_the_version_and_the_examples_are_printed(tmp_path: Path) -> None:
    assert foedus(tmp_path, "--version") == Said(0, f"foedus {installed('foedus')}\n", "")
    said = foedus(tmp_path, "run", "--help")
    assert said.code == 0 and "foedus run job.py --site north=data/north --site south=data/south\n" in said.out


@pytest.mark.parametrize(
    ("words", "last"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["site", "jion"], "No such command 'jion'. Did you mean 'join'?"),
        (["run", "{job}", "--ronds", "3"], "--rounds"),
        (["run", "{job}", "--sites", "2", "--site", "a=/tmp"], "--sites counts sites, --site names them: give one"),
        (["run", "{job}", "--sites", "two"], "Invalid value for '--sites'"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(words: list[str], last: str, tmp_path: Path) -> None:
    said = foedus(tmp_path, *[word.format(job=plain(tmp_path)) for word in words])
    assert (said.code, said.out) == (USAGE, "") and last in said.last


def test_a_file_of_rows_is_no_job_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n")
    said = foedus(tmp_path, "run", tmp_path / "rows.csv")
    assert said.code == JOB_ERROR and "Traceback" not in said.err
    assert said.last.endswith("rows.csv is no Python file: name a *.py file that defines `job`")


# ---- a library is missing ------------------------------------------------------------------------------------------


def without(library: str, home: Path, *words: object) -> Said:
    """The command in a process in which a library is not installed."""
    code = f"import sys; sys.modules[{library!r}] = None; sys.argv[0] = 'foedus'; from foedus.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("words", [["federation", "create"], ["server", "start"]])
@pytest.mark.parametrize("library", ["sqlalchemy", "alembic"])
def test_a_server_without_its_libraries_names_the_pip_line_and_makes_nothing(
    library: str, words: list[str], tmp_path: Path
) -> None:
    said = without(library, tmp_path, *words)
    assert (said.code, said.out) == (MISSING, "")
    assert said.last == f"foedus: {library} is not installed: pip install 'foedus[server]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["import torch", "from foedus.torch import TorchLearner", "fd.key(0).torch()"])
def test_a_job_without_torch_names_the_pip_line(line: str, tmp_path: Path) -> None:
    said = without("torch", tmp_path, "run", plain(tmp_path, more=line), "--json")
    assert (said.code, said.out) == (MISSING, "")
    assert said.last == "foedus: torch is not installed: pip install 'foedus[torch]'"


# ---- what is sure of a metric --------------------------------------------------------------------------------------


def test_the_error_of_binned_metrics_and_the_intervals_are_printed(tmp_path: Path) -> None:
    """All scores are in one bin: each pair counts one half, and may be worth 0 or 1."""
    path = plain(tmp_path, more=AUC)
    found = json.loads(foedus(tmp_path, "run", path, "--json").out)
    assert (found["metrics"]["auc"], found["bounds"]) == (0.5, {"auc": 0.5})
    low, high = found["intervals"]["auc"]
    assert low <= 0.5 <= high
    said = foedus(tmp_path, "run", path)
    (line,) = [line for line in said.err.splitlines() if line.startswith("auc ")]
    assert line.split() == f"auc 0.5000 {low:.4f} to {high:.4f} (bins: ± 0.5)".split()


# ---- the disk is full, files are damaged ---------------------------------------------------------------------------


def limited(home: Path, most: int, *words: object) -> Said:
    """The command in a process that may write no file of more than `most` bytes, as on a disk that is full."""
    command = [sys.executable, "-m", "foedus", *map(str, words)]
    done = subprocess.run(
        command, env=environment(home), capture_output=True, text=True, check=False, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("most", "file"), [(2000, "run.db"), (1_000_000, "final.safetensors")])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(most: int, file: str, tmp_path: Path) -> None:
    path = tmp_path / "job.py"
    path.write_text(PLAIN.format(inside="pass", loading="pass").replace("np.zeros(2,", "np.zeros(500_000,"))
    path.write_text(path.read_text().replace('params["w"] +=', 'params["w"][:2] +='))
    said = limited(tmp_path, most, "run", path, "--json")
    assert (said.code, said.out) == (MISTAKE, "")
    assert file in said.last and "free" in said.last
    if file != "run.db":
        (run,) = runs.listed(tmp_path)
        assert json.loads(foedus(tmp_path, "resume", run["run"], "--json").out)["rounds"] == 2


def finished(tmp_path: Path) -> tuple[Path, list[str]]:
    """A finished run's folder, and its sites as options."""
    given = bound(make_sites(tmp_path / "data", ["north", "south"]))
    found = json.loads(foedus(tmp_path, "run", JOB, "rounds=2", *given, "--json").out)
    return Path(found["folder"]), given


def test_a_journal_that_was_changed_or_damaged_is_not_believed(tmp_path: Path) -> None:
    folder, _ = finished(tmp_path)
    store = folder / "run.db"
    whole = store.read_bytes()
    store.write_bytes(whole.replace(b"all rounds done", b"all rounds gone"))
    said = foedus(tmp_path, "verify", folder.name, "--json")
    assert (said.code, said.out) == (DIFFERS, "") and "was changed after it was written" in said.last
    store.write_bytes(os.urandom(len(whole)))
    said = foedus(tmp_path, "verify", folder.name, "--json")
    assert (said.code, said.out) == (MISTAKE, "") and "run.db: file is not a database" in said.last
    (listed,) = json.loads(foedus(tmp_path, "runs", "--json").out)["runs"]
    assert listed["state"] == "damaged" and "not a database" in listed["why"]


def test_a_model_that_is_not_the_journals_is_told_without_a_replay(tmp_path: Path) -> None:
    folder, given = finished(tmp_path)
    other = json.loads(foedus(tmp_path, "run", JOB, "rounds=1", *given, "--json").out)
    (folder / "final.safetensors").write_bytes((Path(other["folder"]) / "final.safetensors").read_bytes())
    said = foedus(tmp_path, "verify", folder, "--json")
    found: Any = json.loads(said.out)
    assert said.code == DIFFERS and found["same"] is False and found["replayed"] is None
    assert found["why"] == "final.safetensors is not the model that the journal names"


def test_the_data_of_one_site_is_not_enough_for_a_replay(tmp_path: Path) -> None:
    folder, given = finished(tmp_path)
    said = foedus(tmp_path, "verify", folder, *given[:2], "--json")
    found = json.loads(said.out)
    assert said.code == MISTAKE and (found["same"], found["needs"]) == (None, ["south"])


def test_a_damaged_federation_is_named(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "federation.json").write_text("{")
    said = foedus(tmp_path, "server", "start")
    assert said.code == MISTAKE and "Traceback" not in said.err and "federation.json is damaged" in said.last
