"""A real server and real agents on loopback: the same bits as the simulation, and sites that come and go."""

import pytest

from federations import kinds, simulated, started, submit, until
from foedus import jobfile, launch, runs
from toys import JOB, calls

pytestmark = pytest.mark.processes


def test_a_real_federation_gives_the_bits_of_the_simulation(tmp_path):
    with started(tmp_path, ["north", "south", "east"], slow=0.3) as (made, sites):
        result = submit(made, rounds=3).wait()
    assert calls(sites) == {"north": 3, "south": 3, "east": 3}
    assert result.backend == "network" and result.exact and result.rounds == 3
    assert result.digest == simulated(sites, tmp_path / "sim", rounds=3)
    assert set(result.per_site) == {"north", "south", "east"}


def test_a_site_joins_late_one_leaves_and_one_crashes_and_returns(tmp_path):
    with started(tmp_path, ["north", "south", "east"], slow=0.4) as (made, sites):
        run = submit(made, rounds=8)
        until(lambda: len(kinds(run, "step")) >= 1)
        late = tmp_path / "data" / "late"
        late.mkdir()
        for name in ("rows.csv", "slow"):
            (late / name).write_text((sites["north"] / name).read_text())
        made.join("late", {"data": late})
        until(lambda: kinds(run, "roster")[-1]["sites"] == ["east", "late", "north", "south"])
        made.site("east", "leave")
        until(lambda: kinds(run, "roster")[-1]["sites"] == ["late", "north", "south"])
        made.kill("south")
        made.start_site("south")
        result = run.wait()
    assert result.rounds == 8
    events = {(e["what"], e["site"]) for e in kinds_of(result)}
    assert {("joined", "late"), ("left", "east")} <= events


def kinds_of(result):
    return runs.journal(result.folder).events


def test_below_min_sites_a_run_pauses_and_goes_on_when_they_return(tmp_path):
    with started(tmp_path, ["north", "south"], slow=0.2) as (made, _):
        run = submit(made, rounds=12, min_sites=2)
        until(lambda: len(kinds(run, "step")) >= 1)
        made.site("south", "pause")
        until(lambda: run.status()["state"] == "paused")
        assert any(cause in run.status()["why"] for cause in ("1 of the 2 sites", "south: lost (it left)"))
        made.site("south", "return")
        result = run.wait()
    assert result.rounds == 12


def test_a_job_that_raises_at_one_site_names_file_and_line_and_the_others_go_on(tmp_path):
    with started(tmp_path, ["north", "south"]) as (made, sites):
        run = submit(made, rounds=2)
        (sites["south"] / "slow").write_text("broken")
        result = run.wait()
        told = [row for row in kinds(run, "declined") if row["site"] == "south"]
    assert result.rounds == 2
    assert not told or "job.py" in told[0]["why"]


@pytest.mark.parametrize(
    "options", [{"quorum": 2}, {"quorum": 2, "late": "keep"}], ids=["over-selected", "asynchronous"]
)
def test_what_the_world_decided_replays_to_the_same_bits(options, tmp_path):
    with started(tmp_path, ["north", "south", "east"], slow=0.4) as (made, sites):
        result = submit(made, rounds=5, **options).wait()
    loaded = jobfile.load(JOB, {"rounds": "5"} | {k: str(v) for k, v in options.items()})
    again = launch.run(loaded.job, sites, replay=result, folder=tmp_path / "replay")
    counted = [len(row["counted"]) for row in runs.journal(result.folder).all("close") if row["task"] == 0]
    assert counted == [2] * 5
    assert again.digest == result.digest


def test_submit_check_says_what_is_missing_before_anything_trains(tmp_path):
    with started(tmp_path, ["north", "south"]) as (made, sites):
        (sites["south"] / "rows.csv").unlink()
        north, south = made.remote().check(JOB)
    assert north["ready"] and north["approval"] == "given" and north["rows"]["train"] == 40
    assert not south["ready"] and "rows.csv" in south["why"]
    assert calls(sites) == {"north": 0, "south": 0}
