"""`kill -9` inside a site's training, on every backend and of a real site: only the step in hand is done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_server import FakeServer
from federations import until
from foedus import jobfile, launch
from foedus.keys import key
from foedus.params import Params
from site_rig import Rig

pytestmark = [pytest.mark.kills]

JOB = Path(__file__).parent / "jobs" / "long" / "job.py"
NAMES = ["north", "south"]
A_STEP, ALL = 10, 120  # images
AT = 75  # the image at which a process dies: in the eighth step, in the last but one epoch's


def sites(folder: Path) -> dict[str, Path]:
    found = {name: folder / name for name in NAMES}
    for path in found.values():
        path.mkdir(parents=True)
    return found


def taken(site: Path) -> list[int]:
    return [int(line) for line in (site / "taken").read_text().split()]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The digest of a run that nobody disturbs, and what its sites take."""
    folder = tmp_path_factory.mktemp("calm")
    here = sites(folder / "data")
    digest = launch.run(jobfile.load(JOB, {}).job, here, backend="local", folder=folder / "run", seed=5).digest
    return {"digest": digest, "taken": {name: taken(path) for name, path in here.items()}}


def foedus(home: Path, *arguments: str) -> tuple[int, str]:
    """The exit code of a command, and the digest that it printed."""
    env = {**os.environ, "FOEDUS_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "foedus", *arguments, "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout)["digest"] if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("site", NAMES)
def test_a_simulation_that_is_killed_goes_on_inside_its_training(
    site: str, tmp_path: Path, calm: dict[str, object]
) -> None:
    here = sites(tmp_path / "data")
    (here[site] / "kill").write_text(str(AT))
    bound = [text for name, path in here.items() for text in ("--site", f"{name}={path}")]
    code, _ = foedus(tmp_path, "run", str(JOB), "--backend", "local", "--seed", "5", *bound)
    assert code == -signal.SIGKILL
    (run,) = (tmp_path / "runs").iterdir()
    assert len(list((run / "midway").iterdir())) == 1 + NAMES.index(site)  # what ended is kept as well
    assert foedus(tmp_path, "resume", run.name) == (0, calm["digest"])
    cut = AT % A_STEP  # the images of the step that nobody finished are taken twice
    assert {name: len(taken(path)) for name, path in here.items()} == {n: ALL + cut * (n == site) for n in NAMES}
    assert not (run / "midway").exists()


@pytest.mark.parametrize("backend", ["processes", pytest.param("network", marks=pytest.mark.long)])
@pytest.mark.processes
def test_a_worker_that_is_killed_is_replaced_by_one_that_goes_on(
    backend: str, tmp_path: Path, calm: dict[str, object]
) -> None:
    here = sites(tmp_path / "data")
    (here["south"] / "kill").write_text(str(AT))
    bound = [text for name, path in here.items() for text in ("--site", f"{name}={path}")]
    assert foedus(tmp_path, "run", str(JOB), "--backend", backend, "--seed", "5", *bound) == (0, calm["digest"])
    assert [len(taken(path)) for path in here.values()] == [ALL, ALL + AT % A_STEP]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, FakeServer(tmp_path / "server"))
    (made.job / "job.py").write_text(JOB.read_text())
    yield made
    made.close()


def first() -> Params:
    learner = jobfile.load(JOB, {}).job.learner
    assert learner is not None
    return learner.init(key(0))


@pytest.mark.long
@pytest.mark.processes
def test_a_site_that_is_killed_goes_on_inside_its_training(rig: Rig) -> None:
    slow = JOB.read_text().replace("kill, taken =", "__import__('time').sleep(0.05)\n        kill, taken =")
    (rig.job / "job.py").write_text(slow)
    agent = rig.start()
    rig.submit()
    task = rig.task(first())
    folder = rig.place.folder / "work" / rig.run / "midway"
    until(lambda: (rig.data / "taken").exists() and len(taken(rig.data)) >= 35, 60)
    agent.kill()
    agent.wait()
    (kept,) = next(folder.iterdir()).iterdir()
    before = taken(rig.data)
    assert before and kept.stat().st_mode & 0o077 == 0
    rig.start()
    rig.server.until(lambda: rig.server.updates.get(task))
    assert ALL < len(taken(rig.data)) <= ALL + A_STEP
    assert not list(folder.iterdir())  # the update is kept in its place
