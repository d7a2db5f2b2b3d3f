"""Secure aggregation over a real federation: the bits of the simulation, and nothing in the clear at the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from federations import finished, kinds, simulated, started, submit, until
from foedus import jobfile, launch, runs
from foedus.remote import Run
from test_kills_network import SEALED, Survived, named
from toys import JOB, calls, gate

NAMES = ["east", "north", "south"]
FOUR = [*NAMES, "west"]  # 2 * 4 // 3 + 1 = 3 of them must go to the end
SECAGG = {"privacy": "secagg"}


@pytest.mark.processes
def test_a_sealed_run_has_the_bits_of_the_simulation_and_of_masks_off(tmp_path: Path) -> None:
    with started(tmp_path, NAMES) as (made, sites):
        sealed = submit(made, privacy="secagg", rounds=2).wait()
        plain = submit(made, privacy="secagg", masks=0, rounds=2).wait()
        record = json.loads(made.site("east", "sent", "--json"))["sent"]
    assert sealed.digest == plain.digest == simulated(sites, tmp_path / "same", privacy="secagg", rounds=2)
    steps = [row["per_site"] for result in (sealed, plain) for row in runs.journal(result.folder).all("step")]
    assert steps == [{}] * 4
    assert sealed.metrics == pytest.approx(plain.metrics)
    rows = [row for row in runs.journal(sealed.folder).all("accepted") if (row["round"], row["task"]) != (0, 0)]
    left = {row["digest"] for row in record if row.get("sealed")}
    assert left == {row["digest"] for row in rows if row["site"] == "east"}, "the record has what left the site"
    assert len(rows) == 3 * 4 and {(row["weight"], row["metrics"]) for row in rows} == {("0x0.0p+0", "")}


@pytest.mark.processes
def test_keys_for_a_round_ride_on_the_round_before(tmp_path: Path) -> None:
    """Everybody's keys are there while a site still trains: they came with the last message of round 1."""
    with started(tmp_path, NAMES) as (made, sites):
        gate(sites["east"], 2)  # rounds 0 and 1
        run = submit(made, privacy="secagg", rounds=3, evaluate=0)
        found = until(lambda: [row for row in kinds(run, "seal-keys") if row["round"] == 2])
        assert [row["task"] for row in found] == [0] and calls(sites)["east"] == 2
        gate(sites["east"], None)
        digest = finished(run).digest
    assert digest == simulated(sites, tmp_path / "same", privacy="secagg", rounds=3, evaluate=0)


def arrived(run: Run) -> set[str]:
    """The sites whose masked words the server has."""
    return {row["site"] for row in kinds(run, "accepted")}


class Killed(Survived):
    """A sealed run of four sites with kills at the points of sealing."""

    names, table = FOUR, SEALED


@pytest.mark.kills
def test_kills_while_a_sum_is_sealed_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = ["server.before-seal-reveals", "agent.after-masked", "agent.after-revealed"]
    survived(tmp_path, monkeypatch, points, 1)


@pytest.mark.kills
@pytest.mark.long
def test_kills_at_every_point_of_sealing_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survived(tmp_path, monkeypatch, [point for points in SEALED.values() for point in points], 2)


def survived(folder: Path, patch: pytest.MonkeyPatch, points: list[str], rounds: int) -> None:
    run = Killed(folder, patch, points, rounds, SECAGG | {"wmax": "64"})
    assert run.killed == {named(point) for point in points}
    assert all(run.begun(site) == [1] * rounds for site in FOUR), "an update was computed again"
    assert run.digest == simulated(run.sites, folder / "sim", rounds=rounds, wmax=64, **SECAGG)


@pytest.mark.kills
def test_sites_that_are_lost_at_any_stage_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """North is gone for good once it has masked its words, in another run once it has signed the survivors."""
    options = {"rounds": "1", "wmax": "64", "evaluate": "0", **SECAGG}
    results = {}
    with started(tmp_path, FOUR) as (made, sites):
        for point in ("agent.after-masked", "agent.after-agreed"):
            made.kill("north")
            monkeypatch.setenv("FOEDUS_KILL", point)
            made.start_site("north")
            made.await_sites(FOUR)
            run = submit(made, **options)
            until(lambda: made.processes["north"].poll() is not None)
            if point == "agent.after-masked":
                until(lambda run=run: arrived(run) == {"east", "south", "west"})
                run.steer("skip", site="north")
            results[point] = finished(run)
    monkeypatch.delenv("FOEDUS_KILL")
    for (point, result), there in zip(results.items(), (["east", "south", "west"], FOUR), strict=True):
        (close,) = runs.journal(result.folder).all("close")
        assert [site for site, _, _ in close["counted"]] == there
        again = launch.run(jobfile.load(JOB, options).job, dict(sites), folder=tmp_path / point, replay=result)
        assert again.digest == result.digest


@pytest.mark.kills
@pytest.mark.long
def test_too_few_before_any_share_left_begin_again_under_new_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(tmp_path, FOUR) as (made, sites):
        for name in ("north", "west"):
            made.kill(name)
        monkeypatch.setenv("FOEDUS_KILL", "agent.after-masked")
        for name in ("north", "west"):
            made.start_site(name)
        made.await_sites(FOUR)
        run = submit(made, rounds=1, wmax=64, evaluate=0, **SECAGG)
        for name in ("north", "west"):
            until(lambda name=name: made.processes[name].poll() is not None)
        monkeypatch.delenv("FOEDUS_KILL")
        until(lambda: arrived(run) == {"east", "south"})
        for name in ("north", "west"):
            run.steer("skip", site=name)
        for name in ("north", "west"):
            made.start_site(name)
        result = finished(run)
    journal = runs.journal(result.folder)
    assert [row["attempt"] for row in journal.all("seal-keys")] == [0, 1]
    assert [row["attempt"] for row in journal.all("seal-survivors")] == [1]
    assert result.digest == simulated(sites, tmp_path / "sim", rounds=1, wmax=64, evaluate=0, **SECAGG)
