"""The backend `ray` on a cluster of two nodes: the bits of `local`, whatever becomes of actors and nodes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foedus import Decline, Update, build, jobfile, launch, runs
from foedus.aggregators import Folding
from foedus.backends import ray as backend
from foedus.backends.processes.channel import APART
from foedus.backends.ray import cluster as clusters
from foedus.backends.simulation import Simulation
from foedus.errors import FoedusError, JobError, Missing, WireError
from foedus.job import Job
from foedus.journal import Journal, Memory
from foedus.params import Params, digest
from foedus.run import Checkpoints, Ended, execute
from tiny import job, many, played, working
from toys import JOB, make_sites

pytestmark = pytest.mark.processes

EIGHT = many(8)


class Cluster:
    """Two nodes on loopback, of a core each; the second has a GPU that is one in name only."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self.settings = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_log_monitor": False}
        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
        head = {**self.settings, "include_dashboard": False, "_system_config": quick}
        self.nodes = Nodes(initialize_head=True, head_node_args=head)
        self.address = self.nodes.address

    def whole(self) -> Cluster:
        """Itself, with a second node if there is none."""
        if not self.nodes.worker_nodes:
            self.nodes.add_node(num_gpus=1, **self.settings)
        return self

    def second(self) -> str:
        """The id of the second node."""
        (node,) = self.nodes.worker_nodes
        return str(node.node_id)

    def kill(self) -> None:
        """Kills the second node: whatever runs there."""
        (node,) = self.nodes.worker_nodes
        self.nodes.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    place = tempfile.mkdtemp(prefix="foedus-test-", dir=clusters.PLACE)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (clusters.ALONE | {"RAY_TMPDIR": place, "RAY_AUTH_TOKEN": "5" * 64}).items():
            patch.setenv(name, value)
        Path(place, "ray").mkdir()
        from ray._private import ray_constants

        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        found = Cluster()
        try:
            yield found
        finally:
            found.nodes.shutdown()
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def there(made: Cluster) -> Cluster:
    return made.whole()


def crewed(made: Job, there: Cluster, sites: Mapping[str, Any] = EIGHT, note: Any = print, **how: Any) -> Any:
    """What the Job ends with on the cluster, and its journal."""
    kept = Journal(Memory())
    with build.exactly(), backend.crew(made, sites, 0, note=note, address=there.address, **how) as hands:
        runner = Simulation(hands, sorted(sites), kept, 0, made.min_sites)
        return execute(made.plan(0), runner, kept, Checkpoints(None)), kept


def shown(ended: Ended, journal: Journal) -> tuple[Any, ...]:
    """All that must not depend on the backend."""
    history = [{name: x for name, x in line.items() if name != "seconds"} for line in ended.history]
    return digest(ended.params), history, [dict(row) for row in journal.all("close")]


def here(made: Job, sites: Mapping[str, Any] = EIGHT) -> tuple[Any, ...]:
    with build.exactly():
        return shown(*played(made, sites))


def until(what: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.01)


def once(book: Path) -> bool:
    """Whether this is the first call with this file."""
    with suppress(FileExistsError):
        os.close(os.open(book, os.O_CREAT | os.O_EXCL))
        return True
    return False


# The same bits.


def remembering(payload: Params, local: Any, site: Any, usual: Any) -> Any:
    """An update of large and small arrays, with what the site remembers of the rounds before; some sites fail."""
    if site.name == "s01":
        raise ValueError("no scanner today")
    if site.name in ("s02", "s03"):
        return None, Decline("not now") if site.name == "s02" else "nonsense"
    if site.name == "s04":
        return None, Update(Params({"w": np.zeros(1 << 50)}), 1.0)  # more memory than there is
    past = payload.zeros() if local is None else local["past"]
    rng = site.key("new").numpy()
    new = Params({name: (x + rng.normal(size=x.shape)).astype(x.dtype) for name, x in payload.items()}, payload.kinds)
    return {"past": past + new}, Update(new + 0.5 * past, float(rng.integers(1, 99)), {"train_x": rng.random(3)})


def loading(site: Any) -> Any:
    if site.name == "s05":
        raise OSError("disk gone")
    return site.data


START = Params({"x": np.zeros(2 * APART, np.float32), "n": np.zeros(3, np.int64), "b": np.ones(2)}, {"b": "buffer"})


def test_updates_of_all_kinds_and_sites_that_fail_are_as_in_local(there: Cluster) -> None:
    made = job(working(remembering), rounds=3, start=START, evaluate=0, data=loading, quorum=3, late="keep")
    found = shown(*crewed(made, there))
    assert found == here(made)
    said = {site: (status, why) for row in found[2] for site, status, why, _ in row["outcomes"]}
    assert "ValueError: no scanner today (test_ray.py, line" in said["s01"][1]
    assert [said[f"s0{i}"][0] for i in range(1, 7)] == ["declined"] * 2 + ["refused"] + ["declined"] * 2 + ["counted"]
    assert "MemoryError" in said["s04"][1] and "loading its data: OSError: disk gone" in said["s05"][1]


