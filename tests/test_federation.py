"""A real server and real agents on loopback: the same bits as the simulation, and sites that come and go."""

import json
import subprocess
import sys

import pytest

from federations import foedus, kinds, simulated, started, submit, until
from foedus import frames, jobfile, launch, loopback, runs
from foedus.absent import absences
from foedus.params import digest
from toys import JOB, calls, make_sites

pytestmark = pytest.mark.processes
TABLE = JOB.parents[1] / "table" / "job.py"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One federation for the tests that leave it as it was, and what its sites' files hold."""
    with started(tmp_path_factory.mktemp("federation"), ["north", "south", "east"]) as (made, sites):
        yield made, sites, {path / "rows.csv": (path / "rows.csv").read_text() for path in sites.values()}


@pytest.fixture
def federation(shared):
    """(federation, site -> folder): three sites that are there, hold their rows, and have counted no call yet."""
    made, sites, rows = shared
    for path, text in rows.items():
        path.write_text(text)
        (path.parent / "calls").unlink(missing_ok=True)
    slow(sites, 0.3)
    return made, sites


def slow(sites, seconds):
    """Has training at each site take up to so many seconds from its next Task on."""
    for path in sites.values():
        (path / "slow").write_text(str(seconds))


def test_a_real_federation_gives_the_bits_of_the_simulation(federation, tmp_path):
    made, sites = federation
    result = submit(made, rounds=3).wait()
    assert calls(sites) == {"north": 3, "south": 3, "east": 3}
    assert result.backend == "network" and result.exact and result.rounds == 3
    assert result.digest == simulated(sites, tmp_path / "sim", rounds=3)
    assert set(result.per_site) == {"north", "south", "east"}


def test_below_min_sites_a_run_pauses_and_goes_on_when_they_return(federation):
    made, sites = federation
    run = submit(made, rounds=12, min_sites=3)
    until(lambda: len(kinds(run, "step")) >= 1)
    made.site("south", "pause")
    until(lambda: run.status()["state"] == "paused")
    assert any(cause in run.status()["why"] for cause in ("2 of the 3 sites", "south: lost (it left)"))
    slow(sites, 0)
    made.site("south", "return")
    assert run.wait().rounds == 12


def test_a_job_that_raises_at_one_site_names_file_and_line_and_the_others_go_on(federation, caplog):
    made, sites = federation
    (sites["south"] / "slow").write_text("broken")
    run = submit(made, rounds=2)
    result = run.wait()
    told = [row["why"] for row in kinds(run, "declined") if row["site"] == "south"]
    line = JOB.read_text().splitlines().index(next(s for s in JOB.read_text().splitlines() if "(slow,) =" in s)) + 1
    assert result.rounds == 2 == len(told)
    assert told[0].startswith("train: ValueError (job.py") and f"job.py, line {line}" in told[0]
    assert absences(runs.journal(result.folder)) == [f"south did not count in 2 Tasks, declined: {told[0]}"]
    assert result.declined == {"south": f"declined: {told[0]}"} and caplog.messages == [f"south declined: {told[0]}"]
    logs = [path.read_text() for path in made.site_home("south").rglob("*.log")]
    assert any("could not convert string to float: 'broken'" in log for log in logs)  # a text may quote the data


@pytest.mark.parametrize(
    "options", [{"quorum": 2}, {"quorum": 2, "late": "keep"}], ids=["over-selected", "asynchronous"]
)
def test_what_the_world_decided_replays_to_the_same_bits(options, federation, tmp_path):
    made, sites = federation
    result = submit(made, rounds=5, **options).wait()
    slow(sites, 0)
    loaded = jobfile.load(JOB, {"rounds": "5"} | {k: str(v) for k, v in options.items()})
    again = launch.run(loaded.job, sites, replay=result, folder=tmp_path / "replay")
    counted = [len(row["counted"]) for row in runs.journal(result.folder).all("close") if row["task"] == 0]
    assert counted == [2] * 5
    assert again.digest == result.digest


def test_submit_check_says_what_is_missing_before_anything_trains(federation):
    made, sites = federation
    (sites["south"] / "rows.csv").unlink()
    east, north, south = made.remote().check(JOB)
    assert east["ready"] and north["ready"] and north["approval"] == "given" and north["rows"]["train"] == 40
    assert not south["ready"] and south["why"].startswith("loading its data: FileNotFoundError (job.py, line")
    assert calls(sites) == {"north": 0, "south": 0, "east": 0}


