"""The command line of a run on this machine, as processes: what it prints where, its exit codes and its last line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from foedus import jobfile, launch, runs
from toys import JOB, calls, make_sites

pytestmark = pytest.mark.processes

PLAIN = """
import sys
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner

print("imported, on standard output")

def fit(params, split, ctx):
    print("training, on standard output")
    {inside}
    params["w"] += split.train.x.mean(0)

def load(site):
    {loading}
    return fd.Split(train=(np.ones((4, 2), np.float32), np.zeros(4)))

learner = NumpyLearner({{"w": np.zeros(2, np.float32)}}, train=fit)
job = fd.Job(fd.fedavg(), learner, load, rounds=2)
sites = ["north", "south"]
sites = dict.fromkeys(sites, 0)
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.err.strip().splitlines()[-1]


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "FOEDUS_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200", **more}


def foedus(home: Path, *arguments: Any) -> Said:
    command = [sys.executable, "-m", "foedus", *map(str, arguments)]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False, timeout=60)
    return Said(done.returncode, done.stdout, done.stderr)


def plain(folder: Path, inside: str = "pass", loading: str = "pass", more: str = "") -> Path:
    path = folder / "job.py"
    path.write_text(PLAIN.format(inside=inside, loading=loading) + more)
    return path


def bound(sites: dict[str, Path]) -> list[str]:
    return [text for name, path in sites.items() for text in ("--site", f"{name}={path}")]


# What a run prints.


