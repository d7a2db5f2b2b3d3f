"""A study in real processes: the command line, kill -9 at named points and at random, the same numbers in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from federations import until
from foedus.loopback import environment

pytestmark = pytest.mark.kills
JOB = Path(__file__).parent / "jobs" / "study" / "job.py"
POINTS = (
    "run.after-round:3",
    "local.before-close:9",
    "run.after-step:6",
    "store.before-commit:40",
    "store.after-commit:70",
)


def start(folder: Path, *more: str, **env: str) -> subprocess.Popen[str]:
    """`foedus compare` of the toy's two methods, whose steps have noise, under two seeds, tuned and with references."""
    words = ["compare", str(JOB), "--seeds", "2", "--tune", "lr=0.5,2", "--tune", "noise=0.1", "--backend", "local"]
    command = [sys.executable, "-m", "foedus", *words, "--save", str(folder), "--json", *more]
    return subprocess.Popen(
        command, env={**environment(), **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def numbers(folder: Path) -> list[dict[str, Any]]:
    """All that a study knows but times."""
    return [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in json.loads((folder / "scores.json").read_text())["scores"]
    ]


def begun(folder: Path) -> int:
    """How many runs have been begun."""
    return sum(1 for _ in folder.glob("runs/*/run.db"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The numbers of a study that nobody disturbs."""
    folder = tmp_path_factory.mktemp("calm") / "study"
    told = ended(start(folder))
    assert list(told["methods"]) == ["whole", "half", "alone", "pooled", "unseen-site"]
    assert told["methods"]["whole"]["options"] == {"lr": 2.0, "noise": 0.1}
    assert told["methods"]["half"]["difference"]["half"] > 0  # the seeds differ
    return numbers(folder)


@pytest.mark.parametrize("points", [POINTS[1::2], pytest.param(POINTS, marks=pytest.mark.long)], ids=len)
def test_a_study_that_dies_at_one_point_after_another_ends_with_the_same_numbers(
    points: tuple[str, ...], tmp_path: Path, calm: list[dict[str, Any]]
) -> None:
    once, deaths = tmp_path / "once", 0
    once.mkdir()
    env = {"FOEDUS_KILL": ",".join(points), "FOEDUS_KILL_ONCE": str(once)}
    process = start(tmp_path / "study", **env)
    while process.wait(120) == -signal.SIGKILL:
        process.communicate()
        deaths += 1
        process = start(tmp_path / "study", **env)
    assert deaths == len(points)
    ended(process)
    assert numbers(tmp_path / "study") == calm


@pytest.mark.long
@pytest.mark.parametrize("kills", [2, 12])
def test_kills_at_random_moments_change_no_number_and_nothing_is_done_twice(
    kills: int, tmp_path: Path, calm: list[dict[str, Any]]
) -> None:
    rng, folder, known = random.Random(kills), tmp_path / "study", dict[str, bytes]()
    for _ in range(kills):
        before = begun(folder)
        process = start(folder, SLOW="0.05")  # a run takes 0.4 s: 20 of them outlive 12 kills
        until(lambda before=before: begun(folder) > before)
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        now = {p.parent.name: p.read_bytes() for p in folder.glob("runs/*/final.safetensors")}
        assert known.items() <= now.items()
        known = now
    times = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/final.safetensors")}
    ended(start(folder))
    assert numbers(folder) == calm
    kept = sorted(times, key=lambda p: times[p])[:-1]  # the last one may have been written without its last row
    assert all(p.stat().st_mtime_ns == times[p] for p in kept)


def test_the_command_line_writes_a_table_a_plot_and_latex(tmp_path: Path) -> None:
    command = [
        "compare",
        str(JOB),
        "--seeds",
        "1",
        "--references",
        "alone",
        "--by",
        "mean,worst_site",
        "--save",
        tmp_path / "s",
    ]
    more = ["--plot", tmp_path / "study.svg", "--latex", tmp_path / "study.tex"]
    words = [sys.executable, "-m", "foedus", *map(str, [*command, *more])]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].split() == ["method", "mean", "worst_site"]
    assert done.stdout.splitlines()[1].split() == ["whole", "6.000", "6.000"]
    assert "done: half, seed 0" in done.stderr and (tmp_path / "study.svg").exists()
    assert r"\toprule" in (tmp_path / "study.tex").read_text()
