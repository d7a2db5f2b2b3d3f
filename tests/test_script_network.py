"""A script at real sites: the bits of a simulation, inside the walls of the sites' workers, and after kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from federations import finished, kinds, started
from foedus import jobfile, launch

pytestmark = pytest.mark.processes
JOB = Path(__file__).parent / "jobs" / "script" / "job.py"


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_SECRET", "42")  # of whoever starts the agents
        with started(tmp_path_factory.mktemp("script"), ["north", "south"]) as found:
            yield found


def submit(made, **options):
    return made.remote().submit(JOB, {k: str(v) for k, v in options.items()})


def processes(sites):
    """name -> the processes of the script that trained there."""
    return {name: {line.split()[1] for line in (p / "calls").read_text().splitlines()} for name, p in sites.items()}


def test_a_script_has_the_bits_of_a_simulation_one_process_a_site_and_no_network(federation, tmp_path):
    made, sites = federation
    result = finished(submit(made, fault="walls"))
    assert {len(found) for found in processes(sites).values()} == {1}
    assert (sites["north"] / "said").read_text() == "walls []"
    local = launch.run(jobfile.load(JOB).job, sites, folder=tmp_path / "local", backend="local")
    assert result.digest == local.digest and result.metrics["rmse"] == local.metrics["rmse"]
    killed = finished(submit(made, fault="kill"))
    assert killed.digest == local.digest and (sites["north"] / "killed").exists()


def test_what_a_script_raises_reaches_the_submitter_without_its_text(federation):
    made, _ = federation
    run = submit(made, fault="raise")
    finished(run)
    (why,) = [row["why"] for row in kinds(run, "declined")]
    assert "train.py: ValueError (train.py, line" in why and "42" not in why


@pytest.mark.long
def test_a_script_that_hangs_is_stopped_and_the_round_goes_on(federation):
    made, _ = federation
    run = submit(made, fault="hang", stall=0.5)
    finished(run)
    (why,) = [row["why"] for row in kinds(run, "declined")]
    assert "no progress for 0.5 s" in why and "rnd.progress()" in why


def test_a_script_that_fails_at_its_start_makes_the_site_not_ready(federation):
    made, _ = federation
    checked = made.remote().check(JOB, {"fault": "early"})
    assert all("starting its script, train.py: ValueError" in site["why"] and not site["ready"] for site in checked)