def test_a_run_prints_one_json_object_and_everything_else_elsewhere(tmp_path: Path) -> None:
    sites = make_sites(tmp_path / "data", ["north", "south"])
    said = foedus(tmp_path, "run", JOB, "rounds=2", *bound(sites), "--seed", 3, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert {"digest", "exact", "rounds", "metrics", "per_site", "seconds", "backend"} <= found.keys()
    assert found["rounds"] == 2 and found["exact"] is True and found["backend"] == "local"
    assert set(found["per_site"]) == {"north", "south"} and found["seconds"] > 0
    assert found["metrics"]["rmse"] > 0 and "test_rmse" in found["metrics"]
    assert "round 2 of 2" in said.err and f"run {found['run']} on backend auto" in said.err
    loaded = jobfile.load(JOB, {"rounds": "2"})
    assert launch.run(loaded.job, sites, seed=3, folder=tmp_path / "again").digest == found["digest"]


def test_what_a_job_prints_does_not_mix_with_the_json(tmp_path: Path) -> None:
    inside = "import os; os.write(1, b'from below\\n'); import subprocess; subprocess.run(['echo', 'from a child'])"
    said = foedus(tmp_path, "run", plain(tmp_path, inside=inside), "--json")
    assert said.code == 0 and json.loads(said.out)["rounds"] == 2
    for text in ("imported, on", "training, on", "from below", "from a child"):
        assert text in said.err


def test_without_json_nothing_is_printed_on_standard_output(tmp_path: Path) -> None:
    said = foedus(tmp_path, "run", plain(tmp_path))
    assert said.code == 0 and said.out == "" and "digest: " in said.err


def test_options_rounds_and_the_number_of_sites(tmp_path: Path) -> None:
    said = foedus(tmp_path, "run", plain(tmp_path), "--sites", 3, "--rounds", 1, "--json")
    found = json.loads(said.out)
    assert found["rounds"] == 1
    closed = runs.journal(Path(found["folder"])).find("close", 0, 0)
    assert closed is not None and [o[0] for o in closed["outcomes"]] == ["site-0", "site-1", "site-2"]


def test_the_home_may_be_named(tmp_path: Path) -> None:
    said = foedus(tmp_path / "a", "run", plain(tmp_path), "--home", tmp_path / "b", "--json")
    assert Path(json.loads(said.out)["folder"]).parent == tmp_path / "b" / "runs" and not (tmp_path / "a").exists()


def test_runs_verify_and_their_json(tmp_path: Path) -> None:
    found = json.loads(foedus(tmp_path, "run", plain(tmp_path), "--json").out)
    listed = json.loads(foedus(tmp_path, "runs", "--json").out)["runs"]
    assert [(line["run"], line["state"], line["rounds"]) for line in listed] == [(found["run"], "finished", 2)]
    said = foedus(tmp_path, "verify", found["run"][:-2], "--json")
    assert said.code == 0 and json.loads(said.out)["same"] is True and "has the same bits" in said.err
    plain(tmp_path, inside="params['w'] += 1e-3")
    said = foedus(tmp_path, "verify", found["run"], "--json")
    assert said.code == 6 and json.loads(said.out)["why"] == "round 0" and "the replay differs: round 0" in said.err


# Failures: the exit code, and the cause in the last line.

USAGE, JOB_ERROR, PAUSED = 2, 3, 5


@pytest.mark.parametrize(
    ("arguments", "code", "last"),
    [
        (["nowhere.py"], JOB_ERROR, "foedus: there is no job file nowhere.py: name a Python file that defines `job`"),
        (["{job}", "mu=3"], JOB_ERROR, "foedus: job.py takes no options (mu): define `def job(mu=…):` in it"),
        (["{job}", "mu"], USAGE, "Error: Invalid value: 'mu' is not of the form KEY=VALUE"),
        (["{job}", "--sites", "0"], JOB_ERROR, "foedus: sites=0: give a count"),
        (["{job}", "--rounds", "0"], JOB_ERROR, "foedus: Job(rounds=0): it must be a whole number of at least 1"),
        (["{job}", "--backend", "cloud"], JOB_ERROR, "foedus: there is no backend 'cloud': choose one of auto, local"),
        (["{job}", "--site", "north"], USAGE, "Error: Invalid value: 'north' is not of the form --site NAME=PATH"),
        (["{job}", "--site", "a=/no/such"], USAGE, "Error: Invalid value: site 'a': there is no /no/such"),
        (["{job}", "--site", "a=/tmp", "--site", "a=/"], USAGE, "Error: Invalid value: a name stands twice in a=/tmp"),
        (["{job}", "--nonsense"], USAGE, "Error: No such option: --nonsense"),
        ([], USAGE, "Error: Missing argument 'JOB'."),
    ],
)
def test_a_mistake_on_the_command_line_is_told_in_the_last_line(
    arguments: list[str], code: int, last: str, tmp_path: Path
) -> None:
    said = foedus(tmp_path, "run", *[text.format(job=plain(tmp_path)) for text in arguments])
    assert said.code == code and said.last.startswith(last) and said.out == ""
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("text", "code", "last"),
    [
        (
            "1 / 0",
            JOB_ERROR,
            "foedus: job.py raised while it was imported: ZeroDivisionError: division by zero (job.py",
        ),
        ("import sys; sys.exit(0)", JOB_ERROR, "foedus: job.py raised while it was imported: SystemExit: 0 (job.py"),
        ("x = (", JOB_ERROR, "foedus: job.py raised while it was imported: SyntaxError: '(' was never closed (job.py"),
        ("del job", JOB_ERROR, "foedus: job.py defines no Job: add `job = fd.Job(…)`"),
        ("job = job.replace(track=1)", JOB_ERROR, "foedus: job.py raised while it was imported: NotImpl"),
        ("del sites", JOB_ERROR, "foedus: no sites are named: give --site NAME=PATH for each"),
        ("job = fd.Job(fd.fedavg(), learner, quorum=3, cohort=2, rounds=1)", JOB_ERROR, "foedus: quorum and cohort do"),
        ("job = job.replace(min_sites=3)", PAUSED, "foedus: round 0: 2 of the 3 sites needed are there (north, south)"),
        ("def sites(): return 1 / 0", 1, "foedus: ZeroDivisionError: division by zero (job.py, line"),
    ],
)
def test_a_job_file_that_is_wrong_is_told_in_the_last_line(text: str, code: int, last: str, tmp_path: Path) -> None:
    if "track" in text:
        code, last = 10, "foedus: Job(track=...) is not built yet"
    said = foedus(tmp_path, "run", plain(tmp_path, more=text), "--json")
    assert (said.code, said.out) == (code, "") and said.last.startswith(last)


def test_a_learner_that_raises_at_one_site_is_named_and_the_run_ends_well(tmp_path: Path) -> None:
    loading = "if site.name == 'south': raise ValueError('the folder is locked')"
    said = foedus(tmp_path, "run", plain(tmp_path, loading=loading), "--json")
    assert said.code == 0
    row = runs.journal(Path(json.loads(said.out)["folder"])).find("close", 0, 0)
    assert row is not None and row["outcomes"][1][:2] == ["south", "declined"]
    assert row["outcomes"][1][2].startswith("loading its data: ValueError: the folder is locked (job.py, line ")


