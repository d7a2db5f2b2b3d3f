"""`foedus attack` as a process: what it prints, what it writes, and how slips are answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import audit_jobs
from test_cli_first import JOB_ERROR, MISTAKE
from test_cli_run import foedus

pytestmark = pytest.mark.processes
QUICK = ["--shadows", "0", "--canaries", "0"]


def written(folder: Path) -> Path:
    path = folder / "job.py"
    path.write_text(Path(audit_jobs.__file__).read_text() + "\nmade = job\njob = made()\nsites = SITES\n")
    return path


def test_the_command_prints_one_object_and_writes_a_report(tmp_path: Path) -> None:
    job = written(tmp_path)
    said = foedus(
        tmp_path, "attack", job, "--target", "west", "--records", 1, *QUICK, "--out", tmp_path / "r", "--json"
    )
    found = json.loads(said.out)
    assert said.code == 0 and found["site"] == "west" and found["defences"] == ["none", "secagg"]
    assert "The inputs of site west can be recovered exactly" in found["verdict"]
    kept = json.loads((tmp_path / "r" / "audit.json").read_text())
    assert kept["findings"] == found["findings"] and (tmp_path / "r" / "report.html").exists()


def test_a_refuted_claim_ends_the_command_with_an_error(tmp_path: Path) -> None:
    job = written(tmp_path)
    more = ["--against", "none", "--shadows", 0, "--canaries", 100, "--epsilon", 0.1]
    said = foedus(tmp_path, "attack", job, *more)
    assert said.code == MISTAKE and "IS REFUTED" in said.out
    assert said.last == "foedus: the claimed ε of none is below what the audit shows: it does not hold"


def test_a_site_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    said = foedus(tmp_path, "attack", written(tmp_path), "--target", "nowhere")
    assert said.code == JOB_ERROR
    assert said.last == "foedus: there is no site 'nowhere': the sites are east, north, south, west"
