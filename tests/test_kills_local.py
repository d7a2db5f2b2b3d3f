"""Law 2 in `local`, with real processes: `kill -9` at every named point, and at random, changes no bit."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import foedus
from federations import until
from foedus import jobfile, launch
from toys import JOB, calls, make_sites, trained

pytestmark = pytest.mark.kills

NAMES = ["north", "south", "west"]
SOURCE = Path(foedus.__file__).parent
HERE = ("run.py", "backends/simulation.py", "store/sqlite.py")  # what a local run passes through
QUICK = ["run.after-round", "local.after-task", "local.before-close", "local.after-close", "run.after-step"]
STORE = ["store.before-commit", "store.after-commit"]
STATE = ["run.before-state", "run.after-state"]  # a checkpoint is written when a second has gone by


def test_the_points_tested_here_are_all_that_a_local_run_passes() -> None:
    text = "".join((SOURCE / name).read_text() for name in HERE)
    assert set(re.findall(r'point\("([\w.-]+)"\)', text)) == {*QUICK, *STORE, *STATE}


def start(home: Path, arguments: list[str], **env: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "foedus", *arguments, "--json"],
        env={**os.environ, "FOEDUS_HOME": str(home), "PYTHONPATH": path, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """The digest that the process printed; its last words where it failed."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return str(json.loads(out)["digest"])


def order(sites: dict[str, Path], *options: str) -> list[str]:
    bound = [text for name, path in sites.items() for text in ("--site", f"{name}={path}")]
    return ["run", str(JOB), *(options or ("rounds=4",)), *bound]


def died(process: subprocess.Popen[str]) -> bool:
    """Whether it ended by `kill -9`."""
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """rounds -> the digest of a run that nobody disturbs; where its data lie does not count."""
    folder = tmp_path_factory.mktemp("calm")
    sites = make_sites(folder / "data", NAMES)
    jobs = {rounds: jobfile.load(JOB, {"rounds": str(rounds)}).job for rounds in (4, 8, 12)}
    return {rounds: launch.run(job, sites, folder=folder / str(rounds)).digest for rounds, job in jobs.items()}


def run_of(home: Path) -> str:
    (folder,) = (home / "runs").iterdir()
    return folder.name


@pytest.mark.parametrize(
    "passage", [2, pytest.param(1, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("point", QUICK)
def test_a_kill_at_a_point_of_the_round_changes_no_bit(
    point: str, passage: int, tmp_path: Path, calm: dict[int, str]
) -> None:
    sites = make_sites(tmp_path / "data", NAMES)
    assert died(start(tmp_path, order(sites), FOEDUS_KILL=f"{point}:{passage}"))
    assert ended(start(tmp_path, ["resume", run_of(tmp_path)])) == calm[4]


@pytest.mark.parametrize("passage", [2, 22, pytest.param(9, marks=pytest.mark.long)])
@pytest.mark.parametrize("point", STORE)
def test_a_kill_around_a_commit_changes_no_bit(point: str, passage: int, tmp_path: Path, calm: dict[int, str]) -> None:
    sites = make_sites(tmp_path / "data", NAMES)
    assert died(start(tmp_path, order(sites, "rounds=8"), FOEDUS_KILL=f"{point}:{passage}"))
    assert ended(start(tmp_path, ["resume", run_of(tmp_path)])) == calm[8]


@pytest.mark.parametrize("point", STATE)
def test_a_kill_around_a_checkpoint_changes_no_bit(point: str, tmp_path: Path, calm: dict[int, str]) -> None:
    sites = make_sites(tmp_path / "data", NAMES, slow=0.4)
    assert died(start(tmp_path, order(sites), FOEDUS_KILL=point))
    before = sum(calls(sites).values())
    assert 3 <= before <= 9  # some rounds were done
    assert ended(start(tmp_path, ["resume", run_of(tmp_path)])) == calm[4]


def test_a_checkpoint_spares_the_rounds_before_it(tmp_path: Path, calm: dict[int, str]) -> None:
    sites = make_sites(tmp_path / "data", NAMES, slow=0.5)
    assert died(start(tmp_path, order(sites), FOEDUS_KILL="local.after-task:7"))  # the training of the fourth round
    assert calls(sites) == dict.fromkeys(NAMES, 3)
    assert ended(start(tmp_path, ["resume", run_of(tmp_path)])) == calm[4]
    assert all(count < 3 + 4 for count in calls(sites).values())  # not all four rounds were trained again


def test_a_run_that_was_killed_before_its_first_row_says_so(tmp_path: Path) -> None:
    assert died(start(tmp_path, order(make_sites(tmp_path / "data", NAMES)), FOEDUS_KILL="store.before-commit:1"))
    process = start(tmp_path, ["resume", run_of(tmp_path)])
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err.strip().endswith("was killed before its first row: run the job again")
    listed = subprocess.run(
        [sys.executable, "-m", "foedus", "runs", "--home", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "open" in listed.stdout


def test_a_run_that_dies_at_one_point_after_another_ends_with_the_same_bits(
    tmp_path: Path, calm: dict[int, str]
) -> None:
    sites, once = make_sites(tmp_path / "data", NAMES), tmp_path / "once"
    once.mkdir()
    points = ",".join(f"{point}:2" for point in [*QUICK, *STORE])
    process, deaths = start(tmp_path, order(sites), FOEDUS_KILL=points, FOEDUS_KILL_ONCE=str(once)), 0
    while process.wait(30) == -signal.SIGKILL:
        deaths += died(process)
        process = start(tmp_path, ["resume", run_of(tmp_path)], FOEDUS_KILL=points, FOEDUS_KILL_ONCE=str(once))
    assert deaths == len(QUICK) + len(STORE)
    assert ended(process) == calm[4]


def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path, calm: dict[int, str]) -> None:
    """Two lives last long enough for a checkpoint, which later ones go on from; the others end soon."""
    rng, sites = random.Random(10), make_sites(tmp_path / "data", NAMES, slow=0.15)
    moments = [rng.uniform(0.0, 0.5) for _ in range(8)] + [rng.uniform(1.2, 1.6) for _ in range(2)]
    rng.shuffle(moments)
    process = start(tmp_path, order(sites, "rounds=12"))
    kills, cut = 0, [0]  # trainings that were cut off so far
    for moment in moments:
        begun = sum(calls(sites, "begin").values())
        until(lambda begun=begun: sum(calls(sites, "begin").values()) > begun)  # this life trains
        time.sleep(moment)
        process.kill()
        kills += died(process)
        cut.append(sum(calls(sites, "begin").values()) - sum(calls(sites).values()))
        process = start(tmp_path, ["resume", run_of(tmp_path)])
    assert ended(process) == calm[12]
    assert kills == 10 and cut[-1] >= 1 and cut == sorted(cut)  # at least one hit the middle of training
    begun_by_round = trained(sites)
    assert all(begun_by_round[name, round] >= 1 for name in NAMES for round in range(12))
    assert all(begun_by_round[name, 0] <= kills for name in NAMES)  # the last life did not begin anew