def test_updates_go_when_their_round_is_settled_and_after_a_run_every_site_has_the_model(federation):
    made, sites = federation
    run, server = submit(made, rounds=8), made.home / "server"
    until(lambda: len(kinds(run, "step")) >= 2)
    settled = kinds(run, "step")[-1]["round"]
    digests = {row["digest"] for row in kinds(run, "accepted") if row["round"] <= settled}
    assert len(digests) >= 2 * 3 and digests.isdisjoint(path.name for path in (server / "updates").rglob("*"))
    until(lambda: all(round > settled for round in held(made, run.id)))
    assert run.status()["state"] == "running"
    slow(sites, 0)
    result = run.wait()
    models = [made.site_home(name) / "sites" / name / "models" / run.id / "final.safetensors" for name in sites]
    until(lambda: all(path.exists() for path in models))
    assert {digest(frames.read_model(path)) for path in models} == {result.digest}
    until(lambda: not [path for path in (server / "updates").rglob("*") if path.is_file()])
    bundles = {row["bundle"]["digest"] for started in made.remote().runs() for row in submissions(made, started["run"])}
    assert {path.name for path in (server / "blobs").rglob("*") if path.is_file()} == bundles
    rows = runs.journal(result.folder).all("accepted")
    assert all(row["digest"] and row["size"] and "params" not in row for row in rows)


def submissions(made, run):
    return kinds(made.remote().run(run), "submitted")


def held(made, run):
    """The rounds of all updates that are files at a site of the federation."""
    return [int(path.name.split("-")[0]) for path in made.home.glob(f"homes/*/sites/*/work/{run}/kept/*.update")]


def test_run_with_backend_network_is_one_command(tmp_path):
    sites = make_sites(tmp_path / "data", ["north", "south"])
    given = [text for name, path in sites.items() for text in ("--site", f"{name}={path}")]
    command = [
        sys.executable,
        "-m",
        "foedus",
        "run",
        str(JOB),
        "rounds=2",
        "--json",
        "--home",
        str(tmp_path / "home"),
        *given,
    ]
    done = [
        subprocess.run([*command, "--backend", backend], capture_output=True, check=True)
        for backend in ("network", "local")
    ]
    told = [json.loads(one.stdout) for one in done]
    assert all(b"privacy: none: no protection: the server can read each site's update" in one.stderr for one in done)
    assert told[0]["backend"] == "network" and told[0]["digest"] == told[1]["digest"]
    verified = foedus(tmp_path / "home", "verify", told[0]["run"])
    assert verified == (0, verified[1]) and verified[1]["same"]
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False)
    assert left.stdout == b"", "a process of the federation is still there"


def test_a_run_at_the_server_is_listed_stopped_and_resumed_by_its_verbs(federation, tmp_path):
    made, sites = federation
    slow(sites, 2)
    run = foedus(made.home, "submit", JOB, "rounds=8", "--no-wait")[1]["run"]
    until(lambda: made.remote().run(run).status()["rounds"] >= 1)
    foedus(made.home, "stop", run)
    assert foedus(made.home, "runs")[1]["runs"][-1]["state"] == "stopped"
    slow(sites, 0)
    foedus(made.home, "resume", run)
    assert foedus(made.home, "watch", run)[1]["state"] == "finished"
    assert foedus(made.home, "pull", run)[1]["digest"] == simulated(sites, tmp_path / "sim", rounds=8)


def test_data_that_does_not_fit_the_schema_is_found_before_training(tmp_path):
    """The same job file and contract, simulated and for real; the finding names site, column and remedy."""
    sites = {name: path / "rows.csv" for name, path in make_sites(tmp_path / "data", ["north", "south"]).items()}
    text = sites["south"].read_text().splitlines()
    sites["south"].write_text("\n".join(["777,0,0,0,0"] * 6 + text[6:]))
    with loopback.federation(tmp_path / "home") as made:
        made.start_server()
        for name, path in sites.items():
            made.join(name, {"rows": path})
        made.await_sites(sites)
        north, south = made.remote().check(TABLE)
        result = made.remote().submit(TABLE).wait()
    assert north["ready"] and north["schema"] == "fits"
    assert not south["ready"] and "column 'a'" in south["why"] and "777" not in south["why"]
    assert set(result.per_site) == {"north"}
    loaded = jobfile.load(TABLE)
    outcomes = runs.journal(launch.run(loaded.job, sites, folder=tmp_path / "sim").folder).all("close")[0]["outcomes"]
    assert "column 'a'" in dict((site, why) for site, _, why, _ in outcomes)["south"]


def test_a_site_joins_late_one_leaves_and_one_crashes_and_returns(federation, tmp_path):
    """The last one here: its federation is another one afterwards."""
    made, sites = federation
    run = submit(made, rounds=40)
    until(lambda: len(kinds(run, "step")) >= 1)
    (late,) = make_sites(tmp_path, ["late"], 0.3).values()
    made.join("late", {"data": late})
    until(lambda: kinds(run, "roster")[-1]["sites"] == ["east", "late", "north", "south"])
    made.site("east", "leave")
    until(lambda: kinds(run, "roster")[-1]["sites"] == ["late", "north", "south"])
    made.kill("south")
    made.start_site("south")
    crashed = len(kinds(run, "step"))
    until(lambda: any(row["site"] == "south" and row["round"] > crashed for row in kinds(run, "accepted")))
    slow(sites | {"late": late}, 0)
    result = run.wait()
    assert result.rounds == 40
    events = {(event["what"], event["site"]) for event in runs.journal(result.folder).events}
    assert {("joined", "late"), ("left", "east")} <= events
