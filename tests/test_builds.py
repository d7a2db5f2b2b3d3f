"""What a run says of the machines that its bits come from: the same in every backend, and who differs, by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from federations import kinds, until
from foedus import build, runs
from foedus.loopback import environment, federation
from server_rig import Rig, Scripted
from toys import make_sites

pytestmark = pytest.mark.processes

JOB = """
import foedus as fd
import numpy as np
import torch  # when a run worker and a site's worker have promised exact arithmetic already
from foedus.algorithms.rounds import delta, rounds
from foedus.numpy import NumpyLearner


def exact():
    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    return 1


def load(site):
    return fd.Split(train=(np.ones((3 * exact(), 1)), np.zeros(3)), valid=(np.ones((3, 1)), np.zeros(3)))


def fit(params, split, ctx):
    params["w"] += exact()


def gradient(p, x, y):
    return x[:, 0], {"w": p["w"]}


learner = NumpyLearner({"w": np.zeros(3, np.float32)}, gradient, lambda p, x: x[:, 0], train=fit)
algorithm = rounds(lambda state: state, delta(), lambda state, total, _: state + exact() * total.params)
job = fd.Job(algorithm, learner, load, rounds=1, evaluate=0, privacy="none")
"""
FOEDUS = [sys.executable, "-m", "foedus"]
OTHER = """
import sys
from foedus.cli import main
from foedus.site.workerhost import WorkerHost

ready = WorkerHost.ready


def other(self, *how):
    report = ready(self, *how)
    report["build"] |= {"cpu": "SSE42", "hash": "f" * 16}
    return report


WorkerHost.ready = other
main()
"""


def test_every_backend_describes_the_same_build_and_a_site_on_another_is_named(tmp_path):
    sites = make_sites(tmp_path / "data", ["north", "south"])
    job = tmp_path / "code" / "job.py"
    job.parent.mkdir()
    job.write_text(JOB)
    given = ["--json", *(f"--site={name}={path}" for name, path in sites.items())]
    simulated = {
        backend: subprocess.Popen(
            [*FOEDUS, "run", str(job), "--backend", backend, "--home", str(tmp_path / backend), *given],
            env=environment(),
            stdout=subprocess.PIPE,
        )
        for backend in ("local", "processes")
    }
    with federation(tmp_path / "home") as made:
        made.start_server()
        made.join("north", {"data": sites["north"]})
        token = made._foedus("federation", "invite", "south").strip()
        words = ["site", "join", token, "--data", f"data={sites['south']}", "--trust", "owner"]
        made._start("south", "-c", OTHER, *words, "--home", str(made.site_home("south")))
        made.await_sites(sites)
        run = made.remote().submit(job)
        result = run.wait()
        until(lambda: len(kinds(run, "build")) == 2)
        told = {row["site"]: row["build"] for row in kinds(run, "build")}
        events = [(row["site"], row["why"]) for row in kinds(run, "event") if row["what"] == "build"]
        accepted = {row["site"]: row["build"] for row in kinds(run, "accepted")}
    found = {backend: ended(process, tmp_path / backend) for backend, process in simulated.items()}
    own = dict(result.build)
    assert own["deterministic"] is True and own["torch"] == build.installed("torch")
    assert found == {"local": own, "processes": own}
    assert told["north"] == own and told["south"] == own | {"cpu": "SSE42", "hash": "f" * 16}
    assert accepted == {"north": own["hash"], "south": "f" * 16}
    assert events == [("south", f"bits not comparable: cpu: {own['cpu']} against SSE42")]


def ended(process, home):
    """The build in the journal of a simulation."""
    out, _ = process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["rounds"] == 1
    return runs.about(next((home / "runs").iterdir()))["build"]


def test_an_update_of_a_build_that_was_not_described_is_an_event(tmp_path):
    from test_server_runs import JOB, ONES

    rig = Rig(tmp_path)
    try:
        north, run = Scripted(rig, "north"), rig.submit(JOB)
        north.ready(run, build={"cpu": "AVX2", "hash": "a" * 16})
        for hash in ("a" * 16, "b" * 16):
            assert north.send(north.task(run), ONES, build=hash)["status"] == "accepted"
        rig.until(lambda: rig.hub.runs[run].over)
        own = rig.rows(run, "open")[0]["build"]
        first, second = (row["why"] for row in rig.rows(run, "event") if row["what"] == "build")
    finally:
        rig.close()
    assert f"cpu: {own['cpu']} against AVX2" in first
    assert second == f"bits not comparable: its updates say build {'b' * 16}, which it did not describe"


def test_torch_is_exact_from_its_import_to_the_end_of_the_block():
    code = """
import sys
from foedus import build
with build.exactly(3):
    assert 'torch' not in sys.modules and 'deterministic' not in build.describe()
    import torch
    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 3
    assert build.describe()['deterministic'] is True
    with build.exactly(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 3
assert not torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
assert not [finder for finder in sys.meta_path if 'foedus' in type(finder).__module__]
"""
    subprocess.run([sys.executable, "-c", code], env=environment() | {"OMP_NUM_THREADS": "1"}, check=True)


def test_a_worker_sees_the_gpus_that_its_owner_allows_and_no_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    found = build.scrubbed(tmp_path)
    assert found["CUDA_VISIBLE_DEVICES"] == "1" and "secret" not in found.values()
