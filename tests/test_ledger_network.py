"""The ledger and the terms of real sites: what a limit stops, what a kill counts, whose rows a job never saw."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federations import counted, finished, foedus, joined, kinds, until
from foedus.loopback import Federation
from foedus.privacy.accounting import Steps
from foedus.privacy.spending import epsilon
from toys import make_sites

pytestmark = [pytest.mark.processes, pytest.mark.long]
JOB = Path(__file__).parent / "jobs" / "private" / "job.py"
ROUND = Steps(1.0, 10 / 54, 6)  # 60 rows less a tenth for validation, in batches of 10, once

PATIENTS = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    table = np.loadtxt(site.data / "patients.csv", delimiter=",", skiprows=1)
    return fd.Split(train=(table[:, 1:2], table[:, 2]), valid=(table[:1, 1:2], table[:1, 2]))


def gradient(p, x, y):
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}


learner = NumpyLearner({"w": np.zeros(1)}, gradient, lambda p, x: x @ p["w"])
job = fd.Job(fd.fedavg(), learner, load, rounds=1, privacy="none", purpose="triage")
"""


def rule(made: Federation, site: str, text: str) -> None:
    with (made.site_home(site) / "sites" / site / "policy.toml").open("a") as file:
        file.write(f"\n{text}\n")


def account(made: Federation, site: str) -> dict[str, Any]:
    code, found = foedus(made.site_home(site), "site", "privacy")
    assert code == 0, found
    return dict(found["datasets"]["data"])


def test_a_site_stops_at_its_owners_limit_over_two_runs_and_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, once = make_sites(tmp_path / "data", ["north", "south"]), tmp_path / "once"
    once.mkdir()
    monkeypatch.setenv("FOEDUS_KILL", "agent.after-ledger:2")
    monkeypatch.setenv("FOEDUS_KILL_ONCE", str(once))
    with joined(tmp_path / "home", sites) as made:
        rule(made, "north", f"[dataset.data]\nepsilon = {epsilon([ROUND] * 4, 1e-5) + 1e-3}")
        first = made.remote().submit(JOB, {"rounds": "3"})
        until(lambda: os.listdir(once))
        dead = until(lambda: [name for name in sites if made.processes[name].poll() is not None])[0]
        made.start_site(dead)
        assert finished(first).rounds == 3
        for site in sites:
            about = account(made, site)
            assert (about["trainings"], about["unbounded"]) == (3, 0) and about["submitters"] == {"owner": 3}
            assert about["epsilon"] == pytest.approx(epsilon([ROUND] * 3, 1e-5), rel=1e-9)
        second = made.remote().submit(JOB, {"rounds": "3"})
        finished(second)
        assert counted(second) == [["north", "south"], ["south"], ["south"]]
        (why, *_) = [row["why"] for row in kinds(second, "declined") if row["site"] == "north"]
        assert "its owner's limit is" in why and "train fewer rounds" in why
        assert account(made, "north")["trainings"] == 4 and account(made, "south")["trainings"] == 6


def test_terms_keep_a_job_out_and_rows_that_were_withdrawn_are_never_seen(tmp_path: Path) -> None:
    sites = {name: tmp_path / "data" / name for name in ("north", "south")}
    for place in sites.values():
        place.mkdir(parents=True)
        rows = np.column_stack([np.arange(20), np.arange(20) / 20, np.ones(20)])
        np.savetxt(place / "patients.csv", rows, delimiter=",", header="patient,age,y", comments="", fmt="%g")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.py").write_text(PATIENTS)
    with joined(tmp_path / "home", sites) as made:
        (made.site_home("north") / "sites" / "north" / "withdrawn.txt").write_text("3\n7\n19\n99\n")
        rule(made, "north", '[dataset.data]\npurpose = "triage"\nexcluded = "withdrawn.txt"\ncolumn = "patient"')
        rule(made, "south", '[dataset.data]\npurpose = ["billing"]')
        found = {row["site"]: row for row in made.remote().check(tmp_path / "job" / "job.py")}
        assert found["north"]["why"] == "" and "17" in str(found["north"]["rows"])
        assert "may be used for 'billing', and this job states the purpose 'triage'" in found["south"]["why"]
        result = finished(made.remote().submit(tmp_path / "job" / "job.py"))
        assert list(result.per_site) == ["north"]
        about = account(made, "north")
        assert (about["trainings"], about["unbounded"]) == (0, 1) and about["purpose"] == ["triage"]