def test_a_model_is_put_once_a_task_and_an_actor_ships_one_sum(there: Cluster, monkeypatch: Any) -> None:
    import ray

    merged, put = [], []
    merge, keep = Folding.merge, ray.put
    monkeypatch.setattr(Folding, "merge", lambda self, other: merged.append(other.count) or merge(self, other))
    monkeypatch.setattr(ray, "put", lambda value: put.append(value) or keep(value))
    monkeypatch.setattr(Folding, "add", None)  # here; the actors' own is theirs
    found = crewed(job(rounds=2, evaluate=0), there, many(40))
    monkeypatch.undo()
    assert shown(*found) == here(job(rounds=2, evaluate=0), many(40))
    assert len(put) == 1 + 2 and len(merged) <= 2 * 2 and sum(merged) == 2 * 40


def test_code_beside_the_job_file_travels_to_machines_that_lack_it(there: Cluster, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "beside_the_job.py").write_text(
        "def held(site):\n    return site.data\n\ndef alike(update, origin):\n    return 1.0\n"
    )
    (tmp_path / "job" / "job.py").write_text(
        "import foedus as fd\nfrom tiny import learner\nfrom beside_the_job import alike, held\n"
        "job = fd.Job(fd.fedavg(aggregator=fd.mean()._replace(weigh=alike)), learner(), held, rounds=1)\n"
    )
    made = jobfile.load(tmp_path / "job" / "job.py").job
    shutil.rmtree(tmp_path / "job")
    assert shown(*crewed(made, there, many(2), workers=1)) == here(made, many(2))


# Resources.


def test_fractions_of_a_gpu_are_shared_by_actors(there: Cluster) -> None:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        seen = float(os.environ.get("CUDA_VISIBLE_DEVICES", "") == "0")
        return None, usual()[1]._replace(metrics={"train_x": np.array([seen, 1.0, seen])})

    needs = {"cpu": 0.25, "gpu": 0.25}
    with clusters.joined(there.address, None, {}):
        assert clusters.room(clusters.needed(needs)) == 4
        assert clusters.room(clusters.needed({"cpu": 0.3})) == 2 * 3
        ended, _ = crewed(job(working(work), rounds=1), there, workers=1, resources=needs)  # the connection is used
        assert clusters.room({"CPU": 1.0}) == 2  # and stays
    assert ended.history[0]["train_x"] == 1.0


def test_a_machine_of_another_build_is_named_once(there: Cluster) -> None:
    from foedus.backends.ray.actors import Actors
    from foedus.backends.ray.member import Ready

    notes = list[tuple[str, str]]()
    with clusters.joined(there.address, None, {}):
        hall = Actors((job(), {}, 0), 1, {"CPU": 1.0}, lambda why, what: notes.append((what, why)))
        for build_there in (build.describe(), {"cpu": "abacus"}, {"cpu": "abacus"}):
            hall._compare(Ready("far", build_there))
    assert notes == [("build", f"bits not comparable: cpu: {build.describe()['cpu']} against abacus at far")]


def test_what_no_node_has_room_for_is_an_error_with_the_remedy(there: Cluster, monkeypatch: Any) -> None:
    lacks = "it needs CPU 1, GPU 2, and the nodes have CPU 1, GPU [01]; CPU 1, GPU [01]: ask for less by resources=…"
    with pytest.raises(JobError, match=f"no node of the Ray cluster has room for a site: {lacks}"):
        crewed(job(), there, resources={"gpu": 2})
    from foedus.backends.ray import actors

    monkeypatch.setattr(actors, "PATIENCE", 0.1)
    with pytest.raises(FoedusError, match=f"gave no worker within 0 s: {lacks}"):
        crewed(job(), there, workers=1, resources={"gpu": 2})


@pytest.mark.parametrize("resources", [{"cpu": 0}, {"gpu": -1}, {"gpu": "1"}, {"cpu": float("nan")}, {"gpu": True}])
def test_amounts_are_numbers_above_zero(resources: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=r"give numbers above 0, such as \{'cpu': 1, 'gpu': 0.25\}"):
        clusters.needed(resources)


def test_resources_become_the_options_of_an_actor() -> None:
    needs = clusters.needed({"gpu": 0.5, "memory": 1 << 30, "scanner": 1})
    options = {"num_cpus": 1.0, "num_gpus": 0.5, "memory": 1 << 30, "resources": {"scanner": 1}}
    assert clusters.options(needs) == options


# Deaths.