def test_where_every_site_fails_the_last_line_names_them_and_the_cause_and_resume_goes_on(tmp_path: Path) -> None:
    path = plain(tmp_path, inside="open('/no/such/scanner')")
    said = foedus(tmp_path, "run", path, "--json")
    assert said.code == PAUSED and said.out == ""
    assert said.last.startswith(
        "foedus: round 0, task 'train': 0 of the 1 updates needed arrived; north: declined (train:"
    )
    assert "No such file or directory: '/no/such/scanner' (job.py, line 11, in fit)" in said.last
    assert "south: declined" in said.last and "Mend the cause and resume the run: `foedus resume " in said.last
    (run,) = json.loads(foedus(tmp_path, "runs", "--json").out)["runs"]
    assert run["state"] == "paused" and run["why"].startswith("round 0, task 'train': 0 of the 1 updates needed")
    plain(tmp_path)
    said = foedus(tmp_path, "resume", run["run"], "--json")
    assert said.code == 0 and json.loads(said.out)["rounds"] == 2


def test_a_learner_that_leaves_the_process_does_not_finish_the_run(tmp_path: Path) -> None:
    said = foedus(tmp_path, "run", plain(tmp_path, inside="sys.exit(0)"), "--json")
    assert said.code == PAUSED and "SystemExit: 0" in said.last


def test_an_algorithm_that_raises_is_told_with_its_line_after_the_traceback(tmp_path: Path) -> None:
    more = "def step(state, total, context): return state['nothing']\n"
    more += "job = fd.Job(fd.rounds(lambda s: s, fd.delta(), step), learner, load, rounds=1)\n"
    said = foedus(tmp_path, "run", plain(tmp_path, more=more))
    assert said.code == 1 and "Traceback" in said.err
    assert said.last.startswith("foedus: KeyError: 'nothing' (job.py, line") and said.last.endswith("in step)")


@pytest.mark.parametrize("verb", ["resume", "verify"])
def test_a_run_that_is_not_there_is_named(verb: str, tmp_path: Path) -> None:
    for name in ("yesterday", "/no/such/run"):
        said = foedus(tmp_path, verb, name)
        assert said.code == 1 and said.last.startswith(f"foedus: there is no run '{name}' in {tmp_path}/runs")


def test_a_prefix_that_several_runs_share_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        foedus(tmp_path, "run", plain(tmp_path))
    said = foedus(tmp_path, "verify", "2")
    assert said.code == 1 and "is the beginning of several runs" in said.last


def test_another_job_is_not_resumed_as_this_one(tmp_path: Path) -> None:
    path = plain(tmp_path, inside="1 / 0")
    foedus(tmp_path, "run", path)
    plain(tmp_path, more="job = job.replace(rounds=7)")
    (run,) = json.loads(foedus(tmp_path, "runs", "--json").out)["runs"]
    said = foedus(tmp_path, "resume", run["run"])
    assert said.code == 6 and "says job = " in said.last and "is not the one that was journaled" in said.last


def started(tmp_path: Path, sites: dict[str, Path], *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "foedus", "run", str(JOB), "rounds=3", *bound(sites), "--json", *more]
    env = environment(tmp_path)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def trained(sites: dict[str, Path]) -> None:
    deadline = time.monotonic() + 30
    while not sum(calls(sites, "begin").values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupted_run_says_so_and_goes_on_later(tmp_path: Path) -> None:
    sites = make_sites(tmp_path / "data", ["north", "south"], slow=2.0)
    process = started(tmp_path, sites)
    trained(sites)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, ""), err
    for place in sites.values():
        (place / "slow").write_text("0")
    (run,) = json.loads(foedus(tmp_path, "runs", "--json").out)["runs"]
    last = f"foedus: interrupted; `foedus resume {run['run']}` goes on where it stands"
    assert err.strip().splitlines()[-1] == last
    found = json.loads(foedus(tmp_path, "resume", run["run"], "--json").out)
    calm = json.loads(foedus(tmp_path, "run", JOB, "rounds=3", *bound(sites), "--json").out)
    assert found["digest"] == calm["digest"] and found["rounds"] == 3


def test_two_processes_do_not_run_one_run(tmp_path: Path) -> None:
    sites = make_sites(tmp_path / "data", ["north"], slow=20.0)
    process = started(tmp_path, sites)
    try:
        trained(sites)
        (run,) = json.loads(foedus(tmp_path, "runs", "--json").out)["runs"]
        said = foedus(tmp_path, "resume", run["run"])
        assert said.code == 1 and f"is owned by process {os.uname().nodename}:{process.pid}:" in said.last
    finally:
        process.kill()
        process.communicate()