PROCESS = "(its process died|it cannot be reached)"


@pytest.mark.long
def test_an_actor_killed_while_it_trains_changes_no_bit(there: Cluster, tmp_path: Path) -> None:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        if site.name == "s05" and os.getpid() != parent and once(tmp_path / "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return usual()

    parent, notes = os.getpid(), list[str]()
    found = crewed(job(working(work), rounds=3), there, note=notes.append)
    assert shown(*found) == here(job(rounds=3))
    assert len(notes) == 1 and re.search(rf"died \({PROCESS}\) at work for .*s05", notes[0])


@pytest.mark.long
def test_a_site_that_kills_every_actor_is_declined_and_the_others_count(there: Cluster) -> None:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        if site.name == "s03":
            os._exit(3)
        return usual()

    ended, journal = crewed(job(working(work), rounds=1, evaluate=0), there, note=lambda why: None)
    rest = {name: split for name, split in EIGHT.items() if name != "s03"}
    assert digest(ended.params) == here(job(rounds=1, evaluate=0), rest)[0]
    outcomes = {row[0]: row[1:3] for row in journal.all("close")[0]["outcomes"]}
    status, why = outcomes.pop("s03")
    assert status == "declined" and re.fullmatch(f"worker died: {PROCESS}", why)
    assert {status for status, _ in outcomes.values()} == {"counted"}


def test_a_node_lost_in_the_middle_of_a_round_changes_no_bit(there: Cluster, tmp_path: Path) -> None:
    """What it had folded is done again by the node that is left, while nobody has room for another actor."""

    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        if os.getpid() != parent and not doomed():
            until((tmp_path / "at work").exists)
        elif os.getpid() != parent and not once(tmp_path / "folded"):
            (tmp_path / "at work").touch()
            time.sleep(600)
        return usual()

    def doomed() -> bool:
        import ray

        return bool(ray.get_runtime_context().get_node_id() == second)

    def kill() -> None:
        until((tmp_path / "at work").exists)
        there.kill()

    parent, second, notes = os.getpid(), there.second(), list[str]()
    killer = threading.Thread(target=kill)
    killer.start()
    found = crewed(job(working(work), rounds=3), there, note=notes.append)
    killer.join()
    assert shown(*found) == here(job(rounds=3))
    assert notes and all(re.search(r"died \((its node died|it cannot be reached)\)", note) for note in notes)


# Errors, and the command line.


def test_an_address_where_nobody_answers_is_an_error_at_once(made: Cluster) -> None:
    with pytest.raises(WireError, match=r"no Ray cluster answers at 127.0.0.1:1 \(.*start one by `ray start --head`"):
        job().run(EIGHT, backend="ray", address="127.0.0.1:1")


def test_what_is_rays_is_refused_elsewhere() -> None:
    with pytest.raises(JobError, match="resources=… and address=… are of the backend 'ray'"):
        job().run(EIGHT, backend="local", resources={"gpu": 1})


def test_without_the_extra_the_error_is_the_pip_install_line(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Missing, match=r"ray is not installed: pip install 'foedus\[ray\]'") as caught:
        launch.resolve("ray")
    assert caught.value.code == 9


FEW = """
import sys
from foedus import jobfile

made, every = jobfile.load({every!r}).job, sys.modules["foedus_job_job"]
names = "fedavg", "scaffold", "moon", "krum", "top-k"  # sums, own states, two models, gathers, compression
job = made.replace(rounds=2, algorithm=every.together({{name: every.EVERY[name]() for name in names}}))
"""


@pytest.mark.long
def test_a_cluster_of_the_runs_own_gives_the_digest_of_local_for_every_kind_of_algorithm(tmp_path: Path) -> None:
    """By the command line, without an address; nothing of the cluster stays."""
    sites, few = make_sites(tmp_path / "data", ["north", "south", "west"]), tmp_path / "few.py"
    few.write_text(FEW.format(every=str(JOB.parents[1] / "every" / "job.py")))
    given = [word for name, path in sites.items() for word in ("--site", f"{name}={path}")]
    words = ["run", str(few), *given, "--home", str(tmp_path), "--json", "--backend", "ray", "--resource", "cpu=0.5"]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    before = set(Path(clusters.PLACE or "/tmp").glob("foedus-ray-*"))
    ran = subprocess.run(
        [sys.executable, "-m", "foedus", *words, "--workers", "1"],
        env=plain | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(ran.stdout)
    assert (found["backend"], found["exact"]) == ("ray", True)
    assert launch.verify(Path(found["folder"]), jobfile.load(few).job, sites)["same"]  # a replay in `local`
    assert set(Path(clusters.PLACE or "/tmp").glob("foedus-ray-*")) == before
    assert not runs.journal(Path(found["folder"])).events
